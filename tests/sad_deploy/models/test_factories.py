from __future__ import annotations

import sys

import pytest
import torch

from sad_deploy.models import build_model
from sad_deploy.models.sources import takes_num_classes
from sad_runtime.errors import UserError

FACTORIES = """
import torch
from torch import nn
def with_classes(num_classes): return nn.Linear(2, num_classes)
def with_kwargs(pretrained=False, **kwargs): return nn.Linear(2, kwargs.get("num_classes", 1000))
def parallel(num_classes): return nn.DataParallel(with_classes(num_classes))
def compiled(num_classes): return torch.compile(nn.DataParallel(with_classes(num_classes)))
def needs_name(model_name, **kwargs): return nn.Linear(2, 9)
def scripted(num_classes): return torch.jit.script(with_classes(num_classes))
a_network = nn.DataParallel(nn.Linear(2, 9))
def without_classes(): return nn.Linear(2, 9)
def wrong(): return "a string"
def nothing(num_classes): with_classes(num_classes)
def raises(num_classes): raise RuntimeError("no\\nCUDA")
def wide(num_classes, *, width=2, bias=True): return nn.Linear(width, num_classes, bias=bias)
class Nets:
    nested = staticmethod(with_classes)
constant = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(FACTORIES)
    (tmp_path / "broken_networks.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_networks", "broken_networks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("with_classes", 4),
        ("with_kwargs", 4),
        ("parallel", 4),
        ("compiled", 4),
        ("without_classes", 9),
        ("Nets.nested", 4),
        ("a_network", 9),
        ("wide(width=5, bias=False)", 4),
        ("wide(num_classes=7)", 7),
        ("needs_name(model_name='x')", 9),
    ],
)
def test_a_factory_of_the_current_folder_is_called(here, name, width):
    before = list(sys.path)
    assert build_model(f"my_networks:{name}", 4).out_features == width
    assert sys.path == before


def test_whether_a_factory_takes_the_class_count_is_known(here):
    assert takes_num_classes("my_networks:with_classes")
    assert takes_num_classes("my_networks:with_kwargs")
    assert not takes_num_classes("my_networks:without_classes")
    assert not takes_num_classes("my_networks:a_network")
    assert not takes_num_classes("my_networks:wide(num_classes=7)")


def test_a_network_that_exists_already_is_copied(here):
    first, second = (build_model("my_networks:a_network", 9) for _ in range(2))
    with torch.no_grad():
        first.weight.zero_()
    assert second.weight.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks:with_clases", "close: with_classes"),
        ("my_networks:constant", "not callable"),
        ("my_networks:wrong", "returned a str, not a torch.nn.Module"),
        ("my_networks:nothing", "returned None, not a torch.nn.Module"),
        (
            "my_networks:raises",
            r"raises\(num_classes=4\) raised RuntimeError: no CUDA \(.*my_networks.py, line",
        ),
        ("my_networks:wide(depth=3)", r"cannot be called with num_classes, depth: .*unexpected.*depth"),
        ("my_networks:a_network(width=3)", "takes no arguments, got width"),
        (
            "my_networks:needs_name",
            r"needs_name\(model_name, \*\*kwargs\) cannot be called with num_classes: missing",
        ),
        ("my_networks:scripted", "TorchScript"),
        ("absent_networks:build", "no module 'absent_networks'"),
        ("my_networks.deeper:build", "no module 'my_networks.deeper'"),
        (":build", "not package.module:factory"),
        ("my_networks:", "has no ''"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(here, name, message):
    with pytest.raises(UserError, match=message):
        build_model(name, 4)


def test_an_import_that_fails_inside_the_users_module_keeps_its_own_error(here):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        build_model("broken_networks:build", 4)


def test_keyword_arguments_reach_the_factory(here):
    model = build_model("my_networks:wide(width=5, bias=False)", 4)
    assert model.in_features == 5 and model.bias is None
