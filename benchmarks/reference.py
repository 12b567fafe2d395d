"""The plain way, as the released code goes: every plan from pixels, maps from stored activations, heads one by one.

It shares nothing with the engine but the model's weights and the way a head starts, so it is its oracle too.
"""

import copy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModel

from toastlib.plan import Plan

BATCH = 250


class Span(nn.Module):
    """A matrix in place of the blocks of a span."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """Shape (batch, tokens, width), as a block's."""
        return hidden_states @ self.matrix


def load(folder: str) -> nn.Module:
    """The model alone, float32."""
    without_pooler = {"add_pooling_layer": False} if AutoConfig.from_pretrained(folder).model_type == "vit" else {}
    return AutoModel.from_pretrained(folder, dtype=torch.float32, **without_pooler).eval()


def preprocess(pixels: np.ndarray, kind: str) -> Tensor:
    """One uint8 image (height, width, 3) through PIL, as the model was trained: shape (3, size, size)."""
    image = Image.fromarray(pixels).convert("RGB")
    if kind == "vit":
        pixel_values = np.array(image.resize((32, 32), Image.Resampling.BILINEAR))
        mean = std = torch.tensor([0.5, 0.5, 0.5])
    else:  # DINOv2: ImageNet's mean and standard deviation
        pixel_values = np.array(image.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240)))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = torch.from_numpy(pixel_values).permute(2, 0, 1).float().div(255)
    return scaled.sub(mean[:, None, None]).div(std[:, None, None])


def batches(images: np.ndarray, kind: str):
    """Preprocess all images once more."""
    for start in range(0, len(images), BATCH):
        yield torch.stack([preprocess(image, kind) for image in images[start : start + BATCH]])


@torch.inference_mode()
def features(model: nn.Module, images: np.ndarray) -> Tensor:
    """CLS tokens after the last norm, shape (images, width)."""
    kind = model.config.model_type
    return torch.cat([model(pixel_values=batch).last_hidden_state[:, 0] for batch in batches(images, kind)])


@torch.inference_mode()
def activations(model: nn.Module, images: np.ndarray) -> Tensor:
    """Outputs of the embedding and of every block, float32, shape (blocks + 1, rows, width)."""
    stored = []
    for batch in batches(images, model.config.model_type):
        hidden = model(pixel_values=batch, output_hidden_states=True).hidden_states
        stored.append(torch.stack([h.flatten(0, 1) for h in hidden]))
    return torch.cat(stored, dim=1)


def approximate(model: nn.Module, plan: Plan, stored: Tensor) -> nn.Module:
    """A copy with matrices, by `lstsq`, in place of the plan's spans."""
    smaller = copy.deepcopy(model)
    owner, name = (smaller, "layers") if hasattr(smaller, "layers") else (smaller.encoder, "layer")
    blocks = list(getattr(owner, name))
    for span in sorted(plan, reverse=True):
        matrix = torch.linalg.lstsq(stored[span.start + 1], stored[span.end + 1]).solution
        blocks[span.start + 1 : span.end + 1] = [Span(matrix)]
    setattr(owner, name, nn.ModuleList(blocks))
    return smaller


def train_head(train: Tensor, labels: Tensor, seed: int, classes: int, epochs: int = 5) -> nn.Linear:
    """The paper's head: Adam at 1e-3, batches of 256, 5 epochs."""
    draw = torch.Generator().manual_seed(seed)
    width = train.shape[1]
    head = nn.Linear(width, classes)
    first = (torch.rand(width + 1, classes, generator=draw) * 2 - 1) * width**-0.5
    head.weight.data, head.bias.data = first[:-1].mT.clone(), first[-1].clone()
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    data = TensorDataset(train, labels)
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=draw).tolist()
        for inputs, targets in DataLoader(data, batch_size=256, sampler=order):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(inputs), targets).backward()
            optimiser.step()
    return head


def head_in_a_process(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int) -> float:
    """Accuracy in percent of a head that a process of its own trains and tests, as the released code runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.safetensors"
        save_file({"train": train, "labels": labels, "test": test, "test_labels": test_labels}, path)
        command = [sys.executable, "-m", "benchmarks.reference", str(path), str(seed)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def accuracy(head: nn.Linear, test: Tensor, labels: Tensor) -> float:
    """In percent."""
    with torch.inference_mode():
        return 100 * (head(test).argmax(1) == labels).float().mean().item()


def timed(function, *args):
    """What a function returns, and its seconds."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


if __name__ == "__main__":
    import datasets  # noqa: F401  the released script loads it as well, and its models

    data = load_file(sys.argv[1])
    trained = train_head(data["train"], data["labels"], int(sys.argv[2]), int(data["labels"].max()) + 1)
    print(accuracy(trained, data["test"], data["test_labels"]))
