"""What the runs of a grid need from the Hub, brought into the caches for machines without a network."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from toastlib.data import catalog
from toastlib.data.sources import is_streamed, load_splits
from toastlib.errors import InputError
from toastlib.models.quiet import find_checkpoint
from toastlib.runs.sizes import named_in
from toastlib.runs.store import Run


def needed(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Kind and name, see `named_in`, of each model and data set that runs name."""
    return sorted({pair for run in runs for pair in named_in(run.parameters)})


def fetch_all(names: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int | None, InputError | None]]:
    """Bring models and data sets into the caches; yield kind, name, bytes on disk, and why one could not be fetched.

    Bytes are 0 for what is embedded or lies in a folder, and `None` where an error is given.
    """
    for kind, name in names:
        try:
            yield kind, name, _fetch_model(name) if kind == "model" else _fetch_data(kind, name), None
        except InputError as error:
            yield kind, name, None, error


def _fetch_model(name: str) -> int:
    from huggingface_hub import snapshot_download

    found = name if catalog.model_path(name) in catalog.MODELS else find_checkpoint(name)
    if found == name or Path(found).is_dir():
        return 0
    hub_id, commit = catalog.split_revision(found)
    folder = snapshot_download(hub_id, revision=commit, local_files_only=True)
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _fetch_data(kind: str, name: str) -> int:
    entry = catalog.dataset_entry(name, catalog.TEXTS if kind == "texts" else catalog.DATASETS)
    if entry.path is None or Path(entry.path).is_dir():
        return 0
    rows = next(iter(load_splits(entry).values()))
    if is_streamed(rows):
        raise InputError(f"{name} is streamed while a run goes on, and not cached: take a folder where no network is.")
    return rows.info.size_in_bytes
