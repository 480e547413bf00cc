"""``evaluate``: the worst case of a file, beside the undefended network, and whether it can be believed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sad_runtime.devices import available_cores
from sad_runtime.errors import UserError
from sad_runtime.labelled import Paired, Share, out_of_step, share

from . import checks
from .campaign import Campaign, Progress
from .outcome import Outcome, Row
from .plan import Costs, Effort, affordable, expected_cost, left_out, sample
from .subject import Subject, without_twins
from .threat import Threat
from .work import Bench, Images, Workers

DEFENDED, UNDEFENDED = "defended", "undefended"


@dataclasses.dataclass(frozen=True)
class Setting:
    """How an evaluation is done.

    Attributes:
        threats: One result each.
        seed: Of all random numbers.
        budget: Seconds of CPU time; None: the whole set of attacks.
        processes: Each on one thread; None: as many as there are cores.
        progress: Told what is done.
        notice: Told what is taken otherwise, and which budget was chosen.
    """

    threats: Sequence[Threat]
    seed: int = 0
    budget: float | None = None
    processes: int | None = None
    progress: Progress = lambda name, share: None
    notice: Callable[[str], None] = lambda message: None


@dataclasses.dataclass(frozen=True)
class FileRow:
    """Another file or engine of the bundle under the same threat.

    Attributes:
        file: Its name.
        direct: Accuracy left by attacks with its own gradient; None if none were run.
        replayed: Accuracy on the images that were made for the judged file.
        worst: Of both, image by image.
        agreement: Share of clean images with the judged file's label.
    """

    file: str
    direct: Share | None
    replayed: Share
    worst: Share
    agreement: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Under one threat.

    Attributes:
        defended: The judged file.
        undefended: The network without the defence; None for a classifier that has none.
        paired: Both, image by image.
        files: Other files of the bundle.
        checks: Whether all this can be believed.
    """

    defended: Outcome
    undefended: Outcome | None
    paired: Paired | None
    files: tuple[FileRow, ...]
    checks: tuple[checks.Check, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All of it.

    Attributes:
        results: One a threat.
        images: What was attacked.
        effort: How much was spent.
        left_out: What was not tried, in words.
        seconds: CPU time, of all processes.
        seed: Of all random numbers.
    """

    results: tuple[Result, ...]
    images: Images
    effort: Effort
    left_out: tuple[str, ...]
    seconds: float
    seed: int


def evaluate(subjects: Mapping[str, Subject], images: Images, setting: Setting, folder: Path) -> Evaluation:
    """Attack the judged file and the undefended network.

    Args:
        subjects: ``defended``, ``undefended``, one of them at least, and further files by name.
        images: What is attacked.
        setting: How.
        folder: Where results of pieces lie; those of an interrupted run are taken up again.

    Raises:
        UserError: Labels out of range or out of step, or no image is classified as its label.
    """
    with prepared(subjects, images, setting, folder) as campaign:
        results = [_under(campaign, threat, setting) for threat in setting.threats]
    results, effort = _with_monotony(results), campaign.effort
    main = _main(campaign.subjects)
    notes = [note for subject in main.values() for note in subject.notes]
    if "transfer" not in main[next(iter(main))].sources:
        notes.append("transfer from another network: none given (--transfer)")
    seconds = sum(row.seconds for result in results for row in _rows(result))
    return Evaluation(
        tuple(results),
        images,
        effort,
        (*left_out(effort), *notes),
        seconds,
        setting.seed,
    )


@contextlib.contextmanager
def prepared(
    subjects: Mapping[str, Subject], images: Images, setting: Setting, folder: Path
) -> Iterator[Campaign]:
    """What attacks the subjects: costs measured, effort chosen, processes ready; labels are checked.

    Args:
        subjects: As for :func:`evaluate`.
        images: Likewise.
        setting: Likewise.
        folder: Likewise.

    Raises:
        UserError: As :func:`evaluate`.
    """
    some = sample(images.pixels, images.labels)
    subjects = {key: without_twins(subject, *some) for key, subject in subjects.items()}
    main = _main(subjects)
    measured = {key: Costs.measured(each, *some) for key, each in subjects.items()}
    place = folder / _fingerprint(subjects, images, setting)
    place.mkdir(parents=True, exist_ok=True)
    effort = _effort(place, main, measured, images, setting)
    bench = Bench(subjects, images, setting.seed)
    with contextlib.closing(Workers(bench, place, setting.processes or available_cores())) as workers:
        total = expected_cost(main, measured, effort, setting.threats, len(images))
        campaign = Campaign(workers, subjects, images, effort, measured, setting.progress, total)
        _check_labels(campaign, images)
        yield campaign


def _main(subjects: Mapping[str, Subject]) -> dict[str, Subject]:
    """Those that the result is about."""
    return {key: subjects[key] for key in (DEFENDED, UNDEFENDED) if key in subjects}


def _effort(
    place: Path,
    subjects: Mapping[str, Subject],
    costs: Mapping[str, Costs],
    images: Images,
    setting: Setting,
) -> Effort:
    """What fits into the budget, as it was found when the run began: times differ from call to call."""
    path = place / f"effort-{setting.budget}-{len(setting.threats)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Effort(**json.loads(path.read_text()))
    effort = affordable(subjects, costs, setting.threats, len(images), setting.budget)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(dataclasses.asdict(effort)))
    draft.rename(path)
    return effort


def _under(campaign: Campaign, threat: Threat, setting: Setting) -> Result:
    key = DEFENDED if DEFENDED in campaign.subjects else UNDEFENDED
    outcome = campaign.attack(key, threat)
    undefended, paired = None, None
    if key == DEFENDED and UNDEFENDED in campaign.subjects:
        undefended = campaign.attack(UNDEFENDED, threat, blind_on_all=False)
        paired = Paired.of(outcome.robust, undefended.robust)
    files = tuple(_file_rows(campaign, outcome))
    found = [
        *checks.masking(outcome),
        *checks.strength(campaign, key, outcome),
        *(
            checks.planted(campaign, key, outcome, seed=setting.seed)
            if _can_plant(campaign, key, setting)
            else ()
        ),
        checks.zero_gradients(outcome),
        checks.rounding(outcome),
    ]
    return Result(outcome, undefended, paired, files, tuple(found))


def _can_plant(campaign: Campaign, key: str, setting: Setting) -> bool:
    """Whether the check with a planted weakness takes no more than a tenth of the budget."""
    if setting.budget is None:
        return True
    slowest = max(campaign.costs[key].sources.values())
    return slowest * checks.PLANTED_GRADIENTS * len(setting.threats) <= setting.budget / 10


def _file_rows(campaign: Campaign, outcome: Outcome) -> Iterator[FileRow]:
    """Every further file: attacked itself along the ways that broke most, and with the images made before."""
    labels = campaign.images.labels
    ours = (
        campaign.answers(DEFENDED, campaign.images.pixels).argmax(1)
        if DEFENDED in campaign.subjects
        else None
    )
    for key, subject in campaign.subjects.items():
        if key in (DEFENDED, UNDEFENDED) or ours is None:
            continue
        clean = campaign.answers(key, campaign.images.pixels).argmax(1)
        right = clean == labels
        replayed = right & (campaign.answers(key, outcome.adversarial).argmax(1) == labels)
        direct = right.copy()
        for row in outcome.rows:
            attacks = [
                each
                for each in row.stage.attacks
                if each.source in subject.sources and not row.stage.survivors
            ]
            for attack in attacks:
                direct &= ~campaign.broken_by(key, attack, outcome.threat, direct)
        yield FileRow(
            subject.name,
            share(direct) if subject.sources else None,
            share(replayed),
            share(direct & replayed),
            float((clean == ours).mean()),
        )


def _with_monotony(results: list[Result]) -> list[Result]:
    more = checks.monotone([each.defended for each in results])
    if not more:
        return results
    return [*results[:-1], dataclasses.replace(results[-1], checks=(*results[-1].checks, *more))]


def _check_labels(campaign: Campaign, images: Images) -> None:
    """Labels must be classes, and mostly those that the network answers.

    Raises:
        UserError: They are not.
    """
    key = next(iter(campaign.subjects))
    answers = campaign.answers(key, images.pixels)
    classes = answers.shape[1]
    if len(images) == 0:
        raise UserError("there are no images to evaluate on")
    outside = (images.labels < 0) | (images.labels >= classes)
    if outside.any():
        raise UserError(
            f"label {images.labels[outside][0]} is none of the {classes} classes of "
            f"{campaign.subjects[key].name}",
            hint="labels follow the order of the network's outputs",
        )
    right = share(answers.argmax(1) == images.labels)
    if problem := out_of_step(right, classes):
        raise UserError(problem[0], hint=problem[1])


def _fingerprint(subjects: Mapping[str, Subject], images: Images, setting: Setting) -> str:
    """Names the folder of results: other files, images or seeds never mix."""
    digest = hashlib.sha256()
    for key, subject in subjects.items():
        for path in (subject.victim.path, *(each.label for each in subject.sources.values())):
            digest.update(f"{key} {subject.victim.file} {path.name}".encode())
            digest.update(path.read_bytes() if path.is_file() else b"")
    digest.update(images.pixels.tobytes() + images.labels.tobytes())
    digest.update(json.dumps([setting.seed]).encode())
    return digest.hexdigest()[:16]


def _rows(result: Result) -> Iterator[Row]:
    yield from result.defended.rows
    if result.undefended is not None:
        yield from result.undefended.rows
