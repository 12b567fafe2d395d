"""What a grid needs: named once each, and what is here already is not fetched."""

import pytest

from toastlib.cli import main
from toastlib.data.catalog import MODELS
from toastlib.runs.fetch import fetch_all, needed
from toastlib.runs.grid import read_grid


@pytest.fixture
def grid(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("""
- notebook: "02"
  parameters: {model: [vit-mini, dinov2-s], dataset: [digits, cifar10]}
- notebook: "16"
  parameters: {others: [mnist, digits]}
- notebook: "13"
  parameters: {sentences.name: sst2}
""")
    return file


def test_each_name_comes_once_and_defaults_count_too(grid):
    assert needed(read_grid(grid)) == [
        ("images", "cifar10"),
        ("images", "digits"),
        ("images", "fashion-mnist-mini"),
        ("images", "mnist"),
        ("model", "dinov2-s"),
        ("model", "gpt-mini"),
        ("model", "vit-mini"),
        ("texts", "books"),
        ("texts", "sst2"),
    ]


def test_what_is_embedded_or_lies_in_a_folder_needs_nothing():
    names = [("model", "vit-mini"), ("model", MODELS["vit-mini"]), ("images", "mnist-mini"), ("texts", "lines")]
    assert list(fetch_all(names)) == [(*name, 0, None) for name in names]


def test_what_cannot_be_fetched_is_said_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: 1 / 0)
    file = tmp_path / "grid.yaml"
    file.write_text('notebook: "02"\nparameters: {model: [dinov2-s, vit-mini]}')
    assert main(["fetch", str(file)]) == 1
    *_, missing, here = capsys.readouterr().out.splitlines()
    assert missing.split()[:2] == ["model", "dinov2-s"]
    assert missing.endswith("Model 'facebook/dinov2-small' cannot be loaded: division by zero")
    assert here.split() == ["model", "vit-mini", "is", "on", "this", "machine"]
