"""Folders saved by an earlier version open with the code of today, and without toastlib with the code beside them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import environment_without_toastlib
from transformers import AutoModelForImageClassification

from toastlib.models.loading import load_encoder

ROOT = Path(__file__).parent / "saved_by_08eff98"
FOLDERS = ("context", "linear", "low-rank", "separate", "sublayers")
EXPECTED = load_file(ROOT / "expected.safetensors")
"""``pixel_values`` (images, 3, height, width), and the logits (images, classes) of each folder's model."""

OPEN_ALL = """
import importlib.util, sys
from pathlib import Path
from safetensors.torch import load_file
import torch
from transformers import AutoModelForImageClassification
assert not importlib.util.find_spec("toastlib")
expected = load_file(Path(sys.argv[1]) / "expected.safetensors")
for folder in sys.argv[2:]:
    model = AutoModelForImageClassification.from_pretrained(Path(sys.argv[1]) / folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(expected["pixel_values"]).logits
    torch.testing.assert_close(logits, expected[folder], rtol=0, atol=1e-5)
    print(folder, type(model).__module__.split(".")[0])
"""


@pytest.mark.parametrize("folder", FOLDERS)
@torch.no_grad()
def test_an_earlier_folder_opens_by_the_auto_class_with_toastlib(folder):
    model = AutoModelForImageClassification.from_pretrained(ROOT / folder).eval()
    assert type(model).__module__ == "toastlib.models.modeling_toast"
    logits = model(EXPECTED["pixel_values"]).logits
    torch.testing.assert_close(logits, EXPECTED[folder], rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", FOLDERS)
@torch.no_grad()
def test_an_earlier_folder_opens_as_an_encoder(folder):
    encoder = load_encoder(str(ROOT / folder), device="cpu")
    assert (encoder.sublayer_split is not None) == (folder == "sublayers")
    features = encoder(EXPECTED["pixel_values"])
    head = {name: load_file(ROOT / folder / "model.safetensors")[f"classifier.{name}"] for name in ("weight", "bias")}
    logits = torch.nn.functional.linear(features, **head)
    torch.testing.assert_close(logits, EXPECTED[folder], rtol=0, atol=1e-5)


def test_an_earlier_folder_saves_to_the_format_of_today(tmp_path):
    """A model that is opened and saved again takes the code of today along."""
    AutoModelForImageClassification.from_pretrained(ROOT / "sublayers").save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(EXPECTED["pixel_values"]).logits
    torch.testing.assert_close(logits, EXPECTED["sublayers"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_earlier_folder_opens_without_toastlib_by_the_code_beside_it(tmp_path):
    shutil.copytree(ROOT, tmp_path / "saved")
    for folder in FOLDERS:  # the code is the same in all of them, and is kept once
        shutil.copytree(ROOT / "code", tmp_path / "saved" / folder, dirs_exist_ok=True)
    python = environment_without_toastlib(tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [python, "-c", OPEN_ALL, tmp_path / "saved", *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{folder} transformers_modules" for folder in FOLDERS]
