"""The measuring: decoding, then every combination of backend, precision and batch size by itself."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sad_runtime.bundle import Bundle
from sad_runtime.devices import available_cores
from sad_runtime.manifest import MANIFEST_NAME
from sad_runtime.sources import Item
from sad_runtime.version import __version__

from .decoding import Decoder
from .figures import Benchmark, Images, Run
from .machine import describe_machine
from .options import Options
from .photographs import make_photographs
from .plan import plan
from .subject import Load, SinglePass, loaded

Progress = Callable[[int, int, str], None]
"""Is told, before each measurement, how many are done, how many there are, and what comes now."""

_DECODED = 32
"""Decoded images in memory, of which batches of any size are made."""


def benchmark(
    bundle: Bundle | str | os.PathLike[str],
    items: Iterable[Item | str | os.PathLike[str]] | None = None,
    options: Options | None = None,
    *,
    single_pass: SinglePass | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure a bundle on this machine, which should have nothing else to do meanwhile.

    Times are the wall's and the CPU's, of all threads of this process. In memory are 32 decoded images, one
    batch of them, and end to end what the pipeline holds.

    Args:
        bundle: An opened bundle or its folder.
        items: Images or paths of image files, of which the first ``options.images`` are used, again and again
            if need be; by default made up.
        options: See :class:`Options`.
        single_pass: Cuts the undefended classifier out of a graph, to be measured beside the two passes;
            :func:`sad_export.first_pass.first_pass` does it.
        progress: Told of each measurement.

    Raises:
        BundleError: The bundle cannot be used, or lacks what was asked for.
        BackendError: A backend that was asked for does not run here, or failed on a batch.
        UserError: No image can be used, or a batch size is too large for an engine.
    """
    options = options or Options()
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    combinations, passed_over = plan(opened, options)
    begin = _counting(2 + 2 * sum(len(entry.batch_sizes) for entry in combinations), progress)
    with tempfile.TemporaryDirectory(prefix="sad-deploy-") as name:
        load, images = _prepare(opened, items, options, Path(name), begin)
        runs: list[Run] = []
        for combination in combinations:
            with loaded(opened, combination, single_pass) as subject:
                runs += [subject.measure(size, load, begin) for size in combination.batch_sizes]
    return Benchmark(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        bundle=_describe_bundle(opened),
        options=dataclasses.asdict(options),
        images=images,
        decode=load.decode,
        runs=tuple(runs),
        not_measured=tuple(passed_over),
        created_by=f"sad-deploy {__version__}",
    )


def _prepare(
    bundle: Bundle,
    items: Iterable[Item | str | os.PathLike[str]] | None,
    options: Options,
    folder: Path,
    begin: Callable[[str], None],
) -> tuple[Load, Images]:
    """Find the images that can be used, and how fast they are decoded."""
    workers = options.workers or available_cores()
    found = make_photographs(folder, options.images) if items is None else items
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        decoder = Decoder(bundle.manifest.preprocessing, pool, workers)
        begin("reading the images")
        usable = decoder.usable(itertools.islice(found, options.images))
        begin("decode only")
        decode = decoder.measure(usable, options.seconds)
    load = Load(
        items=usable.items,
        few=decoder.pixels(usable.items[:_DECODED]),
        decode=decode,
        workers=workers,
        seconds=options.seconds,
        folder=folder,
    )
    return load, usable.figures(made_up=items is None)


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    return {
        "path": os.fspath(bundle.root),
        "manifest_sha256": hashlib.sha256((bundle.root / MANIFEST_NAME).read_bytes()).hexdigest(),
        "model": bundle.manifest.model.name,
        "input_shape": list(bundle.manifest.preprocessing.shape),
    }


def _counting(total: int, progress: Progress | None) -> Callable[[str], None]:
    """To be called with what begins; tells how far it is."""
    begun = itertools.count()

    def begin(what: str) -> None:
        if progress is not None:
            progress(next(begun), total, what)

    return begin
