from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sad_deploy.models import build_model, cifar, digits
from sad_deploy.preparation import prepare
from sad_deploy.recipe import Options, resolve
from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, ExifOrientation, Interpolation, Preprocessing
from sad_runtime.preprocessing import load
from sad_runtime.sources import FileItem

FACTORY = """
import torch
from torch import nn
def net(num_classes, channels=3):
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), *pooled)
def four(): return net(4)
def grey(num_classes): return net(num_classes, 1)
class Unreached(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.aux, self.main = net(num_classes), nn.Conv2d(3, num_classes, 3)
    def forward(self, x): return self.main(x).mean((2, 3))
class NoStatistics(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(*net(num_classes))
        self[1] = nn.BatchNorm2d(4, track_running_stats=False)
def plain(num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
class Before(nn.Module):
    def __init__(self, change, num_classes):
        super().__init__()
        self.change, self.net = change, net(num_classes)
    def forward(self, x): return self.net(self.change(x))
def noisy(num_classes): return Before(lambda x: x + 0.3 * torch.rand_like(x), num_classes)
def cut(num_classes): return Before(torch.Tensor.detach, num_classes)
def through_numpy(num_classes): return Before(lambda x: torch.from_numpy(x.detach().numpy()), num_classes)
def unfinished(num_classes): return Before(lambda x: x.wdith, num_classes)
def half(): return net(4).half()
def double(): return net(4).double()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a factory, labelled and unlabelled images, and weights for 3 classes."""
    rng = np.random.default_rng(0)
    for name in ("labelled/a", "labelled/b", "labelled/c", "flat"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (tmp_path / "prepared_networks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    torch.save(build_model("cifar-resnet18", 3).state_dict(), "resnet18.pt")
    return tmp_path


def ready(**options):
    return prepare(resolve(Options(**{"device": "cpu", "batch_size": 2} | options)))


def test_the_embedded_default():
    found = ready()
    assert found.classes == tuple("0123456789") and found.source.name == "digits"
    assert found.preprocessing.shape == (1, 16, 16) and found.input_space.mean == digits.MEAN
    assert torch.equal(found.model.state_dict()["fc.weight"], digits.digits_state_dict()["fc.weight"])
    assert not found.model.training


def test_a_cifar_network_on_a_folder_takes_its_classes_and_the_cifar_form():
    found = ready(model="cifar-resnet18", weights="resnet18.pt", data="labelled")
    assert found.classes == ("a", "b", "c")
    assert found.preprocessing.shape == (3, 32, 32) and found.input_space.mean == cifar.MEAN
    assert found.weights["file"] == "resnet18.pt" and len(found.weights["sha256"]) == 64


def test_a_flat_folder_takes_the_class_count_from_the_weights():
    found = ready(model="cifar-resnet18", weights="resnet18.pt", data="flat")
    assert found.classes == ("0", "1", "2") and found.source.num_classes == 3


def test_a_factory_without_weights_brings_its_own():
    found = ready(model="prepared_networks:four", data="flat", image_size=20, mean="0.5,0.5,0.5", std="1,1,1")
    assert found.source.num_classes == 4 and len(found.classes) == 4
    assert found.preprocessing.crop == (20, 20) and found.input_space.std == (1, 1, 1)


def test_one_mean_value_makes_a_factorys_input_grey():
    found = ready(model="prepared_networks:grey", data="labelled", image_size=8, mean="0.5", std="0.5")
    assert found.preprocessing.color is Color.GRAY


def test_the_cameras_tag_is_ignored_if_told_in_calibration_and_manifest(folder):
    """A lying image: wide as it lies in the file, tall as the camera held it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    left = np.zeros((40, 40, 3), np.uint8)
    left[:, :20] = 255
    for name in ("a", "b", "c"):
        for index in range(8):
            Image.fromarray(left).save(folder / "labelled" / name / f"{index}.png", exif=exif)
    arguments = {"model": "prepared_networks:net", "data": "labelled", "image_size": 8}
    told = ready(**arguments, exif_orientation=ExifOrientation.IGNORE)
    assert told.preprocessing.exif_orientation is ExifOrientation.IGNORE
    assert ready(**arguments).preprocessing.exif_orientation is ExifOrientation.APPLY
    for found, axis in ((told, 1), (ready(**arguments), 0)):
        pixels = load(FileItem(str(folder / "labelled/a/0.png")), found.preprocessing).pixels[0]
        assert np.ptp(pixels.mean(1 - axis)) > 0.9 and np.ptp(pixels.mean(axis)) < 0.1


def test_by_default_a_calibration_passes_over_the_images_once():
    assert ready(batch_size=128).batches == 9, "of 1,258 digits"
    assert ready(batch_size=8).batches == 32, "at most"
    assert ready(batch_size=128, batches=20).batches == 20
    assert ready(batch_size=128, paper=True).batches == 32


def test_one_mean_value_is_for_all_channels_where_the_network_is_not_grey():
    for model, weights in (("cifar-resnet18", "resnet18.pt"), ("prepared_networks:net", None)):
        found = ready(model=model, weights=weights, data="labelled", image_size=8, mean="0.5", std="0.25")
        assert found.preprocessing.color is Color.RGB
        assert found.input_space.mean == (0.5,) * 3 and found.input_space.std == (0.25,) * 3


def test_preprocessing_can_be_said():
    options = {"model": "cifar-resnet18", "weights": "resnet18.pt", "data": "labelled", "image_size": 24}
    assert ready(**options).preprocessing == Preprocessing(Color.RGB, 24, (24, 24))
    found = ready(**options, resize=30, interpolation=Interpolation.BICUBIC).preprocessing
    assert found == Preprocessing(Color.RGB, 30, (24, 24), Interpolation.BICUBIC)
    assert ready(**options, crop_pct=0.875).preprocessing.resize == 27
    with pytest.raises(UserError, match="--resize 20 is less than the network's input of 24"):
        ready(**options, resize=20)


def test_what_a_network_says_of_its_images_is_used_and_options_change_it(folder):
    (folder / "stating_networks.py").write_text(
        FACTORY + "def grey_stating(num_classes): return stating(num_classes, 1)\n"
        "def stating(num_classes, channels=3):\n    model = net(num_classes, channels)\n"
        "    model.pretrained_cfg = {'input_size': (3, 20, 20), 'crop_pct': 0.9, 'interpolation': 'bicubic',"
        " 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.2, 0.2)}\n    return model\n"
    )
    found = ready(model="stating_networks:stating", data="labelled")
    assert found.preprocessing == Preprocessing(Color.RGB, 22, (20, 20), Interpolation.BICUBIC)
    assert found.input_space.mean == (0.5, 0.4, 0.3) and not found.assumed
    assert any("read from Sequential.pretrained_cfg" in note for note in found.notes)
    grey = ready(model="stating_networks:grey_stating", data="labelled", mean="0.5", std="0.5")
    assert grey.preprocessing.shape == (1, 20, 20), "timm's configuration stays that of three channels"
    found = ready(model="stating_networks:stating", data="labelled", image_size=10, mean="0", std="1")
    assert (found.preprocessing.resize, found.preprocessing.crop) == (11, (10, 10))
    assert found.input_space.std == (1, 1, 1)


def test_published_weights_bring_classes_and_preprocessing(folder, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    file = folder / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(build_model("shufflenet_v2_x0_5", 1000).state_dict(), file)
    found = ready(model="shufflenet_v2_x0_5", weights="DEFAULT", data="flat")
    assert found.classes[:2] == ("tench", "goldfish")
    assert found.preprocessing.resize == 256 and found.preprocessing.crop == (224, 224)
    smaller = ready(model="shufflenet_v2_x0_5", weights="DEFAULT", data="flat", image_size=112)
    assert smaller.preprocessing.resize == 128 and smaller.preprocessing.crop == (112, 112)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet18", "data": "labelled"}, "needs --weights"),
        ({"model": "resnet8", "data": "labelled"}, "no model named 'resnet8'"),
        (
            {"model": "resnet18", "weights": "absent.pt", "data": "labelled"},
            "no such file, and resnet18 has only",
        ),
        ({"model": "cifar-resnet18", "weights": "absent.pt", "data": "labelled"}, "no such file"),
        (
            {"model": "cifar-resnet50", "weights": "resnet18.pt", "data": "labelled"},
            "does not fit CifarResNet",
        ),
        ({"model": "prepared_networks:four", "data": "labelled"}, "4 logits, but labelled has 3 classes"),
        ({"model": "prepared_networks:net", "data": "flat"}, "does not tell the number"),
        ({"model": "prepared_networks:grey", "data": "labelled"}, "does not accept images"),
        ({"model": "prepared_networks:noisy", "data": "labelled"}, "other logits each time"),
        ({"model": "prepared_networks:cut", "data": "labelled"}, "no gradient of Before's logits"),
        ({"model": "prepared_networks:through_numpy", "data": "labelled"}, "no gradient of Before's logits"),
        ({"model": "prepared_networks:unfinished", "data": "labelled"}, "has no attribute 'wdith'"),
        ({"model": "prepared_networks:plain", "data": "labelled", "image_size": 8}, "no BatchNorm"),
        (
            {"model": "prepared_networks:Unreached", "data": "labelled", "image_size": 8},
            r"none of the 1 BatchNorm layers of Unreached is reached in eval mode \(aux.1\)",
        ),
        (
            {"model": "prepared_networks:NoStatistics", "data": "labelled", "image_size": 8},
            "1 of 1 BatchNorm layers keep no running statistics: 1",
        ),
        ({"data": "labelled"}, "10 classes, the model 3"),
        ({"image_size": 32}, "images of 16×16"),
        ({"mean": "0,0,0", "std": "1,1,1"}, "3 values, the images 1 channels"),
        ({"model": "vgg11", "weights": "IMAGENET1K_V1", "data": "labelled"}, "1000 classes, labelled: 3"),
        ({"data": "absent"}, "no data folder or file absent"),
        ({"data": "flat", "batch_size": 4}, "6 calibration images are fewer than two batches of 4"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ready(**options)


@pytest.mark.parametrize("kind", ["half", "double"])
def test_a_network_in_another_precision_is_calibrated_in_float32(kind):
    made = ready(model=f"prepared_networks:{kind}", data="flat")
    assert {each.dtype for each in made.model.parameters()} == {torch.float32}


def test_a_wrong_class_count_in_the_weights_is_said_plainly(folder):
    (folder / "labelled" / "a").rename(folder / "moved-a")
    with pytest.raises(UserError, match=r"resnet18.pt has 3 classes, the model 2"):
        ready(model="cifar-resnet18", weights="resnet18.pt", data="labelled")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no usable GPU"):
        prepare(resolve(Options(device="cuda")))


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="--device"):
        resolve(Options(device="tpu"))
