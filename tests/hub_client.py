"""What a process does with a Hub: it lives as long as the tests, and each case has a cache of its own."""

import os
import socket
import sys
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np


class Client:
    """A process that has started with this environment."""

    def __init__(self, **environment: str) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), begin, (environment,))
        self.pool.submit(warm)  # starts the process

    def start(self, function, cache: Path, *args, **kwargs) -> Future:
        return self.pool.submit(in_cache, function, str(cache), *args, **kwargs)

    def __call__(self, function, cache: Path, *args, **kwargs):
        return self.start(function, cache, *args, **kwargs).result(100)

    def close(self) -> None:
        self.pool.submit(os._exit, 0)  # at once: an interpreter with these libraries takes seconds to end
        self.pool.shutdown()


def begin(environment: dict[str, str]) -> None:
    """Before anything of Hugging Face's is imported: the environment, no other machine, and a clock that runs ahead."""
    assert "huggingface_hub" not in sys.modules
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ.update(environment)
    lookup, sleep = socket.getaddrinfo, time.sleep

    def of_this_machine(host, *args, **kwargs):
        if host not in ("localhost", "127.0.0.1", "::1", "", None):
            raise socket.gaierror(f"no other machine: {host}")
        return lookup(host, *args, **kwargs)

    socket.getaddrinfo = of_this_machine
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # clients wait longer from one attempt to the next


def warm() -> None:
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    import toastlib  # noqa: F401


def in_cache(function, cache: str, *args, **kwargs):
    """Call a function while the libraries keep what they fetch in a folder."""
    import datasets
    import huggingface_hub

    from toastlib.data import catalog

    huggingface_hub.constants.HF_HUB_CACHE = f"{cache}/hub"
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000  # as large to a tiny file as the usual one to a usual file
    datasets.config.HF_DATASETS_CACHE = f"{cache}/datasets"
    huggingface_hub.HfFileSystem.clear_instance_cache()
    catalog.COMMITS.clear()
    with warnings.catch_warnings(action="ignore"):
        return function(*args, **kwargs)


def weights(name: str, **options) -> dict[str, np.ndarray]:
    """The weights of an encoder."""
    import toastlib as toast

    model = toast.load_encoder(name, device="cpu", **options).model
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def facts(name: str) -> dict:
    """How an encoder is called, where it is from, how it reads images, and the classifier that belongs to it."""
    import toastlib as toast
    from toastlib.data import catalog
    from toastlib.models.base_architecture import own_classifier

    encoder = toast.load_encoder(name, device="cpu")
    classifier = own_classifier(*encoder.checkpoint[:3])
    return {
        "name": encoder.name,
        "path": encoder.checkpoint.path,
        "mean": encoder.preprocessing.mean,
        "classifier": classifier and classifier.classifier.weight.detach().numpy(),
        "commits": sorted(catalog.COMMITS),
    }


def language(name: str) -> tuple[bool, str, int, np.ndarray]:
    """Whether a model writes texts, where it is from, how many tokens it knows, and its last weights."""
    import toastlib as toast
    from toastlib.evaluation.language import has_language_head

    loaded = toast.load_language_model(name, device="cpu")
    head = loaded.model.lm_head.weight.numpy()
    return has_language_head(name), loaded.encoder.checkpoint.path, len(loaded.encoder.tokenizer), head


def fingerprint_of(name: str, images_name: str) -> str:
    """The key of the features that an encoder has of a set's test images."""
    import toastlib as toast
    from toastlib.cache import fingerprint

    encoder = toast.load_encoder(name, device="cpu")
    return fingerprint("features", encoder, *toast.load_images(images_name, encoder).test.cache_key_parts)


def images(name: str, stream_from: float | None = None, **sizes) -> dict:
    """Pixels and labels of a set, as an encoder of the study reads them; from so many bytes on it is streamed.

    A stream is shuffled among 16 rows.
    """
    import toastlib as toast
    from toastlib.data import catalog, sources

    encoder, usual = toast.load_encoder("vit-mini", device="cpu"), (sources.STREAM_FROM, sources.BUFFER)
    sources.STREAM_FROM, sources.BUFFER = usual if stream_from is None else (stream_from, 16)
    try:
        loaded = toast.load_images(name, encoder, **sizes)
    finally:
        sources.STREAM_FROM, sources.BUFFER = usual
    parts = {split: (one.pixels.numpy(), one.labels.numpy()) for split, one in vars(loaded).items() if split != "name"}
    return parts | {"name": loaded.name, "commits": sorted(catalog.COMMITS)}


def on_a_full_disk(function, name: str, file: str):
    """Call a function while the disk is full: half of the file of this name is written, or no table of this library."""
    import errno

    import huggingface_hub.file_download as download
    from datasets import arrow_writer

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, chunk: bytes) -> None:
            self.file.write(chunk[: len(chunk) // 2])
            full()

    def get(url, temp_file, **kwargs):
        return usual(url, Full(temp_file) if url.endswith(file) else temp_file, **kwargs)

    usual, write = download.http_get, arrow_writer.ArrowWriter.write_table
    download.http_get = get
    if file == "arrow":
        arrow_writer.ArrowWriter.write_table = full
    try:
        return function(name)
    finally:
        download.http_get, arrow_writer.ArrowWriter.write_table = usual, write


def manifest(name: str, images_name: str, folder: str) -> dict:
    """The manifest of a run that has read a model and a data set and written a table."""
    import json

    import pandas as pd

    import toastlib as toast
    from toastlib.runs.parameters import find_notebook
    from toastlib.runs.store import Run

    results = toast.Results(folder)
    toast.load_images(images_name, toast.load_encoder(name, device="cpu"))
    results.table(pd.DataFrame({"a": [1]}))
    Run(find_notebook("02"), {"model": name}).write_manifest(Path(folder), time.time())
    return json.loads(Path(folder, "manifest.json").read_text())


def push(name: str, repository: str, images_name: str) -> dict:
    """Make an encoder smaller, save and push it; a few images, the smaller one's answers, and its card."""
    import torch
    import transformers

    import toastlib as toast

    encoder = toast.load_encoder(name, device="cpu")
    data = toast.load_images(images_name, encoder)
    smaller = toast.approximate(encoder, "1->3", toast.collect_moments(encoder, data.train))
    folder = Path(os.environ["HF_HOME"], "smaller")
    smaller.save_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    model.push_to_hub(repository)
    with torch.inference_mode():
        pixels = next(iter(data.test.batches(4)))[0]
        return {
            "pixels": pixels.numpy(),
            "logits": model(pixels).logits.numpy(),
            "card": (folder / "README.md").read_text(),
        }


def answers(repository: str, images_name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Answers of a pushed model; its features by toastlib; and the length of its block list."""
    import torch
    import transformers

    import toastlib as toast

    encoder = toast.load_encoder(repository, device="cpu")
    data = toast.load_images(images_name, encoder)
    pixels = next(iter(data.test.batches(4)))[0]
    model = transformers.AutoModelForImageClassification.from_pretrained(repository)
    with torch.inference_mode():
        return model(pixels).logits.numpy(), encoder(pixels).numpy(), len(encoder.blocks)
