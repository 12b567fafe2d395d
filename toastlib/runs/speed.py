"""How fast this machine runs an encoder, measured on a few batches; and what is not on it yet."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.plugins import plugins_of
from toastlib.runs.cluster import worker_pool
from toastlib.runs.store import read_json

BATCH, STANDARD = 32, "vit-mini"
HUB_TIMEOUT = 5  # seconds


@dataclass(frozen=True)
class Speed:
    """Seconds that this machine takes, and the encoder that it was measured on."""

    python: float  # for a fixed piece of Python
    block: float  # for one block and one image, in batches of 32
    depth: int
    width: int
    weights: int  # bytes
    source: str = "measured"


def measure_encoders(encoders: dict, jobs: int) -> dict[Any, Speed]:
    """Measure each encoder in as many processes at once as there will be runs, four at most, with as many threads."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    if not encoders:
        return {}
    beside = min(jobs, 4)
    tasks = [key for key in encoders for _ in range(beside)]
    with worker_pool(jobs):
        found = Parallel(max(2, beside))(delayed(measure)(key[0], dict(key[1]), list(encoders[key])) for key in tasks)
        get_reusable_executor().shutdown()  # their memory, on a GPU too, is for the runs
    speeds: dict[Any, Speed] = {}
    for key, speed in zip(tasks, found, strict=True):
        speeds[key] = max(speeds.get(key, speed), speed, key=lambda one: one.block)
    return speeds


def measure(model: str, options: dict[str, Any], plugins: Sequence[str] = ()) -> Speed:
    """Measure this machine on an encoder; where that cannot be, guess from its configuration, or as `STANDARD`.

    Processor time is taken, of the shortest of several rounds: what else this machine does now is left out.
    """
    plugins_of(plugins)
    if hub_path("model", model):
        return _guess(_measure(STANDARD), model, options.get("image_size") or 0)
    try:
        return _measure(model, **options)
    except (InputError, RuntimeError) as error:  # the run itself will fail, and others will not
        return replace(_measure(STANDARD), source=f"a guess: {model} cannot be measured: {error}")


def _measure(model: str, **options: Any) -> Speed:
    import torch

    from toastlib.models.costs import example_input, parameter_count
    from toastlib.models.loading import load_encoder

    encoder, rounds = load_encoder(model, **options), []
    inputs = torch.cat([example_input(encoder)] * BATCH)
    with torch.inference_mode():
        while len(rounds) < 3 or (sum(rounds) < 1 and len(rounds) < 20):
            rounds.append(_seconds(lambda: encoder.features(inputs).sum().item()))  # .item() waits for a GPU
    python = min(_seconds(lambda: sorted(map(str, range(100_000)))) for _ in range(5))
    depth, weights = len(encoder.blocks), parameter_count(encoder) * inputs.element_size()
    return Speed(python, min(rounds) / BATCH / depth, depth, encoder.width, weights)


def _seconds(work: Any) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def _guess(standard: Speed, model: str, image_size: int) -> Speed:
    """The speed of an encoder that is not on this machine, from the multiplications of a block of its size."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    name, revision = catalog.split_revision(catalog.model_path(model))
    url, headers = hf_hub_url(name, "config.json", revision=revision), build_hf_headers()
    try:
        config = get_session().get(url, headers=headers, timeout=HUB_TIMEOUT, follow_redirects=True).json()
        config = config.get("vision_config", config)
        share = _products(config, image_size) / _products(read_json(Path(catalog.MODELS[STANDARD]) / "config.json"))
        width, depth = config["hidden_size"], config["num_hidden_layers"]
    except Exception:  # the Hub is out of reach, or the family has other names: of a dozen kinds
        return replace(standard, source=f"a guess: {model} is not on this machine, {STANDARD} is taken instead")
    size = {"block": standard.block * share, "depth": depth, "width": width, "weights": depth * 12 * width**2 * 4}
    return replace(standard, **size, source=f"a guess: {model} is not on this machine, its speed follows from its size")


def _products(config: dict[str, Any], image_size: int = 0) -> float:
    """Multiplications of one block for one image: its matrices, and attention."""
    tokens = ((image_size or config["image_size"]) / config["patch_size"]) ** 2 + 1
    width = config["hidden_size"]
    return tokens * (4 * width**2 + 2 * width * config.get("intermediate_size", 4 * width)) + 2 * tokens**2 * width


def hub_path(kind: str, name: str) -> str | None:
    """Where the Hub has a model or a data set that is not on this machine; `None` if it is, or needs no Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if kind == "model":
        path = None if callable(catalog.MODELS.get(name)) else catalog.model_path(name)
    else:
        path = catalog.dataset_entry(name, catalog.TEXTS if kind == "texts" else catalog.DATASETS).path
    if not path or Path(path).is_dir():
        return None
    hub_id = catalog.split_revision(path)[0].replace("/", "--")
    folder = f"models--{hub_id}" if kind == "model" else f"datasets--{hub_id}"
    return None if (Path(HF_HUB_CACHE) / folder / "snapshots").is_dir() else path
