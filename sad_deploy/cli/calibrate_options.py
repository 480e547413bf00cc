"""The options of ``sad-deploy calibrate``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sad_deploy.attack_config import AttackKind
from sad_deploy.recipe import BATCH_SIZE, SAMPLES, Options
from sad_runtime.choices import Normalization
from sad_runtime.manifest import ExifOrientation, Interpolation

_NETWORK = "Network"
_DATA = "Data"
_DEFENCE = "Defence"
_ATTACK = "Attack"
_CALIBRATION = "Calibration"


@dataclasses.dataclass(frozen=True)
class CalibrationOptions:
    """What every calibration needs; explained to Python callers at :class:`sad_deploy.recipe.Options`."""

    model: Annotated[
        str | None,
        typer.Option(
            help="digits, digits-adversarial, cifar-resnet18, cifar-resnet50, cifar-wrn32-10, a torchvision "
            "classifier, timm:NAME, hf:FOLDER (transformers), FILE.pt2 (torch.export) or "
            "package.module:factory, with arguments: 'timm:resnet26t(in_chans=1)'.",
            show_default="digits",
            metavar="NAME",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="State dict (.safetensors or PyTorch), or published weights: torchvision's by name, DEFAULT "
            "of timm.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    from_bundle: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="Calibrate a bundle's network, as it was before its calibration, for other images: in place "
            "of --model and --weights.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None
    weights_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Which of several state dicts in the file, for example model_ema.",
            show_default="the usual one",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    ignore_keys: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN,...",
            help="Names in the file that are left out, such as aux.*; a profiler's total_ops always is.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Class names in the order of the network's outputs, one per line or as JSON.",
            show_default="the folders, sorted",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|H,W",
            help="Side of the network's input in pixels, or its height and width.",
            show_default="the model's usual one",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Shorter side of an image before the network's input is cut out of its middle.",
            show_default="the model's usual one",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Instead of --resize: the input's side as a part of it, as timm says it.",
            show_default="the model's usual one",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help="Filter of the resize.", show_default="the model's usual one", rich_help_panel=_NETWORK
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            help="Per channel, in pixels of [0, 1], separated by commas; one value is for all, or for a grey "
            "network, four are for RGBA.",
            show_default="the model's usual one",
            metavar="X,X,X",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            help="Per channel, in pixels of [0, 1], separated by commas; one value is for all.",
            show_default="the model's usual one",
            metavar="X,X,X",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    exif_orientation: Annotated[
        ExifOrientation | None,
        typer.Option(
            help="Whether the camera's tag turns an image, here and in infer: ignore for a network that was "
            "trained without.",
            show_default="apply",
            rich_help_panel=_DATA,
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            help="Images: a folder, archives or tables (.tar, .zip, .parquet), a list FILE.csv, "
            "module:factory, digits, cifar10:PATH, cifar100:PATH. Of train/ and val/ in it, "
            "the first calibrates.",
            show_default="digits",
            metavar="DATA",
            rich_help_panel=_DATA,
        ),
    ] = None
    val_data: Annotated[
        str | None,
        typer.Option(
            help="Other images, to choose eta and measure accuracy on.",
            show_default="val/ or test/ of --data, or a fifth of it",
            metavar="DATA",
            rich_help_panel=_DATA,
        ),
    ] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at images that cannot be used; else they are skipped, counted and named.",
            rich_help_panel=_DATA,
        ),
    ] = False
    eta_grid: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,X",
            help="The eta that --eta auto tries.",
            show_default="from what moves no pixel to what breaks everything",
            rich_help_panel=_DEFENCE,
        ),
    ] = None
    normalization: Annotated[
        Normalization | None,
        typer.Option(
            help="How saliency is scaled per image before eta.", show_default="none", rich_help_panel=_DEFENCE
        ),
    ] = None
    clip: Annotated[
        bool | None,
        typer.Option(
            "--clip/--no-clip",
            help="Clip x + eta*S to the pixel range.",
            show_default="no-clip",
            rich_help_panel=_DEFENCE,
        ),
    ] = None
    attack: Annotated[
        AttackKind | None,
        typer.Option(
            help="Adversarial samples to calibrate on.", show_default="pgd", rich_help_panel=_ATTACK
        ),
    ] = None
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="L-infinity radius in pixels of [0, 1].",
            show_default="8/255",
            metavar="X",
            rich_help_panel=_ATTACK,
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of PGD.", show_default="10", rich_help_panel=_ATTACK)
    ] = None
    batches: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Batches to calibrate on.",
            show_default="one pass over the images, at most 32",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None
    batch_size: Annotated[
        int,
        typer.Option(min=2, help="Images a batch; fewer than 128 is noisy.", rich_help_panel=_CALIBRATION),
    ] = BATCH_SIZE
    seed: Annotated[int, typer.Option(min=0, help="Of images and attack.", rich_help_panel=_CALIBRATION)] = 0
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to calibrate.", rich_help_panel=_CALIBRATION)
    ] = "auto"

    def options(self) -> Options:
        """For the recipe."""
        return Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class CalibrateOptions(CalibrationOptions):
    """With what ``calibrate`` alone needs."""

    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Held-out images to store in the bundle for verification.", rich_help_panel=_DATA
        ),
    ] = SAMPLES
    eta: Annotated[
        str | None,
        typer.Option(
            metavar="auto|FLOAT",
            help="Hybridization ratio; auto takes the largest within --max-drop.",
            show_default="auto",
            rich_help_panel=_DEFENCE,
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Points of clean accuracy that --eta auto may cost; if no eta keeps it, nothing is written.",
            show_default="2.0",
            rich_help_panel=_DEFENCE,
        ),
    ] = None
    allow_drop: Annotated[
        bool,
        typer.Option(
            "--allow-drop",
            help="Take the least harmful eta where none keeps --max-drop.",
            rich_help_panel=_DEFENCE,
        ),
    ] = False
    until_converged: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="End when the statistics are so near to those of endless batches, by their standard error; "
            "after --batches, or one pass over the images, at the latest.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="The paper's settings: eta 0.8, PGD-20 at 8/255, EMA momentum 0.1.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = False
