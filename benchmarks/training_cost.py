"""What SAD calibration costs beside TRADES training of the same network, in CPU time of one thread.

    python benchmarks/training_cost.py [--epochs N]

1. Digits, measured: TRADES by examples/train.py to its last epoch, and to the first epoch at which accuracy
   under PGD-20 on the held-out images is within a point of the last one. Beside it the whole of `sad-deploy
   calibrate` on the trained network, everything that it measures included: for a given η, with the sweep, and
   with the paper's settings.
2. cifar-resnet18, arithmetic: one update of TRADES and one calibration batch are measured on a few random
   images, and multiplied by the images of the paper's training and of the default calibration.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from measuring import machine, write_results
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train import Training, first_weights, recipe_for
from train_methods import Learner

from sad_deploy.attack_config import Attack
from sad_deploy.attacks import perturb
from sad_deploy.calibration import CalibrationSettings, calibrate_each
from sad_deploy.calibration_job import run
from sad_deploy.classifier import standardized
from sad_deploy.data import ImageSet, every_batch
from sad_deploy.data.digits import digits_splits
from sad_deploy.models import cifar, digits
from sad_deploy.preparation import prepare
from sad_deploy.recipe import BATCH_SIZE, BATCHES, Options, resolve
from sad_runtime.manifest import InputSpace

SPACE = InputSpace(digits.MEAN, digits.STD)
EPSILON = 0.1
STEPS = 20
"""Of the PGD that accuracy is measured with."""

EVERY = 2
"""Epochs between two measurements."""

CLOSE = 1.0
"""Points of accuracy under attack within which the last one counts as reached."""

JOBS = {
    "calibrate --eta 1.2": {"eta": "1.2"},
    "calibrate": {"allow_drop": True},
    "calibrate --paper": {"paper": True},
}
CIFAR_IMAGES = 16
CIFAR_TRAINING = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help="of TRADES on the digits; by default the recipe's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "threads": 1}
    results["digits"] = on_digits(arguments.epochs)
    results["cifar-resnet18"] = on_cifar()
    write_results(Path(__file__).parent / "results" / "training_cost.json", results)


def on_digits(epochs: int | None) -> dict[str, Any]:
    """Both measured."""
    training, held_out, test = digits_splits()
    recipe = recipe_for("trades", "digits", epochs=epochs)
    model = first_weights(recipe, "digits", 10, 0)
    learner = Learner(model, SPACE, recipe, torch.Generator().manual_seed(0))
    rows, spent, started = [], 0.0, time.process_time()
    steps = Training(recipe, training, learner, 0)
    for loss in steps.rest():
        spent += time.process_time() - started
        if steps.epochs % EVERY == 0 or steps.epochs == recipe.epochs:
            rows.append(
                {"epoch": steps.epochs, "cpu_seconds": spent, "loss": loss, **accuracies(model, held_out)}
            )
            print(rows[-1], flush=True)
        started = time.process_time()
    final = rows[-1]["pgd_percent"]
    reached = next(row for row in rows if row["pgd_percent"] >= final - CLOSE)
    jobs = calibrations(model)
    print(f"TRADES {spent:.0f} s; to within {CLOSE:g} point of its accuracy {reached['cpu_seconds']:.0f} s")
    for name, job in jobs.items():
        whole, least = (seconds / job["cpu_seconds"] for seconds in (spent, reached["cpu_seconds"]))
        job |= {"ratio_to_all_epochs": whole, "ratio_to_accuracy_reached": least}
        print(f"{name}: {job['cpu_seconds']:.1f} s, so that they are {whole:.1f} × and {least:.1f} × it")
    return {
        "recipe": dataclasses.asdict(recipe),
        "images": len(training),
        "attack": f"PGD-{STEPS}, Linf, epsilon {EPSILON}, one run: not the worst case",
        "epochs": rows,
        "cpu_seconds": spent,
        "reached": reached,
        "test": {"images": len(test), **accuracies(model, test)},
        "calibration": jobs,
    }


def accuracies(model: nn.Module, images: ImageSet) -> dict[str, float]:
    """Percent that a network has right, clean and as PGD changes the images."""
    model.eval()
    attack, generator = Attack(epsilon=EPSILON, steps=STEPS), torch.Generator().manual_seed(0)
    right = np.zeros(2)
    for pixels, labels in every_batch(images, batch_size=128):
        moved = perturb(model, pixels, labels, attack, SPACE, generator=generator)
        with torch.no_grad():
            for i, each in enumerate((pixels, moved)):
                right[i] += int((model(standardized(each, SPACE)).argmax(1) == labels).sum())
    clean, attacked = 100 * right / len(images)
    return {"clean_percent": float(clean), "pgd_percent": float(attacked)}


def calibrations(model: nn.Module) -> dict[str, dict[str, Any]]:
    """CPU time of the whole job, and what it gave."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        safetensors.torch.save_file(model.state_dict(), weights)
        for name, options in JOBS.items():
            recipe = resolve(Options(weights=str(weights), data="digits", **options))  # type: ignore[arg-type]
            started = time.process_time()
            outcome = run(recipe, prepare(recipe), lambda *_: None)
            found[name] = {
                "cpu_seconds": time.process_time() - started,
                "eta": outcome.calibration.eta,
                "images": outcome.calibrated_images,
                "clean_before_percent": outcome.before.percent,
                "clean_after_percent": outcome.after.accuracy.percent,
            }
    return found


def on_cifar() -> dict[str, Any]:
    """A piece of each measured, the rest multiplied."""
    papers = recipe_for("trades", "cifar10:")
    images = ImageSet(
        np.random.default_rng(0).integers(0, 256, (2 * CIFAR_IMAGES, 3, 32, 32), dtype=np.uint8),
        np.arange(2 * CIFAR_IMAGES) % 10,
    )
    space = InputSpace(cifar.MEAN, cifar.STD)
    model = first_weights(papers, "cifar-resnet18", 10, 0)
    few = dataclasses.replace(papers, epochs=1, batch_size=CIFAR_IMAGES)
    learner = Learner(model, space, few, torch.Generator().manual_seed(0))
    started = time.process_time()
    list(Training(few, images, learner, 0).rest())
    update = (time.process_time() - started) / len(images)
    started = time.process_time()
    batches = list(every_batch(images, batch_size=CIFAR_IMAGES))
    calibrate_each(model.eval(), batches, (0.8,), CalibrationSettings(input_space=space))
    calibration = (time.process_time() - started) / len(images)
    trained, calibrated = papers.epochs * CIFAR_TRAINING, BATCHES * BATCH_SIZE
    ratio = trained * update / (calibrated * calibration)
    print(
        f"cifar-resnet18, arithmetic: an image costs TRADES {update:.2f} s, calibration {calibration:.2f} s; "
        f"{trained:,} images against {calibrated:,} are {ratio:.0f} ×"
    )
    return {
        "arithmetic": True,
        "measured_on_images": len(images),
        "trades_cpu_seconds_an_image": update,
        "calibration_cpu_seconds_an_image": calibration,
        "trades_images": trained,
        "calibration_images": calibrated,
        "ratio": ratio,
    }


if __name__ == "__main__":
    main()
