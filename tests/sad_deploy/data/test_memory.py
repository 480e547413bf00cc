"""Memory follows the images that are used, not the data set that they are taken from."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sad_deploy.data import find_data
from sad_runtime.manifest import Color, Preprocessing

SIDE = 32
PREPROCESSING = Preprocessing(color=Color.RGB, resize=(SIDE, SIDE), crop=(SIDE, SIDE))
USED = 16
FEW, MANY = 200, 4_000


def _noise(seed: int) -> bytes:
    """About 12 kB."""
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = [_noise(i) for i in range(8)]


def _folder(count: int) -> str:
    for i in range(count):
        place = Path(f"folder{count}", "ab"[i % 2], f"{i:06}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(IMAGES[i % 8])
    return f"folder{count}"


def _shard(count: int) -> str:
    with tarfile.open(f"s{count}.tar", "w") as archive:
        for i in range(count):
            for name, data in ((f"{i:06}.png", IMAGES[i % 8]), (f"{i:06}.cls", str(i % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, BytesIO(data))
    return f"s{count}.tar"


def _table(count: int) -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"image": [IMAGES[i % 8] for i in range(count)], "label": [i % 2 for i in range(count)]}
    # As one group: what reads it whole holds it whole.
    parquet.write_table(pyarrow.table(rows), f"t{count}.parquet", row_group_size=count, use_dictionary=False)
    return f"t{count}.parquet"


def _list(count: int) -> str:
    folder = _folder(count)
    lines = [f"{folder}/{'ab'[i % 2]}/{i:06}.png,{'ab'[i % 2]}" for i in range(count)]
    Path(f"l{count}.csv").write_text("\n".join(lines))
    return f"l{count}.csv"


def _loader(count: int) -> str:
    Path(f"loader{count}.py").write_text(
        "import io\nfrom PIL import Image\n"
        "DATA = open('one.png', 'rb').read()\n"
        f"def photos():\n    for i in range({count}): yield Image.open(io.BytesIO(DATA)), i % 2\n"
    )
    Path("one.png").write_bytes(IMAGES[0])
    return f"loader{count}:photos"


def _peak(name: str) -> int:
    """Bytes at most while images of a source are found and some of them read."""
    tracemalloc.start()
    try:
        source = find_data(name)
        data = source.load(PREPROCESSING, calibration=USED, held_out=USED, seed=0)
        assert (len(data.calibration), len(data.held_out), data.skipped) == (USED, USED, ())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "bytes_per_image"),
    [(_folder, 400), (_list, 400), (_shard, 150), (_table, 100), (_loader, 100)],
    ids=["folder", "list", "shard", "table", "loader"],
)
def test_twenty_times_the_images_take_no_more_than_their_labels_and_names(
    here: Path, make: Callable[[int], str], bytes_per_image: int
) -> None:
    few, many = make(FEW), make(MANY)
    _peak(few)  # imports
    first, second = _peak(few), _peak(many)
    assert second - first < bytes_per_image * (MANY - FEW)
    assert second < 4_000_000, "of 48 MB of files, or 12 MB of pixels"


def _pool_peak(name: str) -> int:
    """Bytes at most that pyarrow itself held, which tracemalloc does not see."""
    script = (
        "import pyarrow\n"
        "from sad_deploy.data import find_data\n"
        "from sad_runtime.manifest import Color, Preprocessing\n"
        f"source = find_data({name!r})\n"
        "preprocessing = Preprocessing(color=Color.RGB, resize=(32, 32), crop=(32, 32))\n"
        f"source.load(preprocessing, calibration={USED}, held_out={USED}, seed=0)\n"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.slow
def test_a_table_is_read_in_pieces_of_its_columns_however_large_a_group_of_rows_is(here: Path) -> None:
    first, second = _pool_peak(_table(MANY)), _pool_peak(_table(2 * MANY))
    assert second < first + 2_000_000, "of 48 MB more"
    assert second < 40_000_000, "of 97 MB in one group of rows"
