"""``--model FILE.pt2``: what torch.export.save wrote gets its BatchNorm layers back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy.models import build_model
from sad_runtime.errors import UserError


class Net(nn.Module):
    """Convolutions with BatchNorm2d, one without γ and β, and BatchNorm1d before the logits."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.inner = nn.ModuleDict({"bn": nn.BatchNorm1d(8)})
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(self.inner["bn"](x.mean((2, 3))))


def network():
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.rand(8, 3, 32, 32))
    return model.eval()


def write(path, model, *, batch=2, dynamic=True, decomposed=False):
    shapes = ({0: torch.export.Dim("N")},) if dynamic else None
    program = torch.export.export(model, (torch.zeros(batch, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if decomposed else program, path)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_layers_are_back_under_their_names_and_the_function_is_the_same(tmp_path, decomposed):
    model = network()
    write(tmp_path / "net.pt2", model, decomposed=decomposed)
    found = build_model(str(tmp_path / "net.pt2"), 0)
    layers = {
        name: each
        for name, each in found.named_modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm)
    }
    assert set(layers) == {"bn1", "bn2", "inner.bn"}
    assert layers["bn2"].eps == 1e-3 and layers["bn2"].weight is None
    x = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))


def test_it_goes_the_whole_way(images, calibrated_and_exported):
    write(images / "net.pt2", network())
    ready = calibrated_and_exported(model="net.pt2", image_size=32, mean="0.5", std="0.25").prepared
    assert ready.source.name == "net.pt2" and ready.classes == ("0", "1", "2")


def test_what_cannot_be_recalibrated_is_one_line(tmp_path):
    write(tmp_path / "one.pt2", network(), batch=1, dynamic=False)
    write(tmp_path / "train.pt2", Net().train())
    (tmp_path / "rubbish.pt2").write_bytes(b"<html>")
    for name, message in (
        ("one", "was exported for batches of 1"),
        ("train", "normalises by the batch, not by stored statistics"),
        ("rubbish", "cannot be read as an exported program"),
        ("absent", "no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build_model(str(tmp_path / f"{name}.pt2"), 3)
        assert "\n" not in error.value.message
