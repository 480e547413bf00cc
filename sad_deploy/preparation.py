"""From a recipe to Φ0 and its images: everything is looked up and checked before any long work."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sad_runtime.bundle import Bundle
from sad_runtime.bundle.read import sha256
from sad_runtime.class_names import read_class_names
from sad_runtime.errors import UserError
from sad_runtime.manifest import MANIFEST_NAME, InputSpace, ModelSource, Preprocessing

from .batchnorm import batchnorm_layers, recording_use
from .calibrated import check_rebuilds, load_base
from .checkpoints import Checkpoint, load_weights, read_checkpoint
from .classifier import standardized
from .data import DataSource, ImageSource, WithValidation, find_data
from .data.class_folders import validation_beside
from .data.digits import CLASSES as DIGITS_CLASSES
from .data.image_set import check_enough
from .models import build_model, digits
from .models.plain import fix_weights
from .models.pretrained import Pretrained, find_pretrained, weight_names
from .models.reference import Origin, is_foreign, origin_of
from .models.sources import check_model_name, classes_in, takes_num_classes, training_only_prefixes
from .models.stated import class_names_beside
from .network_input import network_input
from .probabilities import refuse_probabilities, trial_images
from .processes import local_rank
from .recipe import BATCHES, DEFAULT_MODEL, EMBEDDED, Recipe
from .saliency import differentiable, evaluating, logits_of
from .shorten import shorten

_SAME = (
    "the data's classes must be those the network was trained on; --classes FILE names them all "
    "where some have no image"
)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Ready to calibrate.

    Attributes:
        model: Φ0 in eval mode, on the device.
        source: How to build it again.
        classes: Class names in the order of the logits.
        preprocessing: Image to pixels.
        input_space: Pixels to network input.
        data: The images, found but not read.
        batches: To calibrate on.
        weights: Where the weights came from, for the manifest.
        notes: What was chosen or left out on the user's behalf; sentences.
        assumed: Whether nothing but options said what images the network sees.
        bundle: For the manifest, the bundle that Φ0 comes from; None where it comes from none.
    """

    model: nn.Module
    source: ModelSource
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_space: InputSpace
    data: DataSource
    batches: int
    weights: Mapping[str, str]
    notes: tuple[str, ...] = ()
    assumed: bool = True
    bundle: Mapping[str, Any] | None = None


def prepare(recipe: Recipe) -> Preparation:
    """Find the data, build the network, load its weights and try it on one batch of zeros.

    Raises:
        UserError: Anything in the recipe that cannot be used.
    """
    device = _device(recipe.device)
    if recipe.from_bundle is not None:
        return _from_bundle(recipe, Bundle.open(recipe.from_bundle), device)
    return _by_name(recipe, device)


def _by_name(recipe: Recipe, device: torch.device) -> Preparation:
    """Φ0 as ``--model`` and ``--weights`` say it."""
    check_model_name(recipe.model)
    given = read_class_names(Path(recipe.classes).expanduser()) if recipe.classes else None
    data = find_data(recipe.data, classes=given, val_data=recipe.val_data, strict=recipe.strict)
    check_enough(data.available, recipe.batch_size)
    pretrained, file = _find_weights(recipe)
    checkpoint = _checkpoint(recipe, file)
    state = None if checkpoint is None else checkpoint.state
    if given is None and pretrained is not None and isinstance(data, ImageSource | WithValidation):
        data = _in_published_order(data, pretrained)
    classes = given or _classes(recipe, data, pretrained, state, file)
    num_classes = len(classes) if classes else 0
    model = build_model(recipe.model, num_classes)
    folder = file.parent if file is not None else pretrained.folder if pretrained is not None else None
    seen = network_input(recipe, data, pretrained, model, folder)
    preprocessing, input_space = seen.preprocessing, seen.space
    if recipe.exif_orientation is not None:
        preprocessing = dataclasses.replace(preprocessing, exif_orientation=recipe.exif_orientation)
    width = _try_out(model, preprocessing)
    if classes is not None and width != num_classes:
        raise UserError(
            f"{recipe.model} gives {width} logits, but {recipe.classes or recipe.data} has {num_classes} "
            "classes",
            hint=_SAME,
        )
    classes = classes or tuple(map(str, range(width)))
    data = _numbered(data, classes, recipe.model)
    weights, state = _weights(recipe, pretrained, file, state)
    notes = data.left_out + _measured_on(data)
    if seen.source is not None and (pretrained is None or pretrained.images is None):
        notes += (f"what images the network sees is read from {seen.source}",)
    if checkpoint is not None:
        notes += checkpoint.notes(recipe.weights or "")
    if state is not None:
        source = recipe.weights or "the embedded default"
        ignored = training_only_prefixes(recipe.model)
        notes += load_weights(
            model, state, source=source, num_classes=width, ignore=ignored, ignore_keys=recipe.ignore_keys
        )
    fix_weights(model)
    refuse_probabilities(
        model, standardized(trial_images(preprocessing.shape), input_space), name=recipe.model
    )
    if is_foreign(recipe.model):
        check_rebuilds(model, ModelSource(recipe.model, width), preprocessing.shape)
    return Preparation(
        model=model.to(device),
        source=ModelSource(recipe.model, width),
        classes=classes,
        preprocessing=preprocessing,
        input_space=input_space,
        data=data,
        batches=_batches(recipe, data),
        weights=weights,
        notes=notes,
        assumed=seen.source is None,
    )


def _from_bundle(recipe: Recipe, bundle: Bundle, device: torch.device) -> Preparation:
    """Φ0 of a bundle for other images: calibration attacks the network that was trained, never Φ1.

    Raises:
        UserError: Φ0 cannot be had, or the images are of another shape or of other classes.
    """
    manifest = bundle.manifest
    model = load_base(bundle)
    if model is None:
        raise UserError(
            f"{bundle.root} was calibrated before the statistics of the network before it were kept",
            hint="calibrate once more with --model and --weights",
        )
    data = find_data(recipe.data, val_data=recipe.val_data, strict=recipe.strict)
    if data.preprocessing is not None and data.preprocessing.shape != manifest.preprocessing.shape:
        raise UserError(
            f"{recipe.data} has images of {data.preprocessing.shape}, the network of {bundle.root} takes "
            f"{manifest.preprocessing.shape}"
        )
    if isinstance(data, ImageSource | WithValidation) and data.classes is not None:
        data = data.in_order(manifest.classes, given_by=str(bundle.root))
    elif data.classes is not None and len(data.classes) != len(manifest.classes):
        raise UserError(
            f"{recipe.data} has {len(data.classes)} classes, {bundle.root} {len(manifest.classes)}",
            hint="recalibration changes no weight: the classes stay what they are",
        )
    check_enough(data.available, recipe.batch_size)
    return Preparation(
        model=model.to(device),
        source=manifest.model,
        classes=manifest.classes,
        preprocessing=manifest.preprocessing,
        input_space=manifest.input_space,
        data=data,
        batches=_batches(recipe, data),
        weights=manifest.calibration.get("weights", {}),
        notes=data.left_out + _measured_on(data) + (f"calibrated anew: Φ0 of {bundle.root}",),
        assumed=False,
        bundle=_origin(bundle),
    )


def _origin(bundle: Bundle) -> Mapping[str, Any]:
    """What identifies a bundle, and what it was calibrated on; with what that one came from, if from one."""
    before = bundle.manifest.calibration
    return {
        "bundle": str(bundle.root),
        "manifest_sha256": sha256(bundle.root / MANIFEST_NAME),
        "eta": bundle.manifest.defence.eta,
        "data": before.get("data", {}).get("source"),
        **{name: before[name] for name in ("recalibrated_from",) if name in before},
    }


def _checkpoint(recipe: Recipe, file: Path | None) -> Checkpoint | None:
    if file is not None:
        return read_checkpoint(file, key=recipe.weights_key)
    for option, given in (("--weights-key", recipe.weights_key), ("--ignore-keys", recipe.ignore_keys)):
        if given:
            raise UserError(f"{option} chooses within a file of weights", hint="give the file with --weights")
    return None


def _measured_on(data: DataSource) -> tuple[str, ...]:
    """Which images will decide, where the network may have been trained on them; a sentence."""
    if not isinstance(data, ImageSource):
        return ()
    beside = validation_beside(Path(data.name).expanduser())
    which = f", for example --val-data {beside}, which lies beside it" if beside else ""
    return (
        f"a fifth of {data.name} is held out to choose eta and measure accuracy; if the network was trained "
        f"on these images, the figures are too good: --val-data takes others{which}",
    )


def _numbered(data: DataSource, classes: tuple[str, ...], network: str) -> DataSource:
    """Labels that are only numbers are the network's, which may have more classes than occur.

    Raises:
        UserError: It has fewer.
    """
    if isinstance(data, ImageSource | WithValidation) and data.numbered:
        return data.in_order(classes, given_by=network)
    return data


def _in_published_order(
    data: ImageSource | WithValidation, pretrained: Pretrained
) -> ImageSource | WithValidation:
    """Folders named as published classes are labelled by name, whatever they sort like."""
    if data.classes is None or pretrained.classes is None or not set(data.classes) <= set(pretrained.classes):
        return data
    return data.in_order(pretrained.classes, given_by=pretrained.name)


def _weights(
    recipe: Recipe,
    pretrained: Pretrained | None,
    file: Path | None,
    state: dict[str, Tensor] | None,
) -> tuple[Mapping[str, str], dict[str, Tensor] | None]:
    """Where the weights came from, and the weights; downloading is the long part."""
    if file is not None:
        return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}, state
    if pretrained is not None:
        return {pretrained.publisher: pretrained.name}, pretrained.state_dict()
    if recipe.model in EMBEDDED:
        how = "adversarially " if recipe.model != DEFAULT_MODEL else ""
        state = digits.digits_state_dict(adversarial=recipe.model != DEFAULT_MODEL)
        return {"embedded": f"trained {how}on scikit-learn's digits"}, state
    return {"factory": recipe.model}, None


def _batches(recipe: Recipe, data: DataSource) -> int:
    """How many there are at most."""
    one_pass = data.available // recipe.batch_size
    return recipe.batches or (one_pass if recipe.tolerance is not None else min(BATCHES, one_pass))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no usable GPU here", hint="use --device cpu, or install a driver"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def _find_weights(recipe: Recipe) -> tuple[Pretrained | None, Path | None]:
    """The weights that come with a name, or the file, that ``--weights`` names."""
    name, model = recipe.weights, recipe.model
    if (pretrained := find_pretrained(model, name)) is not None:
        return pretrained, None
    published = weight_names(model)
    if name is None:
        if model in EMBEDDED or origin_of(model) in (Origin.FACTORY, Origin.EXPORTED):
            return None, None
        by = "timm" if origin_of(model) is Origin.TIMM else "torchvision"
        raise UserError(
            f"--model {model} needs --weights: calibrating an untrained network is of no use",
            hint="--weights FILE" + (f", or {by}'s {', '.join(published)}" if published else ""),
        )
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(
            f"--weights {name}: {what}"
            + (f", and {model} has only the published weights {', '.join(published)}" if published else ""),
            hint="give a .safetensors file or one written by torch.save(model.state_dict(), …)",
        )
    return None, path


def _classes(
    recipe: Recipe,
    data: DataSource,
    pretrained: Pretrained | None,
    state: Mapping[str, Tensor] | None,
    file: Path | None,
) -> tuple[str, ...] | None:
    """Class names in the order of the logits; None if only the network itself knows how many there are."""
    numbered = isinstance(data, ImageSource | WithValidation) and data.numbered
    if pretrained is not None and pretrained.classes is not None:
        if not numbered and data.classes is not None and len(data.classes) != len(pretrained.classes):
            raise UserError(
                f"{pretrained.name}: {len(pretrained.classes)} classes, {recipe.data}: {len(data.classes)}",
                hint=f"{_SAME}; or give a flat folder of images, for which its own predictions stand in",
            )
        return pretrained.classes
    if data.classes is not None and not numbered:
        return data.classes
    if recipe.model in EMBEDDED and state is None:
        return DIGITS_CLASSES
    if not takes_num_classes(recipe.model):
        return None
    if origin_of(recipe.model) is not Origin.FACTORY and state is not None:
        count = classes_in(recipe.model, state)
        if count is not None:
            beside = None if file is None else class_names_beside(file.parent)
            return beside if beside and len(beside) == count else tuple(map(str, range(count)))
    if data.classes is not None:
        return data.classes
    raise UserError(
        f"{recipe.data} has no labels, and {recipe.weights or recipe.model} does not tell the number "
        "of classes",
        hint="give --data one subfolder a class, or the names with --classes FILE",
    )


def _try_out(model: nn.Module, preprocessing: Preprocessing) -> int:
    """K, from the logits of a batch of noise, which must be the same twice, have a gradient and have gone
    through BatchNorm.

    Raises:
        UserError: The network does not run on such images, or cannot be defended.
    """
    name, layers = type(model).__name__, batchnorm_layers(model)
    noise = torch.rand(2, *preprocessing.shape, generator=torch.Generator().manual_seed(0))
    try:
        with evaluating(model), recording_use(layers) as reached, differentiable(noise) as x:
            logits = logits_of(model, x)
            again = logits_of(model, x)
            reaches = logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0]
    except UserError:
        raise
    except Exception as error:  # whatever a network of the user's own raises
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{name} does not accept images of {preprocessing.shape}: {reason}",
            hint="--image-size sets the size; --mean with one value a channel sets the channels of a factory",
        ) from error
    if not reached:
        raise UserError(
            f"none of the {len(layers)} BatchNorm layers of {name} is reached in eval mode "
            f"({shorten(list(layers))}), so SAD has no statistics to calibrate",
            hint="its forward must call them as modules",
        )
    if not torch.equal(logits, again):
        raise UserError(
            f"{name} gives other logits each time that it sees an image, in eval mode too: it draws random "
            "numbers, and a graph has no saliency of these",
            hint="leave the noise to the training",
        )
    if reaches is None or reaches is False:
        raise UserError(
            f"no gradient of {name}'s logits reaches the image, so there is no saliency",
            hint="look for torch.no_grad, detach and numpy in its forward",
        )
    return logits.shape[1]
