"""Does the exporter build the same graphs as before, node for node? For changes that should not show.

    python benchmarks/same_graphs.py record before.json --cache forward_graphs
    python benchmarks/same_graphs.py record after.json --cache forward_graphs       # of the changed code
    python benchmarks/same_graphs.py compare before.json after.json

Of another checkout: run its own copy of this file, with its three folders in front:
PYTHONPATH=CHECKOUT:CHECKOUT/export:CHECKOUT/runtime.

The networks are those of benchmarks/coverage.py, with random weights, always the same, and BatchNorm folded.
Their forward graphs are exported once and kept in the cache: the second recording reads the very same files,
without torch. Every form of a graph becomes a digest of its operators, their attributes, the content of
constants, and which value goes where. Names, metadata, shapes of values inside and the order of nodes do not
count; of how many graphs names or order are others is said all the same.

With ``--networks`` and ``--forms`` both commands take a part: the forms in lower precision take most of the
time.

Ranges of int8 and scales of fp16 are measured, on smooth noise, one thread and without onnxruntime's
optimisations: compare recordings of one machine, with one onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from measuring import machine, write_results
from PIL import Image

import sad_export
from sad_runtime.errors import UserError

ROOT = Path(__file__).parent.parent
COVERAGE = Path(__file__).parent / "results" / "coverage.json"
"""Names the networks."""

SIDES = {"maxvit_t": 224}
"""Image size of networks that take no other."""

LARGE = ("regnet_y_128gf",)
"""More than 2 GiB of weights each."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = 4
SPAWN = multiprocessing.get_context("spawn")

Array = np.ndarray[Any, Any]
Graphs = Sequence[onnx.ModelProto]
Record = dict[str, Any]


# Everything that is called of the packages is called in the functions up to BUILDERS.


def export(name: str, side: int, path: Path) -> None:
    """Write the forward graph of a network; nothing else here needs torch."""
    import torch
    import torchvision

    sys.path.insert(0, str(ROOT))
    from tests.support.models import forward_onnx, randomised

    torch.set_num_threads(1)
    torch.manual_seed(0)
    auxiliary = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = randomised(torchvision.models.get_model(name, weights=None, **auxiliary))
    graph = forward_onnx(model, (3, side, side))
    # A protobuf message ends at 2 GiB.
    onnx.save(graph, str(path), save_as_external_data=name in LARGE, location=f"{path.stem}.data")


@functools.lru_cache(maxsize=1)
def two_pass(forward: Path, *, precision: str, target: str) -> ir.Model:
    """The two-pass graph with all that can be asked for: normalisation in front, n(S), bounds of x + ηS.

    The last one is kept: what is asked for next may be its form in int8.
    """
    from sad_export.loading import load_classifier
    from sad_export.two_pass import Defence, defended

    low, high = ([(bound - m) / s for m, s in zip(MEAN, STD, strict=True)] for bound in (0, 1))
    defence = Defence(0.05, "rms", clip=(low, high), mean=MEAN, std=STD)
    options = sad_export.GraphOptions(precision, target=target)
    return defended(load_classifier(forward), defence, options.lowering)


def in_float32(forward: Path, target: str) -> Graphs:
    """The two-pass graph as it is written."""
    return (ir.to_proto(two_pass(forward, precision="fp32", target=target)),)


def lowered(forward: Path, images: Array, precision: str) -> Graphs:
    """The graph in lower precision as it goes to TensorRT, and its float32 twin that rounds like it."""
    from sad_export.precision import Variant, gradient_scales, lower

    variant = Variant.of(precision)
    # That of int8 is the one in float32, which may have been made just before.
    graph = two_pass(forward, precision="fp32" if precision == "int8" else precision, target="portable")
    result = lower(graph, variant, gradient_scales=gradient_scales(graph, images), images=images)
    return ir.to_proto(result.graph), ir.to_proto(result.emulation)


def in_integers(forward: Path, images: Array) -> Graphs:
    """The graph in integers for onnxruntime's CPU."""
    from sad_export.precision import Variant, lower_to_integers

    variant = Variant.of("int8")
    graph = two_pass(forward, precision="int8", target="cpu")
    return (ir.to_proto(lower_to_integers(graph, variant, images)),)


FORWARD = "forward"
BUILDERS: dict[tuple[str, ...], Callable[[Path, Array], Graphs]] = {
    (FORWARD,): lambda forward, images: (onnx.load(str(forward)),),
    ("input gradient",): lambda forward, images: (sad_export.input_gradient(forward),),
    ("portable",): lambda forward, images: in_float32(forward, "portable"),
    ("int8", "int8 rounding"): lambda forward, images: lowered(forward, images, "int8"),
    ("fp16", "fp16 rounding"): lambda forward, images: lowered(forward, images, "fp16"),
    ("cpu",): lambda forward, images: in_float32(forward, "cpu"),
    ("int8 cpu",): in_integers,
}
"""What makes the forms of a network's graph, by their names."""


class PlainSession(onnxruntime.SessionOptions):  # type: ignore[misc]
    """In place of onnxruntime's own options: what is measured depends on no fusion and no number of cores."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1
        self.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.add_session_config_entry("session.disable_prepacking", "1")


def record_network(forward: Path, side: int, wanted: Sequence[str]) -> dict[str, Record]:
    """Build and describe the forms of one network's graph; in a process of its own."""
    onnxruntime.SessionOptions = PlainSession
    gc.disable()  # it takes a fifth of the time, for graphs that are few and large
    images = smooth_noise(side)
    records: dict[str, Record] = {}
    for forms, build in BUILDERS.items():
        if not set(forms) & set(wanted):
            continue
        try:
            records |= zip(forms, map(described, build(forward, images)), strict=True)
        except UserError as error:
            records |= {form: {"refused": str(error)} for form in forms}
        except Exception as error:
            # What breaks one form must not hide what became of the others.
            failed = f"{type(error).__name__}: {error}"[:400]
            records |= {form: {"failed": failed} for form in forms}
        gc.collect()
    return records


def smooth_noise(side: int) -> Array:
    """Images (N, 3, side, side) float32 in [0, 1], whatever the exporter itself takes for some."""
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8)
    resized = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in noise]
    return np.stack([np.asarray(each).transpose(2, 0, 1) for each in resized]).astype(np.float32) / 255


def described(model: onnx.ModelProto) -> Record:
    """A graph's digest, and enough beside it to say in what two graphs differ.

    A node's digest is that of its operator, its attributes and the digests of its inputs: of all it depends
    on. A value's is that of its producer and its place among the outputs. The graph's is that of its inputs,
    outputs and opsets and of all nodes and values, each as often as it is there, with the digests of those
    that read it.

    Returns:
        ``digest``; ``operators``, by name how many there are and the digest of what each is by itself, with
        its constants but not its place in the graph; ``constants``, how many, in how many bytes;
        ``interface``, the digest of inputs, outputs and opsets. ``order`` and ``names`` are of the nodes, and
        no part of ``digest``.

    Raises:
        ValueError: It has functions, or nodes that hold graphs; none of the exporter's has.
    """
    graph = model.graph
    if model.functions or graph.sparse_initializer:
        raise ValueError("functions and sparse weights are not compared")
    constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    values = constants | {value.name: _digest("input", value.name) for value in graph.input}
    readers: dict[str, list[str]] = defaultdict(list)
    by_itself: dict[str, list[str]] = defaultdict(list)
    order: list[str] = []
    for node in graph.node:
        inputs = _without_trailing(node.input)
        outputs = [bool(name) for name in _without_trailing(node.output)]
        what = (_domain(node.domain), node.op_type, *sorted(map(_attribute, node.attribute)), str(outputs))
        digest = _digest(*what, *(values[name] if name else "absent" for name in inputs))
        order.append(digest)
        operator = ".".join(filter(None, (_domain(node.domain), node.op_type)))
        by_itself[operator].append(_digest(*what, *(constants.get(name, str(bool(name))) for name in inputs)))
        values |= {name: _digest(digest, str(i)) for i, name in enumerate(node.output) if name}
        for i, name in enumerate(inputs):
            readers[name].append(f"{digest} {i}")
    for value in graph.output:
        readers[value.name].append(f"output {value.name}")
    interface = _digest(
        *(_digest(f"input {value.name}", _type(value)) for value in graph.input),
        *(_digest(f"output {value.name}", _type(value)) for value in graph.output),
        *sorted(f"opset {_domain(entry.domain)} {entry.version}" for entry in model.opset_import),
    )
    read = sorted(_digest(digest, *sorted(readers[name])) for name, digest in values.items())
    names = sorted(f"{node.name}: {','.join(node.input)} > {','.join(node.output)}" for node in graph.node)
    return {
        "digest": _digest(interface, *sorted(order), *read),
        "operators": {name: [len(each), _digest(*sorted(each))] for name, each in sorted(by_itself.items())},
        "constants": [len(constants), sum(map(_bytes, graph.initializer))],
        "interface": interface,
        "order": _digest(*order),
        "names": _digest(*names),
    }


def _digest(*parts: str | bytes) -> str:
    """Of parts, each with its length: none can pass for two."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()[:32]


def _tensor(tensor: onnx.TensorProto) -> str:
    """By type, shape and content, wherever in the message that is."""
    raw = tensor.HasField("raw_data")
    content = tensor.raw_data if raw else onnx.numpy_helper.to_array(tensor).tobytes()
    return _digest("tensor", str(tensor.data_type), str(list(tensor.dims)), content)


def _bytes(tensor: onnx.TensorProto) -> int:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(math.prod(tensor.dims) * dtype.itemsize)


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise ValueError(f"attribute {attribute.name!r} is a graph, and these are not compared")
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _digest(attribute.name, _tensor(attribute.t))
    plain = onnx.AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    return _digest(attribute.name, plain.SerializeToString(deterministic=True))


def _type(value: onnx.ValueInfoProto) -> str:
    """Element type and shape; one dynamic dimension is as another."""
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else "dynamic" for dim in tensor.shape.dim]
    return f"{tensor.elem_type} {shape}"


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _without_trailing(names: Sequence[str]) -> list[str]:
    """Without absent names at the end, which mean nothing."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def record(names: Sequence[str], forms: Sequence[str], side: int, cache: Path | None) -> dict[str, Any]:
    """Every network's forms, one network at a time."""
    say(f"sad_export is that of {Path(sad_export.__file__).parent}")
    # For the processes to come: most of their time would go into pages for copies of weights.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    networks: dict[str, dict[str, Record]] = {}
    with contextlib.ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        exporter = stack.enter_context(ProcessPoolExecutor(1, mp_context=SPAWN))
        for i, name in enumerate(names, start=1):
            started = time.monotonic()
            size = SIDES.get(name, side)
            forward = folder / f"{name}-{size}.onnx"
            if not forward.exists():
                draft = forward.with_suffix(".draft")
                exporter.submit(export, name, size, draft).result()
                draft.rename(forward)
            exported = time.monotonic()
            # Its memory goes back with the process.
            with ProcessPoolExecutor(1, mp_context=SPAWN) as process:
                try:
                    networks[name] = process.submit(record_network, forward, size, forms).result()
                except BrokenProcessPool:
                    networks[name] = {form: {"failed": "its process ended"} for form in forms}
            seconds = f"{exported - started:.0f} s to export, {time.monotonic() - exported:.0f} s to record"
            say(f"{i}/{len(names)} {name}: {seconds}")
            for form, found in networks[name].items():
                if "digest" not in found:
                    say(f"    {form}: {found}")
            if cache is None:
                for path in folder.glob(f"{forward.stem}.*"):
                    path.unlink()
    return {"machine": machine(), "side": side, "images": IMAGES, "networks": networks}


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str], forms: Sequence[str]
) -> bool:
    """Print in what two recordings differ.

    Args:
        before: A recording.
        after: Another.
        names: Of networks; all, if there are none.
        forms: Which.

    Returns:
        Whether they are the same.
    """
    if any(before[what] != after[what] for what in ("side", "images")):
        print("recorded at another image size, or with another number of images: nothing is comparable")
        return False
    for what in ("processor", "versions"):
        if before["machine"][what] != after["machine"][what]:
            print(f"note: other {what}; ranges of int8 and scales of fp16 may differ for that alone")
    compared: Counter[str] = Counter()
    others: Counter[str] = Counter()
    networks = names or sorted(before["networks"].keys() | after["networks"].keys())
    for name in networks:
        old, new = (recorded["networks"].get(name, {}) for recorded in (before, after))
        if said := difference(old.get(FORWARD), new.get(FORWARD)):
            others["different"] += 1
            print(f"{name}: {said}" + ("; record both with one --cache" if old and new else ""))
            continue
        for form in forms:
            if said := difference(old.get(form), new.get(form)):
                others["different"] += 1
                print(f"{name}, {form}: {said}")
                continue
            compared[form] += 1
            others["refused"] += "refused" in new[form]
            for what in ("order", "names"):
                others[what] += old[form].get(what) != new[form].get(what)
    same = not others["different"]
    if same:
        print(f"{len(networks)} networks × {len(compared)} forms: the same")
    else:
        print(f"{others['different']} differ, {compared.total()} are the same")
    if others["refused"]:
        print(f"{others['refused']} of them are refused, with the same words")
    if others["order"] or others["names"]:
        print(
            f"of what is the same, {others['order']} have their nodes in another order, "
            f"{others['names']} have other names"
        )
    return same


def difference(old: Record | None, new: Record | None) -> str:
    """In what two records of one form differ, in words; empty if they do not."""
    if old is None or new is None:
        return "not recorded " + " or ".join(n for n, r in (("before", old), ("after", new)) if r is None)
    if "digest" not in old or "digest" not in new:
        # What failed is equal to nothing.
        said = " → ".join("built" if "digest" in each else str(each) for each in (old, new))
        return "" if old == new and "refused" in old else said
    if old["digest"] == new["digest"]:
        return ""
    parts = []
    counts = {name: (_count(old, name), _count(new, name)) for name in old["operators"] | new["operators"]}
    if changed := [f"{name} {a} → {b}" for name, (a, b) in sorted(counts.items()) if a != b]:
        parts.append(", ".join(changed))
    rest = [name for name, (a, b) in sorted(counts.items()) if a == b]
    if altered := [name for name in rest if old["operators"][name] != new["operators"][name]]:
        parts.append(f"other attributes or constants of {', '.join(altered)}")
    if old["constants"] != new["constants"]:
        (many, size), (now_many, now_size) = old["constants"], new["constants"]
        parts.append(f"constants {many} → {now_many}, {size} → {now_size} bytes")
    if old["interface"] != new["interface"]:
        parts.append("other inputs, outputs or opsets")
    return "; ".join(parts) or "the same nodes, with values going elsewhere"


def _count(found: Record, operator: str) -> int:
    return int(found["operators"].get(operator, [0])[0])


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="build all graphs and write their digests")
    recording.add_argument("file", type=Path)
    recording.add_argument("--side", type=int, default=96, help="of the images; %(default)s by default")
    recording.add_argument("--cache", type=Path, help="where forward graphs are kept; nowhere by default")
    recording.add_argument("--large", action="store_true", help=f"also {', '.join(LARGE)}")
    comparing = commands.add_parser("compare", help="exit with 1 if two recordings differ")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    every = [form for forms in BUILDERS for form in forms]
    for command in (recording, comparing):
        command.add_argument("--networks", nargs="+", default=[], help="instead of all")
        command.add_argument("--forms", nargs="+", default=every, choices=every, help="instead of all")
    arguments = parser.parse_args()
    forms = list(dict.fromkeys([FORWARD, *arguments.forms]))
    if arguments.command == "compare":
        before, after = (
            json.loads(path.read_text(encoding="utf-8")) for path in (arguments.before, arguments.after)
        )
        sys.exit(0 if compare(before, after, arguments.networks, forms) else 1)
    covered = sorted({row["model"] for row in json.loads(COVERAGE.read_text(encoding="utf-8"))["results"]})
    names = arguments.networks or [name for name in covered if arguments.large or name not in LARGE]
    write_results(arguments.file, record(names, forms, arguments.side, arguments.cache))


if __name__ == "__main__":
    main()
