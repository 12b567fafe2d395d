"""Moments and features of large image sets, collected in shards by parallel workers and merged.

Shard (k, n) holds every n-th of the drawn images, from the k-th on. Existing shards are kept: a killed job goes on,
and several machines may fill one shared folder.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from toastlib.approximation.engine import THE_ORIGINAL, collect_features
from toastlib.cache import fingerprint, write_whole
from toastlib.data.images import load_split
from toastlib.errors import InputError
from toastlib.models.loading import load_encoder
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments

FEATURES = "features"
LABELS = "labels"


@dataclass(frozen=True)
class ShardedJob:
    """Settings of all shards, as for `load_encoder`, `load_images` and `collect_moments`."""

    model: str
    data: str
    split: str = "train"
    size: int | None = None  # images drawn from the split; all of them if None
    seed: int = 0
    tokens: str = "all"
    batch_size: int = 32
    features: bool = False  # keep the original's features too, with the labels
    device: str = "cpu"


def collect_shards(
    job: ShardedJob, shards: int, folder: str | Path, *, run: Callable[[Iterable], Iterable] | None = None
) -> Path:
    """Collect moments of all images of a job; they equal one worker's except for the rounding of sums.

    `folder` gets the shards, ``shard-0-of-4.safetensors`` and so on, and their sum, ``moments.safetensors``, which is
    returned; with features it also holds ``features``, float32, (images, width), and ``labels``, int64, (images,), in
    the images' order. `run` executes joblib's delayed calls; by default in this process. An `InputError` if there are
    fewer images than shards, or the folder holds shards of another job.
    """
    if shards < 1:
        raise InputError(f"{shards} shards cannot be made: take one or more.")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"shard-{k}-of-{shards}.safetensors" for k in range(shards)]
    missing = [(k, file) for k, file in enumerate(files) if not _is_complete(file, job)]
    _is_complete(folder / "moments.safetensors", job)  # another job's is not replaced
    list((run or Parallel(n_jobs=1))(delayed(write_shard)(job, (k, shards), file) for k, file in missing))
    write_whole(folder / "moments.safetensors", _merged(files), {"job": fingerprint(job)})
    return folder / "moments.safetensors"


def load_moments(file: str | Path) -> Moments:
    """Load the moments in a file that ``toast moments`` wrote, float64 on the CPU; InputError if it holds none."""
    tensors = _read(file)
    if "cosines" not in tensors:
        raise InputError(f"{file} holds no moments.")
    return Moments.from_tensors(tensors)


def write_shard(job: ShardedJob, shard: tuple[int, int], file: Path) -> None:
    """Collect shard (k, n) and write it, whole or not at all."""
    encoder = load_encoder(job.model, device=job.device)
    images = load_split(job.data, encoder, job.split, size=job.size, seed=job.seed, shard=shard)
    tensors = collect_moments(encoder, images, folds=0, tokens=job.tokens, batch_size=job.batch_size).tensors()
    if job.features:
        tensors[FEATURES] = collect_features(encoder, images, [THE_ORIGINAL], {}, job.batch_size)[0]
        tensors |= {} if images.labels is None else {LABELS: images.labels}
    write_whole(file, tensors, {"job": fingerprint(job)})


def _read(file: str | Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no file that toast moments wrote: {error}.") from error


def _merged(files: list[Path]) -> dict[str, Tensor]:
    """Sum of the shards' moments, one shard in memory at a time; features and labels in the order of the images."""
    total, parts = None, {FEATURES: [], LABELS: []}
    for tensors in map(_read, files):
        for name in parts.keys() & tensors:
            parts[name].append(tensors[name])
        moments = Moments.from_tensors(tensors)
        total = moments if total is None else total.merge(moments)
    # Row i is in shard i % n: the first rows of all shards come first, and shorter shards are padded at the end.
    dealt = {name: pad_sequence(shards).flatten(0, 1) for name, shards in parts.items() if shards}
    return total.tensors() | {name: rows[: sum(map(len, parts[name]))] for name, rows in dealt.items()}


def _is_complete(file: Path, job: ShardedJob) -> bool:
    """The file is this job's shard; a damaged one is collected again, and another job's raises InputError."""
    try:
        with safe_open(file, "pt") as opened:
            key = (opened.metadata() or {}).get("job")
    except (OSError, SafetensorError):
        return False
    if key != fingerprint(job):
        raise InputError(f"{file} is of another job or another version: name another folder, or delete it.")
    return True
