"""The embedded default's weights: the small ResNet trained once on the digits, then kept in the user's cache.

The same machine and versions give the same weights: the thread count is fixed, the seed is, and the cache is
keyed by everything else that decides them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.files import written_whole

from .data.digits import digits_splits
from .data.image_set import ImageSet, every_batch, training_batches
from .models.digits import MEAN, STD, DigitsResNet

Epoch = Callable[[int, int], None]
"""Called after every epoch with (epochs done, epochs to do)."""

# On a busy machine several threads took ten times as long: they wait for each other at every small layer.
_THREADS = 1
_DIGEST = "sha256"


@dataclasses.dataclass(frozen=True)
class Training:
    """The recipe: SGD with Nesterov momentum, a linear warm-up and decay, images shifted by up to one pixel.

    Attributes:
        epochs: Runs over the training images.
        batch_size: Images a step.
        learning_rate: The largest.
        weight_decay: Of all parameters.
        seed: Of initial weights, order and shifts.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0


def digits_state_dict(
    training: Training | None = None, *, cache: Path | None = None, epoch: Epoch | None = None
) -> tuple[dict[str, Tensor], Path | None]:
    """Weights of the default network, from the cache if they are there and whole, else trained now.

    Args:
        training: The recipe; None is the default one.
        cache: Folder to keep them in; None is :func:`cache_folder`.
        epoch: Told after every epoch of training, not called when the cache served.

    Returns:
        The state dict, and the cache file, or None if it could not be written.
    """
    training = training or Training()
    file = (cache or cache_folder()) / f"digits-{_key(training)}.safetensors"
    state = _read(file)
    if state is not None:
        return state, file
    model = train_digits(training, epoch=epoch)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return state, file if _write(file, state) else None


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/sad-deploy``, by default ``~/.cache/sad-deploy``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "sad-deploy"


def train_digits(training: Training, *, epoch: Epoch | None = None) -> nn.Module:
    """Train the default network on the digits' training split; returned in eval mode."""
    images, _, _ = digits_splits()
    with _reproducible(training.seed):
        model = DigitsResNet(num_classes=10)
        generator = torch.Generator().manual_seed(training.seed)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=training.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=training.weight_decay,
        )
        steps = len(images) // training.batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=training.learning_rate,
            total_steps=training.epochs * steps,
            anneal_strategy="linear",
            cycle_momentum=False,
        )
        batches = training_batches(
            images, batch_size=training.batch_size, batches=training.epochs * steps, seed=training.seed
        )
        model.train()
        for step, (pixels, labels) in enumerate(batches, start=1):
            assert labels is not None  # the digits are labelled
            loss = F.cross_entropy(model(_network_input(_shifted(pixels, generator))), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if epoch is not None and step % steps == 0:
                epoch(step // steps, training.epochs)
    return model.eval()


def digits_accuracy(model: nn.Module, images: ImageSet) -> float:
    """Percent of digits that the plain network classifies correctly."""
    correct = 0
    with torch.no_grad():
        for pixels, labels in every_batch(images, batch_size=256):
            correct += int((model(_network_input(pixels)).argmax(dim=1) == labels).sum())
    return 100 * correct / len(images)


def _network_input(pixels: Tensor) -> Tensor:
    return (pixels - MEAN[0]) / STD[0]


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by −1, 0 or 1 pixel along each axis; the background is 0."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (n, 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    )


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """A fixed seed and thread count; the caller's are restored."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _key(training: Training) -> str:
    images, _, _ = digits_splits()
    assert images.labels is not None  # the digits are labelled
    decides = {
        "training": dataclasses.asdict(training),
        "network": repr(DigitsResNet()),
        "input": [MEAN, STD],
        "threads": _THREADS,
        "torch": torch.__version__,
        "images": hashlib.sha256(images.images.tobytes() + images.labels.tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Tensor] | None:
    """The cached weights, or None if they are absent or not what was written."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get(_DIGEST)
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError):
        return None
    return state if expected == _digest(state) else None


def _write(file: Path, state: dict[str, Tensor]) -> bool:
    """Write by rename, so that a reader never sees half a file. Without a writable cache, go on without."""
    try:
        with written_whole(file) as draft:
            safetensors.torch.save_file(state, draft, metadata={_DIGEST: _digest(state)})
    except (UserError, safetensors.SafetensorError):
        return False
    return True
