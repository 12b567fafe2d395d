"""The folder of a smaller model: the saved model, its card and a report page, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

from toastlib.errors import InputError
from toastlib.evaluation.heads import names_of
from toastlib.models.layers import CODE
from toastlib.models.model_card import loading_code
from toastlib.translators.base import split_align

if TYPE_CHECKING:
    from toastlib.export.compress import CompressionResult

MARK = '<meta name="generator" content="toastlib">'
"""Part of every report page: only a folder whose page has it is ever replaced."""
WRITTEN = (
    *("README.md", "config.json", "preprocessor_config.json", "report.html", "*.onnx*"),
    *("model*.safetensors", "model.safetensors.index.json", *CODE, "parting.py"),  # earlier versions wrote parting.py
)
"""Names of the files in such a folder."""
HEADS = {
    "accuracy": "The checkpoint's own classifier was kept.",
    "agreement": "The images have no labels: agreement is the share of images that both models call alike.",
    "similarity": "There are neither labels nor a classifier: the features of both models are compared.",
}


def save_compressed(result: CompressionResult, folder: str | Path) -> Path:
    """Write model, card and ``report.html`` to a folder next to `folder`, which then takes its place and is returned.

    An `InputError` unless the folder is missing, empty, or an earlier one of these, and can be written.
    """
    folder = check_folder(folder)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    earlier = staging.with_name(f"{staging.name}.old")
    try:
        head = result.head
        result.encoder.save_pretrained(staging, head=head.module, class_names=names_of(head), card=result.card)
        (staging / "report.html").write_text(report(result), encoding="utf-8")
        staging.chmod(0o755)  # mkdtemp's are for their owner alone
        if folder.exists():
            folder.rename(earlier)
        staging.rename(folder)
    except BaseException:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    return folder


def check_folder(folder: str | Path, *inputs: str | Path) -> Path:
    """Return the resolved folder if `save_compressed` may write it: it is new, empty, or its own; its parents are made.

    Weights alone may be somebody's only copy: a folder is replaced only if its ``report.html`` is one of toastlib's,
    and no other file has been added, and if it neither holds nor lies in one of `inputs` (the model, the data set).
    """
    folder = Path(folder).resolve()
    for source in (Path(str(name).partition(":")[0]).resolve() for name in inputs):
        if source.is_dir() and (folder == source or folder in source.parents or source in folder.parents):
            raise InputError(f"{folder} would overwrite {source}, which is read: name another --out.")
    contents = [folder] if folder.is_file() else list(folder.iterdir()) if folder.exists() else []
    for path in contents:
        if path == folder or not path.is_file() or not any(map(path.match, WRITTEN)):
            raise InputError(f"{folder} holds more than a smaller model ({path.name}): name another --out.")
    page = folder / "report.html"
    if contents and not (page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{folder} was not written by `toast approximate`: name another --out.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder}: {error.strerror}.") from error
    return folder


def report(result: CompressionResult) -> str:
    """The text of ``report.html``, a page that fetches nothing; names that came from outside are escaped."""
    count, with_head = len(result.plan.removed), result.head.module is not None
    head = HEADS[result.head.measure]
    if type(result.head.module).__name__ == "Probe":
        head = "A linear head was trained on the original's features of the training images and then frozen."
    matrix = result.similarity.pivot(index="first", columns="second", values="value").fillna(0)
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return templates.get_template("report.html").render(
        title=f"{result.card.base}, {count} block{'' if count == 1 else 's'} fewer",
        result=result,
        card=result.card,
        translator=split_align(result.translator),
        tiles=_tiles(result),
        block_count=len(result.encoder.blocks) + count - (0 if result.fused else len(result.plan)),
        matrix=matrix,
        least=float(matrix.min().min()),
        code=loading_code("THIS-FOLDER", with_head, result.fused),
        classes=result.classes,
        head=head,
    )


def _tiles(result: CompressionResult) -> list[tuple[str, str, str]]:
    """Name, value and note: the measure, and the relative changes of size and time."""
    card, (lost, low, high) = result.card, result.lost
    change = f"from {card.before[0]:.1f} %: {-lost:+.1f} points [{-high:+.1f}, {-low:+.1f}]"
    if result.head.measure != "accuracy":
        change = "95 % interval {1:.1f} to {2:.1f}".format(*card.after)
    tiles = [(card.measure, f"{card.after[0]:.1f} %", change)]
    changes = [("parameters", card.sizes.parameters, 1e6, "M"), ("operations", card.sizes.flops, 1e9, "GFLOPs")]
    changes += [(f"time, batch {size}", times, 1, "ms, measured here") for size, times in sorted(card.latency.items())]
    for name, (before, after), scale, unit in changes:
        percent = f"{100 * (after / before - 1):+.0f} %".replace("-", "−")
        tiles.append((name, percent, f"{before / scale:.3g} to {after / scale:.3g} {unit}"))
    return tiles
