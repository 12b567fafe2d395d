"""What a model takes in use: time per batch and in a pipeline, memory, and energy where the machine tells it."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from toastlib.data.images import Images
from toastlib.data.texts import Texts
from toastlib.data.tokens import Inputs, arguments_of
from toastlib.evaluation.costs import relative_throughput
from toastlib.models.quiet import quiet_transformers

Spread = tuple[float, float, float]  # median of the rounds, and their quartiles
COUNTERS = Path("/sys/class/powercap")
"""Where Linux counts the energy of CPUs, those of AMD under Intel's name; most machines let only root read it."""
BATCH = 32
PEAK = """
import sys, torch
from toastlib.models.loading import load_encoder
encoder = load_encoder(sys.argv[1], device=sys.argv[2])
encoder(torch.zeros(*map(int, sys.argv[3:]), dtype=encoder.dtype, device=encoder.device))
if encoder.device.type == "cuda":
    print(torch.cuda.max_memory_allocated(encoder.device))
else:  # ru_maxrss would begin with that of the process that started this one
    print(1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]))
"""
"""Program of the process whose memory is measured."""


def told_apart(one: Spread, other: Spread) -> bool:
    """Whether the rounds tell two times apart: their quartiles do not overlap."""
    return one[2] < other[1] or other[2] < one[1]


def measure_latency(
    models: Sequence[Callable], images: Images | Texts, sizes: tuple[int, ...] = (1, BATCH)
) -> dict[int, list[Spread]]:
    """Batch size -> milliseconds per batch of every model, timed in turns; no size exceeds the number of images."""
    latency = {}
    for size in (size for size in sizes if size <= len(images)):
        inputs, _ = next(images[:size].batches(size))
        seconds = _in_turns(map(_caller, models), inputs, repeats=9 if size > 1 else 25)
        latency[size] = [tuple(1000 * size * value for value in spread) for spread in seconds]
    return latency


def measure_pipeline(
    models: Iterable[PreTrainedModel], images: Images | Texts, task: str, tokenizer: Any = None
) -> list[Spread]:
    """Milliseconds per picture or text in transformers' `pipeline`, which reads it and answers, in batches of 32."""
    from transformers import pipeline

    if isinstance(images, Texts):
        given, reader = images[:BATCH].decoded(tokenizer), {"tokenizer": tokenizer}
    else:
        given = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.pixels[:BATCH]]
        with quiet_transformers():  # without torchvision it says so, as early as it is imported
            from transformers import CLIPImageProcessor

            reader = {"image_processor": CLIPImageProcessor(**images.preprocessing.to_config())}
    settings = {"batch_size": BATCH} | reader
    # By itself a pipeline would move the model to a GPU.
    pipelines = [pipeline(task, model=model, device=model.device, **settings) for model in models]
    return [tuple(1000 * value for value in spread) for spread in _in_turns(pipelines, given, repeats=5)]


def _caller(model: Callable) -> Callable[[Inputs], Any]:
    return lambda inputs: model(**arguments_of(inputs))


def _in_turns(models: Iterable[Callable], inputs: Any, repeats: int) -> list[Spread]:
    """Seconds per image of every model."""
    timed = relative_throughput(dict(enumerate(models)), inputs, repeats)
    seconds = (1 / timed["images_per_second"]).groupby(timed["encoder"]).quantile([0.5, 0.25, 0.75])
    return [tuple(seconds[index]) for index in sorted(timed["encoder"].unique())]


def measure_memory(folder: str | Path, inputs: torch.Tensor) -> float | None:
    """Peak memory in MB of a fresh process that runs a saved encoder on a batch; `None` where it is not counted."""
    if inputs.device.type != "cuda" and not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", PEAK, str(folder), str(inputs.device), *map(str, inputs.shape)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1e6


@torch.inference_mode()
def measure_energy(models: Iterable[Callable], images: Images, seconds: float = 1.0) -> list[float] | None:
    """Millijoules per image of every model in batches of 32, of the whole CPU or GPU; `None` where none are counted."""
    inputs, _ = next(images[:BATCH].batches(BATCH))
    if joules(inputs.device) is None:
        return None
    found = []
    for model in map(_caller, models):
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
        return sum(int(file.read_bytes()) for file in COUNTERS.glob("intel-rapl:?/energy_uj")) / 1e6 or None
    except OSError:
        return None


def device_name(device: torch.device) -> str:
    """How a report names the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'' if threads == 1 else 's'}"
