"""What runs take, beforehand: seconds, memory, disk and downloads, without a kernel.

``data/prices.json`` holds what each notebook of the study took with its default parameters, by kinds of work that grow
with different parameters. A run takes as much more of each kind as it asks for, at the speed of this machine, which a
few batches of the run's encoder measure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toastlib.data import catalog
from toastlib.plan import Plan, Span
from toastlib.runs.collect import run_labels
from toastlib.runs.parameters import defaults
from toastlib.runs.sizes import by_last_name, listed, named_in, sets_of, splits_of
from toastlib.runs.speed import HUB_TIMEOUT, STANDARD, Speed, hub_path, measure_encoders
from toastlib.runs.store import Run, read_json

PRICES = catalog.DATA / "prices.json"  # `python -m benchmarks.estimate --measure` writes it
OF_ENCODER = ("plans", "encoding", "few images", "moments", "choice", "timing", "training")
"""Kinds of work that take as long as the encoder's blocks do; the others are Python's."""
COUNTED = "model image_size dtype device dataset datasets others train_size test_size images calibration_size rerank "
COUNTED += (
    "calibration_sizes calibration_seeds plan plans translators protocol seeds min_steps steps repeats batch_size"
)
FREE = "results_dir runs_dir features learning_rate seed calibration_seed prompt templates"
"""Parameters that `amounts` or a speed depends on, and those that change nothing that takes time."""


@dataclass(frozen=True)
class Estimate:
    """What one run takes; sizes in bytes."""

    seconds: float
    memory: float  # at the peak
    disk: float  # the run's folder
    cache: float  # features kept beside it
    notes: tuple[str, ...] = ()  # what is a guess, or not counted


def block_runs(plans: Iterable[Plan], depth: int) -> int:
    """Blocks that run for one image: plans, and the original, share a block that comes behind the same spans."""
    runs = {
        (block, tuple(span for span in plan if span.end < block))
        for plan in [Plan(), *plans]
        for block in set(range(depth)) - set(plan.removed)
    }
    return len(runs)


def amounts(parameters: dict[str, Any], depth: int, width: int) -> dict[str, float]:
    """Kind of work -> how much of it a notebook's parameters ask of an encoder, in a unit of each kind."""
    from toastlib.paper import read_plans

    given = by_last_name(parameters)
    sets = sets_of(parameters)
    sets = sets if {"plans", "dataset"} & set(given) else sets[:1]  # 01 has accuracies of the first
    sizes_of = [splits_of(name) or (0, 0) for name in sets]  # of a set that is not here, of which all are asked for: 0
    train = sum(given.get("train_size") or size for size, *_ in sizes_of)
    test = sum(given.get("test_size") or size for _, size, *_ in sizes_of)
    text = given.get("plans", given.get("plan", ""))
    plans = read_plans(text, depth) if text else [Plan((Span(k, k + 1),)) for k in range(depth - 1)]
    draws, sizes = len(given.get("calibration_seeds", "1")), given.get("calibration_sizes", [])
    drawn = max([*sizes, given.get("calibration_size", given.get("images", 0))]) * draws * max(1, len(sets))
    # Maps of each size and draw, or of each set, run on all images.
    kinds = len(given.get("translators", ())) or 1 + draws * len(sizes or (sets if "datasets" in given else "1"))
    runs = depth + (block_runs(plans, depth) - depth) * kinds
    retrained = "retrained" in listed(given.get("protocol"))
    seeds, maps = given.get("seeds", 1), len({span for plan in plans for span in plan}) * kinds
    seeds = len(seeds) if isinstance(seeds, list) else seeds
    features = (1 + len(plans) * kinds) * (train * retrained + test) + train * (not retrained)
    return {
        "plans": train * (runs if retrained else depth) + test * runs,
        "encoding": (train + test) * depth,
        "few images": depth,  # which a notebook takes however many are asked for
        "moments": drawn * depth,
        "choice": given.get("rerank", train) * depth,
        "timing": len(plans) * given.get("repeats", 1) * given.get("batch_size", 1) * depth,
        "training": max([1, *listed(given.get("steps"))]) * seeds * depth,
        "trained maps": drawn * maps * width**2,
        "maps": maps * width**3,
        "heads": (1 + len(plans) * kinds * retrained) * seeds * max(given.get("min_steps", 1), train // 51) * width,
        "images": train + test,
        "features": features * width * 4,  # bytes
        "sums": 60 * depth**2 * width**2,  # bytes: of depth^2 / 2 pairs of blocks, five folds, three kinds of tokens
    }


def estimate(runs: Sequence[Run], jobs: int = 1, *, measured: bool = True) -> list[Estimate | None]:
    """Estimate each run, `jobs` of them side by side; `None` for a notebook that is not in `PRICES`.

    Unless `measured`, times are those of the machine and encoder that `PRICES` were made with.
    """
    prices = read_json(PRICES)
    costs, standard = [prices["notebooks"].get(run.notebook.stem) for run in runs], Speed(**prices["speed"])
    encoders = {_encoder_of(run): run.plugins for run, cost in zip(runs, costs, strict=True) if cost}
    speeds = measure_encoders(encoders, jobs) if measured else dict.fromkeys(encoders, standard)
    return [cost and _estimate(run, cost, speeds[_encoder_of(run)], standard) for run, cost in zip(runs, costs)]


class TimeLeft:
    """Time that is left of runs: their estimates, at the pace of those that have ended.

    Only runs of several encoders are measured for, which takes seconds. Else nothing is said before a run has ended.
    """

    def __init__(self, waiting: Sequence[Run], jobs: int) -> None:
        measured = len(set(map(_encoder_of, waiting))) > 1
        estimates = estimate(waiting, jobs, measured=measured)
        known = [one.seconds for one in estimates if one]
        usual = sum(known) / len(known) if known else 1.0
        self.jobs, self.pace = jobs, 1.0 if known and measured else None
        self.left = {run.folder: one.seconds if one else usual for run, one in zip(waiting, estimates, strict=True)}
        self._ended = self._took = 0.0

    def finish(self, run: Run, seconds: float) -> None:
        """Count a run that has ended, and the seconds that it took."""
        self._ended += self.left.pop(run.folder, 0)
        self._took += seconds
        self.pace = self._took / self._ended if self._ended else self.pace

    def __str__(self) -> str:
        if not self.left or self.pace is None:
            return ""
        return f"; about {duration(self.pace * shared(self.left.values(), self.jobs))} left"


def shared(seconds: Iterable[float], jobs: int) -> float:
    """Seconds until runs are done: in their order, each begins as soon as one of the jobs is free."""
    ends = [0.0] * jobs
    for one in seconds:
        ends[ends.index(min(ends))] += one
    return max(ends)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def report(runs: Sequence[Run], jobs: int) -> list[str]:
    """Lines about each run, about all of them side by side, and about downloads."""
    lines, known = [] if runs else ["Nothing is to be run: every run is done."], []
    for label, one in zip(run_labels(runs), estimate(runs, jobs), strict=True):
        if one is None:
            lines.append(f"{label}: not estimated, as no run of this notebook was measured")
        else:
            known.append(one)
            sizes = _sizes(one.memory, one.disk, one.cache)
            lines.append("; ".join([f"{label}: {duration(one.seconds)}, {sizes}", *one.notes]))
    if known:
        memory = sum(sorted(one.memory for one in known)[-jobs:])
        sizes = _sizes(memory, sum(one.disk for one in known), sum(one.cache for one in known))
        seconds = duration(shared((one.seconds for one in known), jobs))
        lines.append(f"In all {seconds}, {min(jobs, len(known))} at a time: {sizes}")
    missing = [f"{name} ({_size(size) if size else 'size unknown'})" for name, size in downloads(runs).items()]
    return [*lines, f"To download: {', '.join(missing) or 'nothing'}"]


def _sizes(memory: float, disk: float, cache: float) -> str:
    return f"{_size(memory)} of memory, {_size(disk)} of results, {_size(cache)} of features in the cache"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count > 2**30 else f"{count / 2**20:.0f} MiB"


def _encoder_of(run: Run) -> tuple[str, tuple[tuple[str, Any], ...]]:
    options = {name.removeprefix("options."): value for name, value in run.parameters.items()}
    options = {name: options[name] for name in ("image_size", "dtype", "device") if name in options}
    return options.get("model", run.parameters.get("model", STANDARD)), tuple(options.items())


def _estimate(run: Run, price: dict[str, Any], speed: Speed, standard: Speed) -> Estimate:
    usual, seconds = defaults(run.notebook), 0.0
    asked, before = (
        amounts(parameters, one.depth, one.width) for parameters, one in ((run.parameters, speed), (usual, standard))
    )
    for kind, took in price["seconds"].items():
        share = asked[kind] / before[kind] if before.get(kind) else 1
        slower = speed.block / standard.block if kind in OF_ENCODER else speed.python / standard.python
        seconds += took * share * slower
    more = sum(asked[kind] - before[kind] for kind in ("features", "sums")) + 2 * (speed.weights - standard.weights)
    notes = [f"not counted: {', '.join(odd)}"] if (odd := _uncounted(run)) else []
    notes += [speed.source] * (speed.source != "measured")
    return Estimate(seconds, price["memory"] + max(more, 0), price["disk"], asked["features"], tuple(notes))


def _uncounted(run: Run) -> list[str]:
    """The parameters that a run changes and no amount of work depends on, and the sets whose size is not known."""
    usual, known = defaults(run.notebook), f"{COUNTED} {FREE}".split()
    changed = [name for name, value in run.overrides.items() if value != usual[name]]
    whole = not all(value for name, value in run.parameters.items() if name.endswith(("train_size", "test_size")))
    unknown = [f"the images of {name}" for name in sets_of(run.parameters) if whole and not splits_of(name)]
    return [name for name in changed if name.rpartition(".")[2] not in known] + unknown


def downloads(runs: Iterable[Run]) -> dict[str, int | None]:
    """Models and data sets of the Hub that runs would fetch -> bytes; `None` where the Hub does not say."""
    named = dict.fromkeys(pair for run in runs for pair in named_in(run.parameters))
    return {name: _size_on_hub(kind, path) for kind, name in named if (path := hub_path(kind, name))}


def _size_on_hub(kind: str, path: str) -> int | None:
    from huggingface_hub import HfApi

    ask, ends = HfApi().dataset_info, (".parquet", ".zip", ".gz")
    if kind == "model":
        ask, ends = HfApi().model_info, (".safetensors", ".json")
    name, revision = catalog.split_revision(path)
    try:
        files = ask(name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT).siblings
    except Exception:  # no network, no such repository, or no access: of a dozen kinds
        return None
    return sum(file.size or 0 for file in files if file.rfilename.endswith(ends)) or None
