"""Moments and features of large image sets: collected in shards by workers of their own, kept as they come, merged.

Shard k of n holds every n-th of the drawn images, from the k-th on. A shard that is there already is read; so a job
that was killed goes on where it stopped, and shards may be made on different machines that share the folder.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from toastlib.approximation.engine import Variant, collect_features
from toastlib.cache import fingerprint
from toastlib.data.images import load_split
from toastlib.errors import InputError
from toastlib.models.loading import load_encoder
from toastlib.plan import ORIGINAL, Plan
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments

FEATURES = "features"
LABELS = "labels"


@dataclass(frozen=True)
class ShardedJob:
    """What all shards have in common.

    Parameters
    ----------
    model, data
        As for `toastlib.load_encoder` and `toastlib.load_images`.
    split, size, seed
        Which images: so many of ``"train"`` or ``"test"``, drawn by the seed; all of them if `size` is `None`.
    tokens, batch_size
        As for `toastlib.collect_moments`.
    features
        Whether the original's features are kept too, with the labels.
    device
        Of the encoder.
    """

    model: str
    data: str
    split: str = "train"
    size: int | None = None
    seed: int = 0
    tokens: str = "all"
    batch_size: int = 32
    features: bool = False
    device: str = "cpu"


def collect_shards(
    job: ShardedJob, shards: int, folder: str | Path, run: Callable[[Iterable], Iterable] | None = None
) -> Path:
    """Moments of all images of a job, equal to one worker's but for the rounding of sums.

    Parameters
    ----------
    job
        What is collected.
    shards
        How many parts the images are dealt into.
    folder
        Where the shards are kept, ``shard-0-of-4.safetensors`` and so on, and what they merge to,
        ``moments.safetensors``.
    run
        Runs delayed calls, such as a `joblib.Parallel`; one after the other in this process if `None`.

    Returns
    -------
    Path
        The merged file, for `load_moments` and `load_features`.

    Raises
    ------
    InputError
        If there are fewer images than shards, or the folder holds shards of another job.
    """
    from joblib import delayed

    if shards < 1:
        raise InputError(f"{shards} shards cannot be made: take one or more.")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"shard-{k}-of-{shards}.safetensors" for k in range(shards)]
    missing = [(k, file) for k, file in enumerate(files) if not _is_there(file, job)]
    calls = (delayed(write_shard)(job, k, shards, file) for k, file in missing)
    for _ in run(calls) if run else (function(*args) for function, args, _ in calls):
        pass
    _write(folder / "moments.safetensors", _merged(files), job)
    return folder / "moments.safetensors"


def load_moments(file: str | Path) -> Moments:
    """The moments in a file that `collect_shards` or ``toast moments`` wrote.

    Parameters
    ----------
    file
        ``moments.safetensors``, or one of the shards.

    Returns
    -------
    Moments
        float64, on the CPU.

    Raises
    ------
    InputError
        If it is no such file.
    """
    kept = _read(file)
    if "cosines" not in kept:
        raise InputError(f"{file} holds no moments.")
    return Moments.from_tensors(kept)


def load_features(file: str | Path) -> tuple[Tensor, Tensor | None]:
    """The features in such a file, float32, (images, width), and the labels, int64, (images,), in the images' order.

    Parameters
    ----------
    file
        As for `load_moments`.

    Returns
    -------
    tuple
        Features, shape (images, width), and labels, shape (images,), or `None`.

    Raises
    ------
    InputError
        If it is no such file, or was written without features.
    """
    kept = _read(file)
    if FEATURES not in kept:
        raise InputError(f"{file} holds no features: they are kept with --features.")
    return kept[FEATURES], kept.get(LABELS)


def write_shard(job: ShardedJob, k: int, shards: int, file: Path) -> None:
    """Collect shard `k` of `shards` and write it, whole or not at all."""
    encoder = load_encoder(job.model, device=job.device)
    images = load_split(job.data, encoder, job.split, size=job.size, seed=job.seed, shard=(k, shards))
    kept = collect_moments(encoder, images, tokens=job.tokens, batch_size=job.batch_size).tensors()
    if job.features:
        kept[FEATURES] = collect_features(encoder, images, [Variant(Plan(), ORIGINAL)], {}, job.batch_size)[0]
        kept |= {} if images.labels is None else {LABELS: images.labels}
    _write(file, kept, job)


def _write(file: Path, kept: dict[str, Tensor], job: ShardedJob) -> None:
    from safetensors.torch import save_file

    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, part, {"job": _key(job)})
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _read(file: str | Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no file that toast moments wrote: {error}.") from error


def _merged(files: list[Path]) -> dict[str, Tensor]:
    """Moments added up, one shard in memory at a time; features and labels in the order of the images."""
    total, rows = None, {FEATURES: [], LABELS: []}
    for kept in map(_read, files):
        for name, parts in rows.items():
            parts += [kept[name]] if name in kept else []
        moments = Moments.from_tensors(kept)
        total = moments if total is None else total.merge(moments)
    return total.tensors() | {name: _dealt(parts) for name, parts in rows.items() if parts}


def _dealt(parts: list[Tensor]) -> Tensor:
    """Rows in the order that they were dealt from: row i lies in part ``i % len(parts)``."""
    rows = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for k, part in enumerate(parts):
        rows[k :: len(parts)] = part
    return rows


def _is_there(file: Path, job: ShardedJob) -> bool:
    """Whether a file is this job's shard; what is damaged is made anew.

    Raises
    ------
    InputError
        If it is another job's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            key = (opened.metadata() or {}).get("job")
    except (OSError, SafetensorError):
        return False
    if key != _key(job):
        raise InputError(f"{file} is of another job or another version: name another folder, or delete it.")
    return True


def _key(job: ShardedJob) -> str:
    return fingerprint(repr(job)) or ""
