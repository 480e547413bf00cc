"""From a bundle or a graph's file to what is attacked, and from what was found to files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.choices import BackendChoice, Way
from sad_runtime.errors import UserError
from sad_runtime.files import Destination
from sad_runtime.labelled import FOLDERS
from sad_runtime.manifest import Manifest

from .data import Labelled, labelled
from .evaluate import DEFENDED, UNDEFENDED, Evaluation
from .oracles import Array, Counts, VictimFile, open_session
from .record import NAME, record
from .subject import Subject, Workshop, judged_file

GRAPHS = "graphs"
"""Folder of the attack graphs, inside an evaluation's."""

_SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What is attacked, and how.

    Attributes:
        data: See :func:`~.data.labelled`; None: the bundle's own test images, of the embedded digits.
        labels: Where the images' labels come from; see :func:`~.data.labelled`.
        strict: Whether an image that cannot be used is fatal.
        images: Most of them.
        seed: Decides which.
        transfer: Another classifier whose adversarial images are tried.
        backend: What judges a bundle's file; ``auto`` is onnxruntime on the CPU.
        precision: Which of its graphs or engines.
        matrix: Whether its other graphs are attacked too.
    """

    data: str | None = None
    labels: str = FOLDERS
    strict: bool = False
    images: int = 100
    seed: int = 0
    transfer: Path | None = None
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

    @property
    def judge(self) -> VictimFile:
        """What says whether an image fools the file."""
        return self.subjects[DEFENDED if DEFENDED in self.subjects else UNDEFENDED].victim


def assemble(bundle: Bundle, folder: Path, choices: Choices, *, notice: Callable[[str], None]) -> Assembled:
    """Read the images, and write the attack graphs.

    Args:
        bundle: A calibrated one, or a bare graph as one: with a defence, or a plain classifier.
        folder: Where the graphs go.
        choices: What the user said.
        notice: Told what is taken otherwise than a file has it.

    Raises:
        UserError: The file or the images cannot be used.
    """
    data = _labelled(bundle, choices, notice)
    graphs = folder / GRAPHS
    graphs.mkdir(parents=True, exist_ok=True)
    shop = Workshop(graphs, notice)
    manifest = bundle.manifest
    if bundle.plain is not None:
        name, source, judge = judged_file(bundle, _backend(choices), choices.precision)
        file, logits = shop.on_pixels(source, bundle.plain)
        subject = shop.undefended(name, file, {}, judge if judge.backend else None, logits=logits)
        subjects = {UNDEFENDED: _with_transfer(subject, shop, choices.transfer)}
        defence = {}
    else:
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
    return Assembled(
        manifest.model.name,
        subjects,
        data,
        None if bundle.is_bare else bundle,
        {name: manifest.files[name]},
        defence,
        file,
        manifest.classes,
    )


def _labelled(bundle: Bundle, choices: Choices, notice: Callable[[str], None]) -> Labelled:
    """The images that a bundle is evaluated on; what of the source is not among them is said."""
    manifest = bundle.manifest
    source = choices.data or _own_data(manifest)
    data = labelled(
        source,
        manifest.preprocessing,
        manifest.classes,
        count=choices.images,
        seed=choices.seed,
        labels=choices.labels,
        strict=choices.strict,
    )
    for note in data.notes:
        notice(note)
    if data.skipped:
        images = "image" if len(data.skipped) == 1 else "images"
        notice(f"{len(data.skipped)} unusable {images} skipped: {'; '.join(data.skipped[:_SHOWN])}")
    return data


def _backend(choices: Choices) -> BackendChoice:
    return BackendChoice.CPU if choices.backend is BackendChoice.AUTO else choices.backend


def unattacked(
    bundle: Bundle, folder: Path, choices: Choices, *, notice: Callable[[str], None]
) -> tuple[Labelled, dict[str, Array]]:
    """What a bundle's networks answer to the images as they are; see :class:`sad_runtime.labelled.Scores`.

    Returns:
        The images, and logits (N, K) by network.

    Raises:
        UserError: As :func:`assemble`.
    """
    data = _labelled(bundle, choices, notice)
    graphs = folder / GRAPHS
    graphs.mkdir(parents=True, exist_ok=True)
    shop = Workshop(graphs, notice)
    if bundle.plain is not None:
        name, source, judge = judged_file(bundle, _backend(choices), choices.precision)
        file, logits = shop.on_pixels(source, bundle.plain)
        contenders = {name: judge if judge.backend else VictimFile(shop.logits("plain", file, logits=logits))}
    else:
        _, file, victim = judged_file(bundle, _backend(choices), choices.precision)
        contenders = {"defended": victim}
        contenders["first pass, recalibrated"] = VictimFile(shop.logits("first", file, logits="plain_logits"))
        base = None if bundle.is_bare else _base(bundle, graphs, notice)
        if base is not None:
            contenders["undefended"] = VictimFile(shop.logits("base", base, logits="plain_logits"))
    pixels = data.images.pixels
    return data, {words: each.open(Counts()).in_batches(pixels) for words, each in contenders.items()}


def _with_transfer(subject: Subject, shop: Workshop, transfer: Path | None) -> Subject:
    """With the gradients of another classifier, if one is given."""
    if transfer is None:
        return subject
    other = shop.source("transfer", transfer, Way.PLAIN, f"{transfer.name}, transferred", direct=False)
    return dataclasses.replace(subject, sources={**subject.sources, "transfer": other})


def _own_data(manifest: Manifest) -> str:
    """The embedded digits, for a bundle that was made of them.

    Raises:
        UserError: It was made of other data.
    """
    if manifest.calibration.get("data", {}).get("source") == "digits":
        return "digits"
    raise UserError(
        f"which labelled images should {manifest.model.name} be evaluated on?",
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

    victim = assembled.judge.open(Counts())

    def network(images: Array) -> tuple[Array, Array | None]:
        logits = victim.in_batches(images)
        answers = np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)
        if DEFENDED not in assembled.subjects:
            return answers, None
        session = open_session(assembled.judged)
        return answers, session.run(["saliency"], {session.get_inputs()[0].name: images})[0]

    write_report(
        path, evaluation, assembled.data, model=assembled.model, classes=assembled.classes, network=network
    )


def keep(assembled: Assembled, evaluation: Evaluation, folder: Path, *, save_images: bool) -> dict[str, Any]:
    """Write ``evaluation.json``, beside the bundle and into it, and the adversarial images if asked for.

    Returns:
        What was written.

    Raises:
        UserError: It cannot be written.
    """
    recorded = record(
        evaluation,
        assembled.data,
        model=assembled.model,
        files=assembled.files,
        defence=assembled.defence,
        backend=assembled.judge.backend or BackendChoice.CPU.value,
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
