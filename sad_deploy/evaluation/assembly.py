"""From a bundle or a graph's file to what is attacked, and from what was found to files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sad_export import two_pass
from sad_export.graph.values import static
from sad_export.loading import Reading, load_classifier
from sad_runtime.bare_graph import BareOptions, bundle_of_graph
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.choices import BackendChoice, Way
from sad_runtime.errors import UserError
from sad_runtime.files import Destination
from sad_runtime.manifest import Color, Preprocessing

from .data import Labelled, labelled
from .evaluate import DEFENDED, UNDEFENDED, Evaluation
from .oracles import Array, Counts, VictimFile, open_session
from .record import NAME, record
from .subject import Subject, Workshop, is_defended, judged_file

GRAPHS = "graphs"
"""Folder of the attack graphs, inside an evaluation's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What is attacked, and how.

    Attributes:
        data: See :func:`~.data.labelled`; None: the bundle's own test images, of the embedded digits.
        images: Most of them.
        seed: Decides which.
        transfer: Another classifier whose adversarial images are tried.
        plain: Whether the file is a classifier without a defence.
        logits: Name of its logits, where it has several outputs.
        mean: Per channel, of its input; None: it takes pixels in [0, 1].
        std: Likewise.
        backend: What judges a bundle's file; ``auto`` is onnxruntime on the CPU.
        precision: Which of its graphs or engines.
        matrix: Whether its other graphs are attacked too.
    """

    data: str | None = None
    images: int = 100
    seed: int = 0
    transfer: Path | None = None
    plain: bool = False
    logits: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    backend: BackendChoice = BackendChoice.AUTO
    precision: str = "fp32"
    matrix: bool = False


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Everything that an evaluation works with.

    Attributes:
        model: What to call it.
        subjects: By name.
        data: The images.
        bundle: Where the result goes too; None for a bare graph.
        files: SHA-256 of what is judged.
        defence: η and what goes with it; empty without a defence.
        judged: The graph that is judged, or that its engine was built from.
        classes: Names in the order of the logits.
    """

    model: str
    subjects: Mapping[str, Subject]
    data: Labelled
    bundle: Bundle | None
    files: Mapping[str, str]
    defence: Mapping[str, Any]
    judged: Path
    classes: Sequence[str]


def assemble(what: Path, folder: Path, choices: Choices, *, notice: Callable[[str], None]) -> Assembled:
    """Read the images, and write the attack graphs.

    Args:
        what: A bundle's folder, a two-pass graph, or with ``plain`` any classifier.
        folder: Where the graphs go.
        choices: What the user said.
        notice: Told what is taken otherwise than a file has it.

    Raises:
        UserError: The file or the images cannot be used.
    """
    graphs = folder / GRAPHS
    if choices.plain:
        return _classifier(what, graphs, choices, notice)
    bundle, data = _opened(what, choices)
    manifest = bundle.manifest
    graphs.mkdir(parents=True, exist_ok=True)
    shop = Workshop(graphs, notice)
    name, file, victim = judged_file(bundle, _backend(choices), choices.precision)
    base = None if bundle.is_bare else _base(bundle, graphs, notice)
    defended = shop.defended(name, file, victim, base, f"own-{file.stem}")
    defended = _with_transfer(defended, shop, choices.transfer)
    own = {"plain": defended.sources["plain"]}
    subjects = {DEFENDED: defended}
    if base is not None:
        subjects[UNDEFENDED] = shop.undefended("undefended network", base, own, logits="plain_logits")
    else:
        subjects[UNDEFENDED] = shop.undefended("first pass alone", file, {}, logits="plain_logits")
    subjects[UNDEFENDED] = _with_transfer(subjects[UNDEFENDED], shop, choices.transfer)
    if choices.matrix:
        subjects |= _others(bundle, shop, name)
    defence = dataclasses.asdict(manifest.defence)
    hashes = {name: manifest.files[name]}
    return Assembled(
        manifest.model.name,
        subjects,
        data,
        None if bundle.is_bare else bundle,
        hashes,
        defence,
        file,
        manifest.classes,
    )


def _opened(what: Path, choices: Choices) -> tuple[Bundle, Labelled]:
    """A bundle, or a bare two-pass graph as one, and the images that it is evaluated on."""
    if what.suffix == ".onnx" and what.is_file() and not is_defended(what):
        raise UserError(
            f"{what} is a classifier without a defence", hint=f"sad-deploy evaluate {what} --plain --data …"
        )
    bundle = bundle_of_graph(what, BareOptions()) if what.is_file() else Bundle.open(what)
    manifest = bundle.manifest
    source = choices.data or _own_data(manifest.calibration, what)
    data = labelled(source, manifest.preprocessing, manifest.classes, count=choices.images, seed=choices.seed)
    return bundle, data


def _backend(choices: Choices) -> BackendChoice:
    return BackendChoice.CPU if choices.backend is BackendChoice.AUTO else choices.backend


def unattacked(
    what: Path, folder: Path, choices: Choices, *, notice: Callable[[str], None]
) -> tuple[str, Labelled, Sequence[str], dict[str, Array]]:
    """What a bundle's networks answer to the images as they are; see :mod:`.clean`.

    Returns:
        The model's name, the images, names of the classes, and logits (N, K) by network.

    Raises:
        UserError: As :func:`assemble`.
    """
    bundle, data = _opened(what, choices)
    graphs = folder / GRAPHS
    graphs.mkdir(parents=True, exist_ok=True)
    shop = Workshop(graphs, notice)
    _, file, victim = judged_file(bundle, _backend(choices), choices.precision)
    contenders = {"defended": victim}
    contenders["first pass, recalibrated"] = VictimFile(shop.logits("first", file, logits="plain_logits"))
    base = None if bundle.is_bare else _base(bundle, graphs, notice)
    if base is not None:
        contenders["undefended"] = VictimFile(shop.logits("base", base, logits="plain_logits"))
    answers = {}
    for words, each in contenders.items():
        answers[words] = each.open(Counts()).in_batches(data.images.pixels)
    return bundle.manifest.model.name, data, bundle.manifest.classes, answers


def _classifier(what: Path, graphs: Path, choices: Choices, notice: Callable[[str], None]) -> Assembled:
    """A classifier without a defence, as other people have it."""
    from sad_runtime.bundle.read import sha256

    if not what.is_file():
        raise UserError(f"there is no graph {what}", hint="--plain takes a classifier's ONNX file")
    if choices.data is None:
        raise UserError("which labelled images?", hint="--data FOLDER, with a folder a class")
    graph = load_classifier(what, Reading(choices.logits))
    _, channels, height, width = (graph.image_shape[0], *(static(dim) for dim in graph.image_shape[1:]))
    preprocessing = Preprocessing(
        Color.RGB if channels == 3 else Color.GRAY, (height, width), (height, width)
    )
    classes = [str(i) for i in range(graph.num_classes)]
    folder = Path(choices.data)
    if folder.is_dir():
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    data = labelled(choices.data, preprocessing, classes, count=choices.images, seed=choices.seed)
    graphs.mkdir(parents=True, exist_ok=True)
    file, reading = what, {"logits": choices.logits}
    if choices.mean is not None or choices.std is not None:
        file = graphs / f"{sha256(what)[:12]}.pixels.onnx"
        wrapped = two_pass(
            what, eta=0.0, mean=choices.mean, std=choices.std, logits=choices.logits, notice=notice
        )
        onnx.save(wrapped, str(file))
        reading = {"logits": "plain_logits"}
    shop = Workshop(graphs, notice)
    subject = _with_transfer(shop.undefended(what.name, file, {}, **reading), shop, choices.transfer)
    return Assembled(
        what.name, {UNDEFENDED: subject}, data, None, {what.name: sha256(what)}, {}, what, classes
    )


def _with_transfer(subject: Subject, shop: Workshop, transfer: Path | None) -> Subject:
    """With the gradients of another classifier, if one is given."""
    if transfer is None:
        return subject
    other = shop.source("transfer", transfer, Way.PLAIN, f"{transfer.name}, transferred", direct=False)
    return dataclasses.replace(subject, sources={**subject.sources, "transfer": other})


def _own_data(calibration: Mapping[str, Any], what: Path) -> str:
    """The embedded digits, for a bundle that was made of them.

    Raises:
        UserError: It was made of other data.
    """
    if calibration.get("data", {}).get("source") == "digits":
        return "digits"
    raise UserError(
        f"which labelled images should {what} be evaluated on?",
        hint="--data FOLDER with a folder a class, of images that the network was not trained on",
    )


def _base(bundle: Bundle, graphs: Path, notice: Callable[[str], None]) -> Path | None:
    """The network before calibration; needs PyTorch, as it is rebuilt."""
    try:
        from .base import base_graph

        return base_graph(bundle, graphs)
    except ImportError as error:
        notice(f"the network before calibration is not attacked, as PyTorch is not installed ({error.name})")
    except UserError as error:
        notice(f"the network before calibration is not attacked: {error.message}")
    return None


def _others(bundle: Bundle, shop: Workshop, judged: str) -> dict[str, Subject]:
    """Every other graph of the bundle, attacked with its own gradients on onnxruntime's CPU."""
    found = {}
    for graph in bundle.manifest.graphs:
        if graph.file != judged and "bf16" not in graph.precision:
            file = bundle.file(graph.file)
            victim = VictimFile(file)
            subject = shop.defended(graph.file, file, victim, None, f"own-{file.stem}")
            found[graph.file] = dataclasses.replace(subject, notes=())
    return found


def draw(assembled: Assembled, evaluation: Evaluation, path: Path) -> None:
    """Write the page of an evaluation.

    Raises:
        UserError: It cannot be written.
    """
    from .report import write_report

    def saliency(images: Array) -> Array | None:
        if DEFENDED not in assembled.subjects:
            return None
        session = open_session(assembled.judged)
        image = session.get_inputs()[0].name
        found: Array = session.run(["saliency"], {image: images})[0]
        return found

    write_report(
        path, evaluation, assembled.data, model=assembled.model, classes=assembled.classes, saliency=saliency
    )


def keep(assembled: Assembled, evaluation: Evaluation, folder: Path, *, save_images: bool) -> dict[str, Any]:
    """Write ``evaluation.json``, beside the bundle and into it, and the adversarial images if asked for.

    Returns:
        What was written.

    Raises:
        UserError: It cannot be written.
    """
    recorded = record(
        evaluation, assembled.data, model=assembled.model, files=assembled.files, defence=assembled.defence
    )
    text = json.dumps(recorded, indent=1, ensure_ascii=False, default=str) + "\n"
    place = Destination.of(folder / NAME)
    with place.folder() as draft:
        (draft / NAME).write_text(text, encoding="utf-8")
        place.put(draft / NAME)
    if save_images:
        _save_images(evaluation, folder / "images")
    if assembled.bundle is not None:
        current = Bundle.open(assembled.bundle.root)
        with write_bundle(current.root) as bundle_draft:
            bundle_draft.keep(current, *(name for name in current.manifest.files if name != NAME))
            bundle_draft.path(NAME).write_text(text, encoding="utf-8")
            bundle_draft.manifest = dataclasses.replace(current.manifest, files={})
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _save_images(evaluation: Evaluation, folder: Path) -> None:
    """As 8-bit PNG within ε: some no longer fool the file, which evaluation.json says."""
    from PIL import Image

    for result in evaluation.results:
        outcome = result.defended
        place = folder / f"{outcome.threat.norm}-{outcome.threat.epsilon:.6g}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = outcome.threat.rounded(outcome.adversarial, evaluation.images.pixels)
        for i in np.flatnonzero(outcome.clean & ~outcome.robust):
            image = np.rint(pixels[i] * 255).astype(np.uint8)
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                place / f"{i:05}.png"
            )
