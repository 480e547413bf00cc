"""``module:factory``: images from anybody's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from sad_deploy.data import find_data, find_labelled
from sad_runtime.errors import UserError

from .conftest import KINDS, everything, labels_by_level

MODULE = """
import numpy as np, torch
from pathlib import Path
from PIL import Image

def image(i): return Image.new("L", (9, 7), i)
def pillow():
    for i in range(30): yield image(i), i % 3
def arrays(): return [(np.full((9, 7), i, np.uint8), torch.tensor(i % 3)) for i in range(30)]
def floats(): return [(torch.full((1, 4, 4), i / 255), i % 3) for i in range(30)]
def dicts(): return ({"image": image(i), "label": "abc"[i % 3]} for i in range(30))
def alone(): return map(image, range(30))
class Mapped(torch.utils.data.Dataset):
    def __len__(self): return 30
    def __getitem__(self, i): return image(i), i % 3
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return pillow()
class Targets(Mapped):
    touched = set()
    targets = [i % 3 for i in range(30)]
    def __getitem__(self, i):
        Targets.touched.add(i)
        return super().__getitem__(i)
class Broken(Mapped):
    targets = Targets.targets
    def __getitem__(self, i):
        if i == 4: raise OSError("disk on fire")
        if i == 5: return None, 2
        if i == 6: return torch.randn(1, 4, 4) * 9, 0
        return super().__getitem__(i)
class BrokenWithoutTargets(Broken): targets = None
def raises(): return 1 / 0
def needs(path): return []
def nothing(): return None
def none_there(): return []
def batches(): return torch.utils.data.DataLoader(Mapped(), 4)
def halfway():
    yield image(0), 0
    raise RuntimeError("no more")
def lists(): return [(image(i), [0, 1]) for i in range(30)]
number = 3
times = []
def shuffled():
    times.append(0)
    order = np.random.default_rng(len(times)).permutation(30).tolist()
    return ((image(i), i % 3) for i in order)
"""


@pytest.fixture(autouse=True)
def module(here: Path, request: pytest.FixtureRequest) -> str:
    name = f"loaders_{abs(hash(request.node.nodeid))}"
    (here / f"{name}.py").write_text(MODULE)
    return name


@pytest.mark.parametrize("factory", ["pillow", "arrays", "floats", "dicts", "Mapped", "Stream", "Targets"])
def test_every_form_gives_the_images_with_their_labels(module: str, factory: str) -> None:
    source = find_data(f"{module}:{factory}")
    assert labels_by_level(everything(source)) == {i: i % 3 for i in range(30)}
    assert len(source.classes or ()) == 3


def test_images_alone_have_no_labels(module: str) -> None:
    source = find_data(f"{module}:alone")
    assert source.classes is None and set(labels_by_level(everything(source))) == set(range(30))


def test_of_a_data_set_with_targets_only_the_images_that_are_used_are_touched(module: str) -> None:
    source = find_data(f"{module}:Targets")
    everything(source, calibration=5, held_out=2)
    touched = __import__(module).Targets.touched
    assert len(touched) == 7


def test_samples_that_cannot_be_used_are_named_and_skipped_or_fatal(module: str) -> None:
    data = everything(find_data(f"{module}:Broken"))
    assert labels_by_level(data) == {i: i % 3 for i in range(30) if i not in (4, 5, 6)}
    said = {line.partition(": ")[0].rpartition("[")[2]: line for line in data.skipped}
    assert "OSError: disk on fire" in said["4]"] and "no image" in said["5]"] and "[0, 1]" in said["6]"]
    data = everything(find_data(f"{module}:BrokenWithoutTargets"))
    assert len(data.skipped) == 3 and len(labels_by_level(data)) == 27
    for factory in ("Broken", "BrokenWithoutTargets"):
        with pytest.raises(UserError, match="cannot be used"):
            everything(find_data(f"{module}:{factory}", strict=True))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("raises", r"raises\(\) raised ZeroDivisionError: division by zero \(.*, line \d+\)"),
        ("needs", r"needs\(\) raised TypeError"),
        ("nothing", r"nothing\(\) returned None, which holds no images"),
        ("none_there", "holds no images"),
        ("batches", "returned a loader of batches"),
        ("halfway", r"going through it raised RuntimeError: no more"),
        ("lists", r"a label of .* is a list"),
        ("absent", "has no 'absent'"),
        ("number", "is not callable"),
    ],
)
def test_what_goes_wrong_is_one_line(module: str, factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_data(f"{module}:{factory}")


def test_samples_in_another_order_each_time_would_get_labels_of_others_and_are_refused(module: str) -> None:
    with pytest.raises(UserError, match="gives its samples in another order each time"):
        everything(find_data(f"{module}:shuffled"))


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "def (", "raise RuntimeError"])
def test_a_module_that_cannot_be_imported_is_one_line(here: Path, text: str) -> None:
    (here / "cannot_be_imported.py").write_text(text)
    with pytest.raises(UserError, match="importing its module raised"):
        find_data("cannot_be_imported:photos")


def test_an_absent_module_is_one_line() -> None:
    with pytest.raises(UserError, match="there is no module 'no_such_module'"):
        find_data("no_such_module:photos")


def test_evaluate_takes_them_too(module: str) -> None:
    assert find_labelled(f"{module}:dicts", ("c", "b", "a")).labels[:3].tolist() == [2, 1, 0]
    with pytest.raises(UserError, match=r"3 of 3 classes of .* are not in the network's classes: a, b, c"):
        find_labelled(f"{module}:dicts", KINDS)
