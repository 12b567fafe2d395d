"""Computed once, read ever after: features and heads on disk, keyed by all that they depend on.

The environment variable ``TOAST_CACHE`` names another folder than ``~/.cache/toastlib``, or ``off``;
``TOAST_CACHE_GIB`` another limit than 10. What was not used for longest is deleted first.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toastlib.errors import InputError

PACKAGES = ("torch", "transformers", "toastlib")
"""Code whose version is part of every key. Modules of other code may change without a trace and are not cached."""


@dataclass(frozen=True)
class Cache:
    """A folder of safetensors files, or none: then nothing is found and nothing kept.

    Parameters
    ----------
    folder
        Made when the first entry is written.
    limit
        Bytes that the files take at most.
    """

    folder: Path | None
    limit: int = 10 * 2**30

    def get(self, key: str | None) -> dict[str, Tensor] | None:
        """The tensors kept under a key, on the CPU; `None` if there are none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None or key is None:
            return None
        path = self._path(key)
        try:
            tensors = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError):  # not there, or damaged: it is computed and written anew
            return None
        return tensors

    def put(self, key: str | None, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under a key. A disk that is full or read-only costs the entry, and nothing else."""
        from safetensors.torch import save_file

        if self.folder is None or key is None or sum(t.nbytes for t in tensors.values()) > self.limit / 10:
            return
        part = self._path(key).with_suffix(f".{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part)
            part.replace(self._path(key))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
        self.trim(self.limit)

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """The files with their sizes and times, those first that were not used for longest."""
        found = []
        for path in self.folder.glob("*.safetensors") if self.folder else ():
            with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                found.append((path, path.stat()))
        return sorted(found, key=lambda entry: entry[1].st_mtime)

    def trim(self, limit: int) -> None:
        """Delete the entries not used for longest until the others take at most `limit` bytes."""
        entries = self.entries()
        excess = sum(stat.st_size for _, stat in entries) - limit
        for path, stat in entries:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= stat.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def default_cache() -> Cache:
    """The cache that the environment asks for.

    Raises
    ------
    InputError
        If ``TOAST_CACHE_GIB`` is not a number.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = os.environ.get("TOAST_CACHE") or str(home / "toastlib")
    try:
        limit = int(float(os.environ.get("TOAST_CACHE_GIB") or 10) * 2**30)
    except ValueError:
        raise InputError(f"TOAST_CACHE_GIB takes a number, not {os.environ['TOAST_CACHE_GIB']!r}.") from None
    return Cache(None if folder == "off" else Path(folder).expanduser(), limit)


def cached(compute: Callable[[], dict[str, Tensor]], *parts: Any) -> dict[str, Tensor]:
    """What `compute` gives, or gave before for the same parts (see `fingerprint`); on the CPU if it was read."""
    cache = default_cache()
    key = fingerprint(*parts) if cache.folder else None
    tensors = cache.get(key)
    if tensors is None:
        tensors = compute()
        cache.put(key, tensors)
    return tensors


def fingerprint(*parts: Any) -> str | None:
    """A key of everything that a result depends on, the code and the device included.

    Parameters
    ----------
    *parts
        Modules (by class, settings and weights), tensors (by dtype, shape, device and bytes), or anything that prints
        as what it is.

    Returns
    -------
    str or None
        `None` if a module is of code whose changes would go unnoticed.
    """
    digest = hashlib.sha256(_code().encode())
    modules = [part for part in parts if isinstance(part, nn.Module)]
    if not all(_is_known(module) for module in modules):
        return None
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


def _is_known(module: nn.Module) -> bool:
    return all(type(part).__module__.partition(".")[0] in PACKAGES for part in module.modules())


@cache
def _code() -> str:
    """Versions, and this library's own source: whoever changes it gets nothing old."""
    from importlib.metadata import version

    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return f"{version('torch')} {version('transformers')} {hashlib.sha256(sources).hexdigest()}"


def _device(device: torch.device) -> str:
    """What the last bits of a result depend on: the model of a GPU, or the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
