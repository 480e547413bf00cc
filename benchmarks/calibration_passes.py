"""Does a second pass over the same images settle the statistics further? On the embedded digits.

python benchmarks/calibration_passes.py

Relative distances of all running means and variances: from several passes, and between two seeds.
"""

from __future__ import annotations

from pathlib import Path

from measuring import machine, write_results

from sad_deploy.batchnorm import batchnorm_layers, read_statistics, relative_shift
from sad_deploy.calibration import Calibration, CalibrationRun, CalibrationSettings
from sad_deploy.data import training_batches
from sad_deploy.preparation import Preparation, prepare
from sad_deploy.recipe import Options, resolve

ETA = 0.3
BATCH_SIZE = 128


def calibrations(preparation: Preparation, seed: int, marks: tuple[int, ...]) -> dict[int, Calibration]:
    """Φ1 after so many batches, in one run."""
    data = preparation.data.load(preparation.preprocessing, calibration=4096, held_out=1, seed=seed)
    run = CalibrationRun(
        preparation.model, (ETA,), CalibrationSettings(input_space=preparation.input_space, seed=seed)
    )
    found = {}
    for batch in training_batches(data.calibration, batch_size=BATCH_SIZE, batches=max(marks), seed=seed):
        run.add(batch)
        if run.sweep.batches in marks:
            found[run.sweep.batches] = run.sweep.calibration(ETA)
    return found


def distance(a: Calibration, b: Calibration) -> float:
    """‖statistics of b − of a‖ / ‖of a‖."""
    first, second = (read_statistics(batchnorm_layers(each.model)) for each in (a, b))
    return relative_shift(first, second)


def main() -> None:
    preparation = prepare(resolve(Options(device="cpu")))
    one_pass = preparation.data.available // BATCH_SIZE
    marks = (one_pass // 2, one_pass, 2 * one_pass, 32)
    first, second = (calibrations(preparation, seed, marks) for seed in (0, 1))
    results = {
        "machine": machine(),
        "images": preparation.data.available,
        "batches_of_one_pass": one_pass,
        "from_32_batches": {str(mark): distance(first[32], first[mark]) for mark in marks[:-1]},
        "between_two_seeds": {str(mark): distance(first[mark], second[mark]) for mark in (one_pass, 32)},
    }
    for key in ("from_32_batches", "between_two_seeds"):
        print(key, results[key])
    write_results(Path(__file__).parent / "results" / "calibration_passes.json", results)


if __name__ == "__main__":
    main()
