"""What a model takes in use: time per batch, time per image in a pipeline, and energy where the machine tells it."""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toastlib.data.images import Images
from toastlib.evaluation.costs import relative_throughput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Spread = tuple[float, float, float]
"""Median of the rounds, and their quartiles."""
COUNTERS = Path("/sys/class/powercap")
"""Where Linux counts the energy of CPUs, those of AMD under Intel's name; most machines let only root read it."""
BATCH = 32


def measure_latency(
    models: Sequence[Callable[[Tensor], Any]], images: Images, sizes: tuple[int, ...] = (1, BATCH)
) -> dict[int, list[Spread]]:
    """Batch size -> milliseconds per batch of every model, timed in turns; no size exceeds the number of images."""
    latency = {}
    for size in (size for size in sizes if size <= len(images)):
        inputs, _ = next(images[:size].batches(size))
        seconds = _in_turns(models, inputs, repeats=9 if size > 1 else 25)
        latency[size] = [tuple(1000 * size * value for value in spread) for spread in seconds]
    return latency


def measure_pipeline(models: Iterable["PreTrainedModel"], images: Images, task: str) -> list[Spread]:
    """Milliseconds per image in transformers' `pipeline`, from decoded pictures to answers, in batches of 32."""
    from PIL import Image
    from transformers import AutoImageProcessor, pipeline

    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.pixels[:BATCH]]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(images.preprocessing.to_config()))
        processor = AutoImageProcessor.from_pretrained(folder)
    pipelines = [  # by itself a pipeline would move the model to a GPU
        pipeline(task, model=model, image_processor=processor, batch_size=BATCH, device=model.device)
        for model in models
    ]
    return [tuple(1000 * value for value in spread) for spread in _in_turns(pipelines, pictures, repeats=5)]


def _in_turns(models: Iterable[Callable], inputs: Any, repeats: int) -> list[Spread]:
    """Seconds per image of every model."""
    timed = relative_throughput(dict(enumerate(models)), inputs, repeats)
    seconds = (1 / timed["images_per_second"]).groupby(timed["encoder"]).quantile([0.5, 0.25, 0.75])
    return [tuple(seconds[index]) for index in sorted(timed["encoder"].unique())]


@torch.inference_mode()
def measure_energy(models: Iterable[Callable], images: Images, seconds: float = 1.0) -> list[float] | None:
    """Millijoules per image of every model in batches of 32, of the whole CPU or GPU; `None` where none are counted."""
    inputs, _ = next(images[:BATCH].batches(BATCH))
    if joules(inputs.device) is None:
        return None
    found = []
    for model in models:
        model(inputs)
        start, before, count = time.perf_counter(), joules(inputs.device), 0
        while not count or time.perf_counter() - start < seconds:
            model(inputs)
            if inputs.device.type == "cuda":
                torch.cuda.synchronize()
            count += len(inputs)
        used = joules(inputs.device) - before
        found.append(1000 * used / count if used > 0 else float("nan"))  # a counter has begun anew
    return found


def joules(device: torch.device) -> float | None:
    """Energy that a device has used since some moment; `None` where it is not counted or may not be read."""
    if device.type == "cuda":
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except Exception:  # the package is missing, or one of NVML's many errors
            return None
    try:
        return sum(int(file.read_text()) for file in COUNTERS.glob("intel-rapl:?/energy_uj")) / 1e6 or None
    except OSError:
        return None


def device_name(device: torch.device) -> str:
    """How a report names the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'' if threads == 1 else 's'}"
