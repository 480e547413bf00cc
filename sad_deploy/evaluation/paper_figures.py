"""What the paper reports, table by table: accuracies in percent, of CIFAR-10 and CIFAR-100.

*SAD: Saliency Adversarial Defense without Adversarial Training*, submission to ICLR 2021. None of these is a
worst case: the attacks are weak ones, and through the defence. Section 4.6's second ablation gives no
figures ("the robustness is too small to make sense").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_WHITE = ("WeakPGD", "StrongPGD", "C&W", "APGD")
_BLACK = ("OnePixel", "ZOO", "WRN")


@dataclasses.dataclass(frozen=True)
class Reported:
    """One row.

    Attributes:
        network: Network and data.
        method: How it was made robust, or the ratio η.
        values: Natural accuracy, then one value a column; None where it cannot be read.
    """

    network: str
    method: str
    values: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: What it is of.
        columns: Attacks, after the natural images.
        rows: What the paper reports.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Reported, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def _rows(network: str, values: Mapping[str, tuple[float | None, ...]]) -> tuple[Reported, ...]:
    return tuple(Reported(network, method, each) for method, each in values.items())


TABLES: Mapping[str, Table] = {
    "1": Table(
        "white-box attacks, CIFAR-10",
        _WHITE,
        (
            *_rows(
                "ResNet-18, CIFAR-10",
                {
                    "TRADES": (82.77, 69.46, 52.14, 78.0, 37.66),
                    "Fast": (83.81, 61.1, 46.06, 72.86, 34.82),
                    "Free": (85.96, 62.73, 46.33, 71.74, 35.12),
                    "SAD": (83.86, 65.33, 52.61, 77.2, 38.88),
                    "AT+SAD": (82.73, 71.83, 53.65, 79.04, 39.11),
                },
            ),
            *_rows(
                "WRN-32-10, CIFAR-10",
                {
                    "TRADES": (85.55, 70.24, 52.0, 77.04, 37.57),
                    "Fast": (86.02, 66.64, 48.19, 73.16, 35.42),
                    "Free": (85.96, 65.5, 46.13, 72.61, 37.22),
                    "SAD": (86.96, 69.27, 53.47, 79.97, 38.73),
                    "AT+SAD": (84.61, 73.33, 54.81, 79.2, 39.68),
                },
            ),
        ),
    ),
    "2": Table(
        "white-box attacks, CIFAR-100",
        _WHITE,
        (
            *_rows(
                "ResNet-50, CIFAR-100",
                {
                    "TRADES": (56.96, 41.95, 29.15, 48.25, 19.84),
                    "Fast": (62.43, 30.05, 20.08, 41.19, 16.77),
                    "Free": (62.36, 30.14, 21.42, 41.22, 17.14),
                    "SAD": (56.27, 42.91, 33.15, 52.05, 19.88),
                    "AT+SAD": (56.37, 44.82, 35.21, 54.01, 20.34),
                },
            ),
            *_rows(
                "WRN-32-10, CIFAR-100",
                {
                    # Its natural accuracy under TRADES is illegible in our copy of the paper ("555").
                    "TRADES": (None, 40.05, 26.54, 42.39, 17.46),
                    "Fast": (59.94, 36.91, 22.67, 37.2, 17.23),
                    "Free": (65.28, 35.24, 20.64, 36.15, 17.1),
                    "SAD": (63.86, 39.65, 28.55, 37.76, 29.88),
                    "AT+SAD": (57.81, 41.7, 30.69, 42.66, 21.06),
                },
            ),
        ),
    ),
    "3": Table(
        "black-box attacks",
        _BLACK,
        (
            *_rows(
                "ResNet-18, CIFAR-10",
                {
                    "TRADES": (82.77, 76.0, 82.22, 82.07),
                    "SAD": (83.86, 75.75, 82.5, 83.14),
                    "AT+SAD": (82.73, 79.33, 82.65, 82.11),
                },
            ),
            *_rows(
                "ResNet-50, CIFAR-100",
                {
                    "TRADES": (56.96, 47.63, 55.94, 56.65),
                    "SAD": (56.27, 46.41, 55.72, 56.19),
                    "AT+SAD": (56.37, 47.89, 56.08, 56.23),
                },
            ),
        ),
    ),
    "4": Table(
        "the ratio η of SAD",
        ("StrongPGD",),
        _rows(
            "WRN-32-10, CIFAR-100",
            {
                "0.9": (60.36, 30.01),
                "0.8": (62.29, 29.43),
                "0.7": (63.86, 28.55),
                "0.6": (64.79, 27.2),
                "0.5": (65.08, 26.39),
            },
        ),
    ),
    "5": Table(
        "x + ηS without recalibrated statistics",
        ("StrongPGD",),
        _rows(
            "ResNet-18, CIFAR-10",
            {
                "0.2": (94.66, 0.74),
                "0.5": (93.36, 4.88),
                "0.7": (87.84, 6.23),
                "1.0": (81.12, 9.11),
                "1.2": (68.1, 11.16),
            },
        ),
    ),
    "s46": Table("recalibrated statistics without x + ηS", ("StrongPGD",), ()),
}
"""By number; ``s46`` is the second ablation of section 4.6."""
