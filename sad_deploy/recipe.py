"""What ``sad-deploy calibrate`` was asked for: defaults filled in, contradictions refused; free of torch."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path

from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import ExifOrientation, Interpolation

from .attack_config import Attack, AttackKind
from .recipe_values import read_channels, read_eta, read_grid, read_number, read_size

DEFAULT_MODEL = "digits"
EMBEDDED = (DEFAULT_MODEL, "digits-adversarial")
"""Networks whose weights come with the package: trained on the digits naturally, and adversarially."""
DEFAULT_DATA = "digits"
MAX_DROP = 2.0
"""Points of clean accuracy that a swept η may cost."""

BATCHES = 32
"""At most, by default: cumulative statistics are within 0.05 of converged ones after 24 batches of 128.

One pass is enough where the images are fewer: later passes over the digits (9 batches) move the statistics by
less than another seed does (benchmarks/calibration_passes.py).
"""

BATCH_SIZE = 128
SAMPLES = 64
DEVICES = ("auto", "cpu", "cuda")

PAPER_ETA = 0.8
PAPER_MOMENTUM = 0.1
_PAPER_ATTACK = Attack(kind=AttackKind.PGD, epsilon=8 / 255, steps=20)
_BROUGHT = (
    *("model", "weights", "weights_key", "classes"),
    *("image_size", "resize", "crop_pct", "interpolation", "mean", "std", "exif_orientation"),
)
"""Options about what a bundle says itself."""


class Update(enum.StrEnum):
    """On what BatchNorm statistics are computed.

    ``salient``: adversarial images with saliency added, Algorithm 1. ``adversarial``: without it (section 4.6
    of the paper). ``none``: they stay those of Φ0 (Table 5).
    """

    SALIENT = "salient"
    ADVERSARIAL = "adversarial"
    NONE = "none"

    @property
    def words(self) -> str:
        """For people."""
        return {
            Update.SALIENT: "statistics of adversarial images with saliency, for each eta",
            Update.ADVERSARIAL: "statistics of adversarial images without saliency",
            Update.NONE: "statistics as they were trained",
        }[self]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line as given; None is "not given"."""

    model: str | None = None
    weights: str | None = None
    from_bundle: str | None = None
    data: str | None = None
    val_data: str | None = None
    strict: bool = False
    classes: str | None = None
    weights_key: str | None = None
    ignore_keys: str | None = None
    eta: str | None = None
    max_drop: float | None = None
    allow_drop: bool = False
    eta_grid: str | None = None
    normalization: Normalization | None = None
    clip: bool | None = None
    attack: AttackKind | None = None
    epsilon: str | None = None
    steps: int | None = None
    batches: int | None = None
    until_converged: float | None = None
    batch_size: int = BATCH_SIZE
    image_size: int | str | None = None
    resize: int | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    mean: str | None = None
    std: str | None = None
    seed: int = 0
    device: str = "auto"
    samples: int = SAMPLES
    paper: bool = False
    exif_orientation: ExifOrientation | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One calibration, fully decided.

    Attributes:
        model: Model name.
        weights: File or published name; None for the embedded default and factories that bring their own.
        from_bundle: Folder of the bundle whose Φ0 is calibrated for other images, or None.
        data: Data source.
        val_data: Other images to choose η on and to measure accuracy on, or None.
        strict: Whether an image that cannot be used is fatal.
        classes: File of class names in the order of the network's outputs; None for the data's own order.
        weights_key: Which of several state dicts in the file of weights; None for the usual one.
        ignore_keys: Patterns of names in the weights that are left out.
        eta: η, or None to sweep.
        max_drop: Limit of the sweep, in points.
        allow_drop: Whether the least harmful η is taken where none keeps the limit.
        eta_grid: The η to sweep; None for a grid that follows the network.
        normalization: Of S.
        clip: Whether x + ηS is clipped to the pixel range.
        attack: The adversarial samples.
        momentum: None for cumulative statistics, else the weight of a batch.
        batches: To calibrate on; None for one pass over the images, at most :data:`BATCHES` unless
            ``tolerance`` ends it.
        tolerance: Relative standard error of the statistics that is small enough to end; None: all batches.
        batch_size: Images a batch.
        image_size: Height and width of the network's input, or None for the model's usual one.
        resize: Shorter side of an image before the crop, if given.
        crop_pct: Side of the network's input / shorter side of the image before the crop, if given.
        interpolation: Filter of the resize, if given.
        input_space: (mean, std) if given.
        seed: Of the choice and order of images and of the attack.
        device: ``auto``, ``cpu`` or ``cuda``.
        samples: Held-out images to store in the bundle.
        paper: Whether these are the paper's settings by ``--paper``.
        exif_orientation: Whether the camera's orientation tag turns an image; None as the model has it.
    """

    model: str
    weights: str | None
    from_bundle: str | None
    data: str
    val_data: str | None
    strict: bool
    classes: str | None
    weights_key: str | None
    ignore_keys: tuple[str, ...]
    eta: float | None
    max_drop: float
    allow_drop: bool
    eta_grid: tuple[float, ...] | None
    normalization: Normalization
    clip: bool
    attack: Attack
    momentum: float | None
    batches: int | None
    tolerance: float | None
    batch_size: int
    image_size: tuple[int, int] | None
    resize: int | None
    crop_pct: float | None
    interpolation: Interpolation | None
    input_space: tuple[tuple[float, ...], tuple[float, ...]] | None
    seed: int
    device: str
    samples: int
    paper: bool
    exif_orientation: ExifOrientation | None = None


def resolve(options: Options) -> Recipe:
    """Fill in the defaults.

    Raises:
        UserError: Values that cannot be read, or options that contradict each other; all of them are named.
    """
    options = _inherited(options)
    problems: list[str] = []
    eta = read_eta(options.eta, problems)
    epsilon = read_number("--epsilon", options.epsilon, problems)
    grid = read_grid(options.eta_grid, problems)
    size = read_size(options.image_size, problems)
    mean, std = (
        read_channels(name, text, problems)
        for name, text in (("--mean", options.mean), ("--std", options.std))
    )
    problems += _contradictions(options, eta, epsilon, mean, std)
    if problems:
        raise UserError("; ".join(problems), hint="sad-deploy calibrate --help explains the options")
    model = _model(options.model or DEFAULT_MODEL)
    if options.data is None and model not in EMBEDDED:
        raise UserError(
            f"--model {model} needs images: --data is missing",
            hint="--data FOLDER with one subfolder a class, or cifar10:PATH, cifar100:PATH",
        )
    return Recipe(
        model=model,
        weights=options.weights,
        from_bundle=options.from_bundle,
        data=options.data or DEFAULT_DATA,
        val_data=options.val_data,
        strict=options.strict,
        classes=options.classes,
        weights_key=options.weights_key,
        ignore_keys=tuple(filter(None, (options.ignore_keys or "").split(","))),
        eta=PAPER_ETA if options.paper else eta,
        max_drop=MAX_DROP if options.max_drop is None else options.max_drop,
        allow_drop=options.allow_drop,
        eta_grid=grid,
        normalization=options.normalization or Normalization.NONE,
        clip=bool(options.clip),
        attack=_PAPER_ATTACK if options.paper else _attack(options, epsilon),
        momentum=PAPER_MOMENTUM if options.paper else None,
        batches=BATCHES if options.paper and options.batches is None else options.batches,
        tolerance=None if options.until_converged is None else options.until_converged / 100,
        batch_size=options.batch_size,
        image_size=size,
        resize=options.resize,
        crop_pct=options.crop_pct,
        interpolation=options.interpolation,
        input_space=(mean, std) if mean and std else None,
        seed=options.seed,
        device=options.device,
        samples=options.samples,
        paper=options.paper,
        exif_orientation=options.exif_orientation,
    )


def _model(name: str) -> str:
    """A folder with a ``config.json`` is transformers'."""
    return f"hf:{name}" if (Path(name).expanduser() / "config.json").is_file() else name


def _attack(options: Options, epsilon: float | None) -> Attack:
    default = Attack()
    return Attack(
        kind=options.attack or default.kind,
        epsilon=default.epsilon if epsilon is None else epsilon,
        steps=options.steps or default.steps,
    )


def _inherited(options: Options) -> Options:
    """With a bundle to start from: its network, and its defence and attack where no others are given.

    Raises:
        UserError: It cannot be read, or something is given that it brings.
    """
    if options.from_bundle is None:
        return options
    given = [name for name in _BROUGHT if getattr(options, name) is not None]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"--from brings the network and what it sees, and so do {names}", hint="leave one of them out"
        )
    from sad_runtime.bundle import Bundle

    manifest = Bundle.open(options.from_bundle).manifest
    options = dataclasses.replace(options, model=manifest.model.name)
    if options.paper:
        return options
    options = dataclasses.replace(
        options,
        normalization=options.normalization or manifest.defence.normalization,
        clip=manifest.defence.clip if options.clip is None else options.clip,
    )
    attack = manifest.calibration.get("attack")
    if attack is None or (options.attack, options.epsilon, options.steps) != (None, None, None):
        return options
    epsilon = attack.get("epsilon")
    return dataclasses.replace(
        options,
        attack=AttackKind(attack["kind"]),
        epsilon=None if epsilon is None else repr(epsilon),
        steps=attack.get("steps"),
    )


def _contradictions(
    options: Options,
    eta: float | None,
    epsilon: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Iterator[str]:
    attack = options.attack or AttackKind.PGD
    if options.steps is not None and not attack.iterative:
        yield f"--steps does not apply to --attack {attack.value}"
    if options.epsilon is not None and not attack.bounded:
        yield f"--epsilon does not apply to --attack {attack.value}"
    if eta is not None or options.paper:
        for name, is_given in (
            ("--max-drop", options.max_drop is not None),
            ("--allow-drop", options.allow_drop),
            ("--eta-grid", options.eta_grid is not None),
        ):
            if is_given:
                yield f"{name} is for the sweep of --eta auto, which a fixed eta does without"
    if options.until_converged is not None and not 0 < options.until_converged < 100:
        yield f"--until-converged is a percentage above 0 and below 100, got {options.until_converged:g}"
    if options.device not in DEVICES:
        yield f"--device must be one of {', '.join(DEVICES)}, got {options.device!r}"
    if options.resize is not None and options.crop_pct is not None:
        yield "--resize and --crop-pct say the same thing"
    if options.crop_pct is not None and not 0 < options.crop_pct <= 1:
        yield f"--crop-pct is within (0, 1], got {options.crop_pct:g}"
    if (options.mean is None) != (options.std is None):
        yield "--mean and --std go together"
    if mean is not None and std is not None and len(mean) != len(std):
        yield f"--mean has {len(mean)} values, --std {len(std)}"
    if options.paper:
        given = (
            ("--eta", options.eta is not None and eta != PAPER_ETA, "0.8"),
            ("--normalization", options.normalization not in (None, Normalization.NONE), "none"),
            ("--clip", bool(options.clip), "no clip"),
            ("--attack", attack is not AttackKind.PGD, "pgd"),
            ("--epsilon", epsilon is not None and abs(epsilon - _PAPER_ATTACK.epsilon) > 1e-9, "8/255"),
            ("--steps", options.steps not in (None, _PAPER_ATTACK.steps), "20"),
            (
                "--until-converged",
                options.until_converged is not None,
                "a moving average",
            ),
        )
        for name, differs, paper in given:
            if differs:
                yield f"{name} contradicts --paper, which uses {paper}"
