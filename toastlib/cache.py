"""Disk cache of features, moments and heads, keyed by everything that they depend on.

``TOAST_CACHE`` names another folder than ``~/.cache/toastlib``, or ``off``; ``TOAST_CACHE_GIB`` another limit than 10.
The least recently used entries are deleted first.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toastlib.errors import InputError

PACKAGES = ("torch", "transformers", "toastlib")
"""Code whose version is part of every key. Results of other code are not cached: nobody would notice its changes."""


@dataclass(frozen=True)
class Cache:
    """A folder of safetensors files of at most `limit` bytes, made with the first; with `None` nothing is kept."""

    folder: Path | None
    limit: int = 10 * 2**30

    def get(self, key: str | None) -> dict[str, Tensor] | None:
        """The tensors kept under a key, on the CPU; `None` if there are none."""
        if self.folder is None or key is None:
            return None
        path = self.folder / f"{key}.safetensors"
        try:
            os.utime(path)
            return load_file(path)
        except (OSError, SafetensorError):  # missing or damaged: the caller computes and writes it anew
            return None

    def put(self, key: str | None, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under a key; on a disk that is full or read-only, nothing is kept and nothing fails."""
        if self.folder is None or key is None or sum(t.nbytes for t in tensors.values()) > self.limit / 10:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{key}.safetensors", tensors)
        self.trim(self.limit)

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """The files with their sizes and times, the least recently used first."""
        entries = []
        for path in self.folder.glob("*.safetensors") if self.folder else ():
            with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                entries.append((path, path.stat()))
        return sorted(entries, key=lambda entry: entry[1].st_mtime)

    def trim(self, limit: int) -> None:
        """Delete the least recently used entries until the others take at most `limit` bytes."""
        size = 0
        for path, stat in reversed(self.entries()):
            size += stat.st_size
            if size > limit:
                path.unlink(missing_ok=True)


def write_whole(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file aside, and rename it when it is complete."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def default_cache() -> Cache:
    """The cache that the environment asks for; `InputError` if ``TOAST_CACHE_GIB`` is not a number."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = os.environ.get("TOAST_CACHE") or str(home / "toastlib")
    try:
        limit = int(float(os.environ.get("TOAST_CACHE_GIB") or 10) * 2**30)
    except ValueError:
        raise InputError(f"TOAST_CACHE_GIB takes a number, not {os.environ['TOAST_CACHE_GIB']!r}.") from None
    return Cache(None if folder == "off" else Path(folder).expanduser(), limit)


def cached(compute: Callable[[], dict[str, Tensor]], *parts: Any) -> dict[str, Tensor]:
    """The result of `compute`, from the cache (then on the CPU) if it is known for these parts, see `fingerprint`."""
    cache = default_cache()
    key = fingerprint(*parts) if cache.folder else None
    tensors = cache.get(key)
    if tensors is None:
        tensors = compute()
        cache.put(key, tensors)
    return tensors


def fingerprint(*parts: Any) -> str | None:
    """A key of the parts, this code and the device; `None` if a module's code is not of `PACKAGES`.

    Parts are modules, tensors, or anything whose `repr` says all.
    """
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    if not all(type(module).__module__.partition(".")[0] in PACKAGES for module in modules):
        return None
    digest = hashlib.sha256(_code().encode())
    for text, tensors in map(_describe, parts):
        digest.update(text.encode())
        for tensor in tensors:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{_device(tensor.device)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _describe(part: Any) -> tuple[str, Iterable[Tensor]]:
    if isinstance(part, Tensor):
        return "tensor", [part]
    if not isinstance(part, nn.Module):
        return repr(part), []
    configs = [module.config for module in part.modules() if hasattr(module, "config")]
    settings = {(config.to_json_string(), config._attn_implementation) for config in configs}
    return f"{part!r}{sorted(settings)}", [*part.parameters(), *part.buffers()]


@cache
def _code() -> str:
    """Versions of the packages, and a hash of this library's source: a change of it makes all keys new."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return f"{version('torch')} {version('transformers')} {hashlib.sha256(sources).hexdigest()}"


def _device(device: torch.device) -> str:
    """The model of a GPU, or instructions and threads of a CPU: the last bits of a result depend on them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
