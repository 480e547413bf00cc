"""Train a network on the digits or CIFAR, naturally or adversarially, by the rules of five papers.

    python examples/train.py --out digits.safetensors
    python examples/train.py --method pgd --out digits_adversarial.safetensors
    python examples/train.py --data cifar10:DIR --method trades --out resnet18_trades.safetensors

The first two made the package's own weights in `sad_deploy/models/`, by torch 2.14.1 on an x86-64 CPU. On the
CPU the same machine, versions, seed and number of threads give the same bytes again, others a network that is
as good. --resume goes on after the last whole epoch, to the same bytes.

The rules and the settings are in train_methods.py, beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_methods import METHODS, Learner, Recipe, recipe_for

from sad_deploy.classifier import standardized
from sad_deploy.data import ImageSet, every_batch, find_data, training_batches
from sad_deploy.models import build_model
from sad_deploy.models.digits import digits_state_dict
from sad_deploy.network_input import network_input
from sad_deploy.recipe import EMBEDDED, Options, resolve
from sad_deploy.saliency import logits_of
from sad_runtime.errors import UserError
from sad_runtime.files import written_whole
from sad_runtime.manifest import InputSpace

MOMENTUM = 0.9


class Training:
    """A training between two epochs.

    Args:
        recipe: Its settings.
        images: Labelled.
        learner: The network with its first weights.
        seed: Of the images' order.
    """

    def __init__(self, recipe: Recipe, images: ImageSet, learner: Learner, seed: int) -> None:
        self.recipe, self.images, self.learner, self.seed = recipe, images, learner, seed
        self.epochs = 0
        """How many are done."""
        self.steps = len(images) // recipe.batch_size
        """Batches an epoch."""
        self.optimizer = torch.optim.SGD(
            learner.model.parameters(),
            lr=recipe.rate,
            momentum=MOMENTUM,
            nesterov=recipe.nesterov,
            weight_decay=recipe.decay,
        )
        self.schedule = _schedule(self.optimizer, recipe, recipe.epochs * self.steps * recipe.replays)

    def rest(self) -> Iterator[float]:
        """Train for the epochs that are left; gives the mean loss after each."""
        recipe, steps = self.recipe, self.recipe.epochs * self.steps
        done = self.epochs * self.steps
        batches = training_batches(
            self.images, batch_size=recipe.batch_size, batches=steps, seed=self.seed, first=done
        )
        losses = []
        for step, (pixels, labels) in enumerate(batches, start=done + 1):
            assert labels is not None  # digits and CIFAR are labelled
            warm = recipe.warm_up * steps
            self.learner.epsilon = recipe.epsilon * (min(1.0, step / warm) if warm else 1.0)
            losses += self._updated(augmented(pixels, recipe, self.learner.generator), labels)
            if step % self.steps == 0:
                self.epochs += 1
                yield sum(losses) / len(losses)
                losses = []

    def _updated(self, pixels: Tensor, labels: Tensor) -> Iterator[float]:
        """Step along each of the method's losses on a batch; gives them."""
        learner = self.learner
        device = next(learner.model.parameters()).device
        learner.model.train()
        for loss in METHODS[self.recipe.method](learner, pixels.to(device), labels.to(device)):
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            yield float(loss.detach())

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, as ``torch.save`` takes it."""
        return {
            "epochs": self.epochs,
            "model": self.learner.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.learner.generator.get_state(),
            "dropout": torch.get_rng_state(),
            "delta": self.learner.delta,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Be as the training was whose state it is."""
        self.epochs = state["epochs"]
        self.learner.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.learner.generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout"])
        device = next(self.learner.model.parameters()).device
        self.learner.delta = None if state["delta"] is None else state["delta"].to(device)


def train(
    recipe: Recipe,
    images: ImageSet,
    space: InputSpace,
    *,
    model: str = "digits",
    num_classes: int = 10,
    seed: int = 0,
    device: str = "cpu",
    state: Path | None = None,
    resume: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a new network.

    Args:
        recipe: See :func:`recipe_for`.
        images: Labelled, and at least two batches of them.
        space: Pixels to network input.
        model: Its name, as ``sad-deploy calibrate --model`` takes it.
        num_classes: K.
        seed: Of the first weights and of all that is random after them.
        device: As torch names it.
        state: File in which the training is kept after each epoch, if in any.
        resume: Go on from there, where there is one.
        report: Told of each epoch's number, from 1, and its mean loss.

    Returns:
        The network in eval mode, on the device.

    Raises:
        UserError: The network does not take these images, or the state is of another training.
    """
    torch.manual_seed(seed)
    network = build_model(model, num_classes)
    if recipe.from_natural and model in EMBEDDED:
        network.load_state_dict(digits_state_dict())
    _try_out(network, images, model)
    learner = Learner(network.to(device), space, recipe, torch.Generator().manual_seed(seed))
    training = Training(recipe, images, learner, seed)
    what = {"model": model, "images": len(images), "seed": seed, **dataclasses.asdict(recipe)}
    if state is not None and state.exists():
        kept = _kept(state, what, resume=resume)
        training.restore(kept)
    for loss in training.rest():
        if state is not None:
            with written_whole(state) as draft:
                torch.save({"what": what, **training.state()}, draft)
        if report is not None:
            report(training.epochs, loss)
    return network.eval()


def _kept(state: Path, what: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The state of the same training.

    Raises:
        UserError: It is of another one, or nobody asked for it.
    """
    if not resume:
        raise UserError(f"{state} holds a training that was cut off", hint="--resume goes on; or remove it")
    try:
        kept: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)
        other = [name for name, value in what.items() if kept["what"].get(name) != value]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{state} cannot be read: {str(error)[:120]}", hint="remove it to start anew"
        ) from None
    if other:
        differ = ", ".join(f"{name} {kept['what'].get(name)} there, {what[name]} here" for name in other)
        raise UserError(
            f"{state} is of another training: {differ}", hint="give the same options, or remove it"
        )
    return kept


def _try_out(model: nn.Module, images: ImageSet, name: str) -> None:
    """Refuse a network that takes no such images.

    Raises:
        UserError: It does not.
    """
    shape = images.images.shape[1:]
    try:
        with torch.no_grad():
            logits_of(model, torch.zeros(2, *shape))
    except RuntimeError as error:
        raise UserError(
            f"{name} takes no images of {'×'.join(map(str, shape))}: {str(error)[:120]}",
            hint="digits are for the digits model, CIFAR for cifar-resnet18 and other networks of 3×32×32",
        ) from None


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate step by step: up and down again in lines, or ever a tenth."""
    if recipe.rises is not None:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=recipe.rate,
            total_steps=steps,
            pct_start=recipe.rises,
            anneal_strategy="linear",
            cycle_momentum=False,
        )
    drops = [round(share * steps) for share in recipe.drops]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)


def augmented(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Every image (C, H, W) moved at random over a black ground, and half of them mirrored if that is due."""
    n, _, height, width = pixels.shape
    by = recipe.shift
    offsets = torch.randint(0, 2 * by + 1, (n, 2), generator=generator).tolist()
    padded = F.pad(pixels, (by, by, by, by))
    moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    if recipe.flips:
        mirrored = torch.rand(n, generator=generator) < 0.5
        moved = [image.flip(2) if flip else image for image, flip in zip(moved, mirrored, strict=True)]
    return torch.stack(moved)


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet, space: InputSpace) -> float:
    """Percent of images that are classified correctly."""
    device = next(model.parameters()).device
    correct = 0
    for pixels, labels in every_batch(images, batch_size=256):
        correct += int((model(standardized(pixels.to(device), space)).argmax(1).cpu() == labels).sum())
    return 100 * correct / len(images)


def main(arguments: argparse.Namespace) -> None:
    """Train, write the weights, and say how good they are on images that were not trained on."""
    given = {"epochs": arguments.epochs, "epsilon": arguments.epsilon}
    recipe = recipe_for(arguments.method, arguments.data, **given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no usable GPU here", hint="use --device cpu")
    source = find_data(arguments.data)
    assert source.preprocessing is not None and source.classes is not None  # digits and CIFAR
    data = source.load(
        source.preprocessing, calibration=source.available, held_out=source.available, seed=arguments.seed
    )
    model = arguments.model or ("digits" if arguments.data == "digits" else "cifar-resnet18")
    asked = resolve(Options(model=model, data=arguments.data))
    # What calibrate will assume of this network, so that the weights need no options there.
    space = network_input(asked, source, None, build_model(model, len(source.classes)), None).space
    # Several threads add in an order of their own, and wait for each other at every small layer.
    torch.set_num_threads(arguments.threads)
    state = arguments.out.with_name(arguments.out.name + ".training")
    started = time.monotonic()

    def report(epoch: int, loss: float) -> None:
        seconds = time.monotonic() - started
        print(f"epoch {epoch} of {recipe.epochs}: loss {loss:.4f}, {seconds:.0f} s", file=sys.stderr)

    network = train(
        recipe,
        data.calibration,
        space,
        model=model,
        num_classes=len(source.classes),
        seed=arguments.seed,
        device=arguments.device,
        state=state,
        resume=arguments.resume,
        report=report,
    )
    with written_whole(arguments.out) as draft:
        safetensors.torch.save_file(network.state_dict(), draft)
    state.unlink(missing_ok=True)
    assert data.test is not None
    found = [accuracy(network, images, space) for images in (data.held_out, data.test)]
    print(f"{arguments.out}: clean accuracy {found[0]:.1f} % held out, {found[1]:.1f} % of test")


def _epsilon(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError
    return float(numerator) / float(denominator or 1)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="digits, cifar10:DIR or cifar100:DIR")
    parser.add_argument("--model", help="as for calibrate; by default digits or cifar-resnet18")
    parser.add_argument("--method", default="natural", choices=METHODS)
    parser.add_argument("--epsilon", type=_epsilon, help="L∞, in pixels; by default 0.1 or the paper's")
    parser.add_argument("--epochs", type=int, help="passes over the images; by default the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="FILE.safetensors")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        choices=range(1, 1025),
        metavar="N",
        help="of the CPU; other numbers give other bytes",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what was cut off, if anything was")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        main(parsed())
    except UserError as error:
        print(
            f"error: {error.message}",
            *([f"hint: {error.hint}"] if error.hint else []),
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(2)
