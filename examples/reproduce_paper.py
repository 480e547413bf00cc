"""The paper's tables and its Figure 3 again, with the worst case that it lacks.

    python examples/reproduce_paper.py --out paper                       # digits: everything in one command
    python examples/reproduce_paper.py --out paper --quick               # the same in minutes: worse networks
    python examples/reproduce_paper.py --data cifar10:DIR --device cuda --out paper10

Trains Nat, TRADES, Fast and Free with train.py, calibrates SAD on Nat and AT+SAD on TRADES, and has
`sad-deploy evaluate --paper-table` attack each file. What is there is not made again, so a run that was
cut off goes on when it is called again. In OUT: tables.md with our figures beside the paper's, tables.json,
figure3.png, and every network, bundle and evaluation.

Digits are 16×16 grey images that were 8×8, and 8/255 says nothing there: StrongPGD's ε is 0.1, for which the
networks are trained, and every length in L∞ follows in proportion. η is what --eta auto finds for the
package's networks, 0.3 on Nat and 1.2 on an adversarially trained one; on CIFAR it is the paper's 0.8.
Tables 4 and 5 take the paper's η in proportion to that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
from PIL import Image, ImageDraw

import sad_deploy.models.digits
from sad_deploy.data import find_data
from sad_deploy.evaluation.paper_figures import TABLES, Reported
from sad_deploy.fold import fold_batchnorm
from sad_deploy.models import build_model
from sad_deploy.to_onnx import to_onnx
from sad_export import two_pass
from sad_runtime.bundle import Bundle

METHODS = {"TRADES": "trades", "Fast": "fast", "Free": "free"}
"""By the paper's name, what train.py calls it; Nat and the other network are natural."""

NETWORKS = {"cifar-resnet18": "ResNet-18", "cifar-resnet50": "ResNet-50", "cifar-wrn32-10": "WRN-32-10"}
TABLES_OF = {
    "digits": ("1", "3", "4", "5", "s46"),
    "cifar10": ("1", "3", "5", "s46"),
    "cifar100": ("2", "3", "4"),
}
PAPERS_ETA = 0.8
QUICK_EPOCHS = {"trades": 5, "fast": 8, "free": 2, "natural": 5}
SHOWN = 10
"""Columns of Figure 3."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is reproduced, and how.

    Attributes:
        data: ``digits``, ``cifar10:DIR`` or ``cifar100:DIR``.
        model: Its name, as ``calibrate --model`` takes it.
        other: Of the network from which WRN's images come.
        epsilon: Of StrongPGD.
        eta: Of SAD on Nat, and of AT+SAD.
        images: Attacked in a table; of Table 3 half as many.
        budget: CPU time for the worst case of one file; None: all attacks.
        epochs: Of each training; None: the recipe's.
        device: That trains.
        processes: That attack.
        out: Where everything goes.
    """

    data: str
    model: str
    other: str
    epsilon: str
    eta: tuple[float, float]
    images: int
    budget: str | None
    epochs: dict[str, int] | None
    device: str
    processes: int
    out: Path

    @property
    def kind(self) -> str:
        """``digits``, ``cifar10`` or ``cifar100``."""
        return self.data.partition(":")[0]


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table: ours, and what the paper has there.

    Attributes:
        name: The method, or η.
        found: A row of ``paper-table-N.json``.
        reported: The paper's; None where it has none.
    """

    name: str
    found: dict[str, Any]
    reported: Reported | None


def main() -> None:
    """Everything, table by table."""
    plan, tables = parsed()
    plan.out.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        trained(plan, name)
    sad, at_sad = (calibrated(plan, name, eta) for name, eta in zip(("Nat", "TRADES"), plan.eta, strict=True))
    lines = {table: list(_LINES[table](plan, table, sad, at_sad)) for table in tables}
    write(plan, lines)
    figure3(plan, sad, at_sad)


def trained(plan: Plan, name: str) -> Path:
    """Weights of Nat, TRADES, Fast, Free, or of the other network; trained if they are not there."""
    path = plan.out / f"{name}.safetensors"
    if path.exists():
        return path
    if name == "Nat" and plan.model == "digits":
        shutil.copy(Path(sad_deploy.models.digits.__file__).with_name("digits.safetensors"), path)
        return path
    method = METHODS.get(name, "natural")
    words = ["--data", plan.data, "--method", method, "--device", plan.device, "--out", path, "--resume"]
    words += ["--model", plan.other if name == "other" else plan.model]
    words += ["--seed", "1" if name == "other" else "0"]
    if plan.epochs is not None:
        words += ["--epochs", plan.epochs[method]]
    run([Path(__file__).with_name("train.py"), *words])
    return path


def calibrated(plan: Plan, name: str, eta: float) -> Path:
    """An exported bundle of a network with SAD."""
    bundle = plan.out / f"{name}-sad-{eta:g}"
    if not bundle.exists():
        draft = plan.out / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        words = ("--model", plan.model, "--weights", trained(plan, name), "--data", plan.data, "--eta", eta)
        command("calibrate", *words, "--out", draft)
        command("export", draft)
        draft.rename(bundle)
    return bundle


def forward(plan: Plan, name: str) -> onnx.ModelProto:
    """Graph of a network before calibration, in its own input space."""
    classes = find_data(plan.data).classes
    assert classes is not None
    model = build_model(plan.other if name == "other" else plan.model, len(classes))
    model.load_state_dict(safetensors.torch.load_file(trained(plan, name)))
    return to_onnx(fold_batchnorm(model), (1, 16, 16) if plan.kind == "digits" else (3, 32, 32))


def uncalibrated(plan: Plan, name: str, eta: float, like: Path) -> Path:
    """Two-pass graph of a network before calibration; its first pass is the network on pixels.

    Args:
        plan: Everything.
        name: Of the network.
        eta: η.
        like: A bundle with the same mean and standard deviation.
    """
    path = plan.out / f"{name}-uncalibrated-{eta:g}.onnx"
    if not path.exists():
        space = Bundle.open(like).manifest.input_space
        onnx.save(two_pass(forward(plan, name), eta=eta, mean=space.mean, std=space.std), str(path))
    return path


def attacked(plan: Plan, table: str, what: Path, *more: object) -> dict[str, Any]:
    """The rows of a table for one file or bundle."""
    kept = Path(f"{what}.evaluation") / f"paper-table-{table}.json"
    if not kept.exists():
        images = plan.images // 2 if table == "3" else plan.images
        words: list[object] = ["--data", plan.data, "--epsilon", plan.epsilon, "--images", images]
        words += ["--processes", plan.processes, "--paper-table", table, *more]
        words += [] if plan.budget is None else ["--budget", plan.budget]
        command("evaluate", what, *words)
    rows: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["rows"]
    return rows


def methods(plan: Plan, table: str, sad: Path, at_sad: Path) -> Iterator[Line]:
    """Tables 1 and 2: a row a method."""
    yield from both(plan, table, sad, ("Nat", "SAD"))
    for name in ("Fast", "Free"):
        path, space = plan.out / f"{name}.onnx", Bundle.open(sad).manifest.input_space
        if not path.exists():
            onnx.save(forward(plan, name), str(path))
        values = [",".join(map(str, each)) for each in (space.mean, space.std)]
        rows = attacked(plan, table, path, "--plain", "--mean", values[0], "--std", values[1])
        yield line(plan, table, name, rows["undefended"])
    yield from both(plan, table, at_sad, ("TRADES", "AT+SAD"))


def black_boxes(plan: Plan, table: str, sad: Path, at_sad: Path) -> Iterator[Line]:
    """Table 3: the same without Fast and Free, and another network's images."""
    other = ("--transfer", uncalibrated(plan, "other", 0.0, sad))
    yield from both(plan, table, sad, ("Nat", "SAD"), *other)
    yield from both(plan, table, at_sad, ("TRADES", "AT+SAD"), *other)


def both(plan: Plan, table: str, bundle: Path, names: tuple[str, str], *more: object) -> Iterator[Line]:
    """The undefended network and the defended file."""
    rows = attacked(plan, table, bundle, *more)
    for name, key in zip(names, ("undefended", "defended"), strict=True):
        yield line(plan, table, name, rows[key])


def ratios(plan: Plan, table: str, sad: Path, at_sad: Path) -> Iterator[Line]:
    """Table 4: SAD on Nat with the paper's η, in proportion."""
    for each in TABLES[table].rows:
        eta = round(float(each.method) * plan.eta[0] / PAPERS_ETA, 6)
        rows = attacked(plan, table, calibrated(plan, "Nat", eta))
        yield Line(f"η {eta:g}", rows["defended"], each)


def without_statistics(plan: Plan, table: str, sad: Path, at_sad: Path) -> Iterator[Line]:
    """Table 5: x + ηS given to Nat as it is."""
    for each in TABLES[table].rows:
        eta = round(float(each.method) * plan.eta[0] / PAPERS_ETA, 6)
        rows = attacked(plan, table, uncalibrated(plan, "Nat", eta, sad))
        yield Line(f"η {eta:g}", rows["defended"], each)


def statistics_alone(plan: Plan, table: str, sad: Path, at_sad: Path) -> Iterator[Line]:
    """Section 4.6: Nat with statistics of adversarial images, and nothing added to its input."""
    yield from both(plan, table, calibrated(plan, "Nat", 0.0), ("Nat", "Nat, recalibrated"))


_LINES: dict[str, Callable[[Plan, str, Path, Path], Iterator[Line]]] = {
    "1": methods,
    "2": methods,
    "3": black_boxes,
    "4": ratios,
    "5": without_statistics,
    "s46": statistics_alone,
}


def line(plan: Plan, table: str, name: str, found: dict[str, Any]) -> Line:
    """A row beside the paper's of the same method, of the same network where it has that."""
    rows = [row for row in TABLES[table].rows if row.method == name]
    same = [row for row in rows if row.network.startswith(NETWORKS.get(plan.model, "-"))]
    return Line(name, found, next(iter(same or rows), None))


def write(plan: Plan, lines: dict[str, list[Line]]) -> None:
    """tables.md, which is printed too, and tables.json."""
    text = "\n".join(text for table in lines for text in markdown(plan, table, lines[table]))
    print(text)
    (plan.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    conditions = {key: str(value) for key, value in dataclasses.asdict(plan).items() if key != "out"}
    rows = {
        table: [
            {**each.found, "name": each.name, "paper": each.reported and each.reported.values}
            for each in found
        ]
        for table, found in lines.items()
    }
    record = json.dumps({"conditions": conditions, "tables": rows}, indent=1, ensure_ascii=False)
    (plan.out / "tables.json").write_text(record + "\n", encoding="utf-8")


def markdown(plan: Plan, table: str, lines: Sequence[Line]) -> Iterator[str]:
    """One table; what the paper has is in brackets."""
    columns, count = TABLES[table].columns, lines[0].found["natural"]["images"]
    papers = [each.reported.network for each in lines if each.reported]
    said = f"In square brackets the paper: {papers[0]}, ε 8/255." if papers else "The paper gives no figures."
    number = "Section 4.6" if table == "s46" else f"Table {table}"
    title = TABLES[table].title.partition(",")[0]
    yield f"\n**{number}**, {title}: {plan.model}, {count} test images of {plan.kind}, L∞, StrongPGD and"
    yield f"worst case at ε {plan.epsilon}. {said}\n"
    yield "| | natural | " + " | ".join(columns) + " | worst case |"
    yield "|---" * (len(columns) + 3) + "|"
    for each in lines:
        values = each.reported.values if each.reported else (None,) * (1 + len(columns))
        found = [f"{each.found['natural']['percent']:.1f}"]
        found += [_cell(each.found["attacks"][name]) for name in columns]
        cells = [a if b is None else f"{a} [{b}]" for a, b in zip(found, values, strict=True)]
        yield f"| {each.name} | {' | '.join(cells)} | **{each.found['worst_case']['percent']:.1f}** |"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    text = f"{found['accuracy']['percent']:.1f}"
    if found["median_distance"] is not None:
        text += f" ({found['distance_in']} {found['median_distance']:.2g})"
    return text


def figure3(plan: Plan, sad: Path, at_sad: Path) -> None:
    """figure3.png: images, S of Nat, Nat+SAD, AT and AT+SAD, and x + ηS of AT+SAD (Pillow has no η)."""
    source = find_data(plan.data)
    assert source.preprocessing is not None
    data = source.load(source.preprocessing, calibration=1, held_out=10**9, seed=0)
    assert data.test is not None
    x = data.test.images[:SHOWN] / np.float32(255)
    manifest = Bundle.open(at_sad).manifest
    std = np.array(manifest.input_space.std, np.float32).reshape(-1, 1, 1)
    maps = [
        saliency(uncalibrated(plan, "Nat", 0.0, sad), x),
        saliency(sad / "model.onnx", x),
        saliency(uncalibrated(plan, "TRADES", 0.0, sad), x),
        saliency(at_sad / "model.onnx", x),
    ]
    rows = {"x": x}
    rows |= {
        name: np.stack([0.5 + 0.5 * s / max(float(np.percentile(np.abs(s), 99)), 1e-12) for s in each])
        for name, each in zip(("S, Nat", "S, Nat+SAD", "S, AT", "S, AT+SAD"), maps, strict=True)
    }
    rows["x + eta S, AT+SAD"] = x + manifest.defence.eta * std * maps[3]
    drawn(rows).save(plan.out / "figure3.png")


def saliency(graph: Path, x: np.ndarray) -> np.ndarray:
    """S (N, C, H, W) of a two-pass graph."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["saliency"], {session.get_inputs()[0].name: x})[0]
    return found


def drawn(rows: dict[str, np.ndarray], side: int = 64, margin: int = 110, gap: int = 4) -> Image.Image:
    """A picture with a row of images each, named at the left."""
    width = margin + (side + gap) * max(map(len, rows.values()))
    picture = Image.new("RGB", (width, (side + gap) * len(rows)), "white")
    for top, (name, images) in enumerate(rows.items()):
        y = top * (side + gap)
        ImageDraw.Draw(picture).text((4, y + side // 2 - 6), name, fill="black")
        for column, image in enumerate(images):
            levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
            rgb = np.broadcast_to(levels, (*levels.shape[:2], 3))
            tile = Image.fromarray(np.ascontiguousarray(rgb)).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (margin + column * (side + gap), y))
    return picture


def command(*words: object) -> None:
    """A sad-deploy command; what it prints goes to stderr."""
    run(["-m", "sad_deploy", *words])


def run(words: Sequence[object]) -> None:
    """Python with these words."""
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=sys.stderr)


def parsed() -> tuple[Plan, tuple[str, ...]]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="digits, cifar10:DIR or cifar100:DIR")
    parser.add_argument("--model", help="as for calibrate; by default digits or cifar-resnet18")
    parser.add_argument(
        "--table", action="append", choices=tuple(TABLES), help="by default all of the data's"
    )
    parser.add_argument("--images", type=int, default=100, help="attacked; half as many in Table 3")
    parser.add_argument("--epsilon", help="of StrongPGD; by default 0.1 or 8/255")
    parser.add_argument("--quick", action="store_true", help="few epochs, 20 images, weaker worst case")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="that trains")
    parser.add_argument("--processes", type=int, default=2, help="that attack")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    given = parser.parse_args()
    kind = given.data.partition(":")[0]
    if kind not in TABLES_OF:
        parser.error(f"--data {given.data}: digits, cifar10:DIR or cifar100:DIR")
    digits = kind == "digits"
    plan = Plan(
        data=given.data,
        model=given.model or ("digits" if digits else "cifar-resnet18"),
        other="digits" if digits else "cifar-wrn32-10",
        epsilon=given.epsilon or ("0.1" if digits else "8/255"),
        eta=(0.3, 1.2) if digits else (PAPERS_ETA, PAPERS_ETA),
        images=20 if given.quick else given.images,
        budget="10s" if given.quick else None,
        epochs=QUICK_EPOCHS if given.quick else None,
        device=given.device,
        processes=given.processes,
        out=given.out,
    )
    return plan, tuple(given.table or TABLES_OF[kind])


if __name__ == "__main__":
    main()
