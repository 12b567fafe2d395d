"""The folder of a smaller model: the saved model, its card and a report page, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from toastlib.data.images import picture_url
from toastlib.errors import InputError
from toastlib.evaluation.heads import LOST, MEASURES, SHOWN, names_of, new_confusions
from toastlib.models.model_card import change, loading_code, short, task_of
from toastlib.output import writing
from toastlib.translators.base import split_align

if TYPE_CHECKING:
    from toastlib.export.result import CompressionResult

FACTS = "report.json"


def save_compressed(result: CompressionResult, folder: str | Path, *, force: bool = False) -> Path:
    """Write model, card and ``report.html`` to a folder, whole or not at all, and return its path.

    An `InputError` if it cannot be written, or holds anything that toastlib did not write, unless `force`.
    """
    with writing(folder, force=force) as staging:
        head = result.head
        result.encoder.save_pretrained(staging, head=head.module, class_names=names_of(head), card=result.card)
        (staging / "report.html").write_text(report(result), encoding="utf-8")
        (staging / FACTS).write_text(json.dumps(facts(result), indent=1) + "\n", encoding="utf-8")
    return Path(folder).resolve()


def facts(result: CompressionResult) -> dict[str, Any]:
    """What ``report.json`` holds: the model card's facts, the plan, its map, and the points lost."""
    own = {"plan": str(result.plan), "removed": result.removed, "translator": result.translator, "lost": result.lost}
    own["times"] = {batch: result.time(batch) for batch in (*result.card.latency, "pipeline")}
    return own | asdict(result.card)


def compare_folders(folders: Sequence[str | Path]) -> tuple[pd.DataFrame, list[str]]:
    """A column for each folder of `save_compressed`, a row for each fact; and what stands against comparing them."""
    columns, settings = {}, {}
    for folder in map(Path, folders):
        try:
            read = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no {FACTS}: `toast approximate` writes one, of encoders.") from error
        settings[str(folder)] = {name: read[name] for name in ("base", "evaluation", "measure", "device")}
        (before, after), _, weights = read["sizes"]
        rows = {"removed": read["removed"], "plan": read["plan"], "map": read["translator"]}
        for moment in ("before", "after"):
            if read[moment]:
                rows[f"{read['measure']} {moment}"] = "{:.1f} % [{:.1f}, {:.1f}]".format(*read[moment])
        loses = next(LOST[name] for name in LOST if MEASURES[name] == read["measure"])
        rows[loses] = "{:z.1f} [{:z.1f}, {:z.1f}]".format(*read["lost"])
        rows["parameters"] = f"{before:,} to {after:,}"
        rows["MB on disk"] = " to ".join(short(size / 1e6) for size in weights)
        for batch, told in read.get("times", {}).items():  # folders of earlier versions have none
            where = "time per image in a pipeline" if batch == "pipeline" else f"time at batch {batch}"
            rows[where] = ": ".join(told)
        columns[str(folder)] = rows
    settings = pd.DataFrame(settings)
    differing = settings[settings.nunique(axis=1) > 1]
    return pd.concat([pd.DataFrame(columns), differing]).fillna(""), list(differing.index)


def render(template: str, **names: Any) -> str:
    """A page from a template beside this file; what is put into it is escaped."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return templates.get_template(template).render(**names)


def report(result: CompressionResult) -> str:
    """The text of ``report.html``, a page that fetches nothing; names that came from outside are escaped."""
    count, texts = len(result.plan.removed), result.encoder.reads_text
    task = task_of(texts, result.head.module and "base")
    matrix = result.similarity.pivot(index="first", columns="second", values="value").fillna(0)
    return render(
        "report.html",
        title=f"{result.card.base} without {result.removed}",
        result=result,
        translator=split_align(result.translator),
        tiles=_tiles(result),
        block_count=len(result.encoder.blocks) + count - (0 if result.fused else len(result.plan)),
        matrix=matrix,
        least=float(matrix.min().min()),
        code=loading_code("THIS-FOLDER", task, result.fused),
        pictures=[(flip.shown if texts else picture_url(flip.shown, 96), flip) for flip in result.flips[:SHOWN]],
        confusions=new_confusions(result.flips),
    )


def _tiles(result: CompressionResult) -> list[tuple[str, str, str]]:
    """Name, value and note: the measure, and the relative changes of size and time."""
    card, (lost, low, high) = result.card, result.lost
    note = "95 % interval {1:.1f} to {2:.1f}".format(*card.after)
    if card.before:
        note = f"from {card.before[0]:.1f} %: {lost:z.1f} points lost [{low:z.1f}, {high:z.1f}]"
    tiles = [(card.measure, f"{card.after[0]:.1f} %", note)]
    if result.head.measure != "similarity":
        worse, better, changed = result.maps[["worse", "better", "changed"]].iloc[1].astype(int)
        note = f"{worse:,} turn wrong, {better:,} right, {changed - worse - better:,} from wrong to wrong"
        tiles.append(("changed answers", f"{changed:,}", note if card.before else f"of {card.evaluation}"))
    changes = [("on disk", card.sizes.bytes, 1e6, "MB"), ("parameters", card.sizes.parameters, 1e6, "M")]
    if None not in card.sizes.flops:
        changes.append(("operations", card.sizes.flops, 1e9, "GFLOPs"))
    for name, (before, after), scale, unit in changes:
        note = f"{short(before / scale)} to {short(after / scale)} {unit}"
        tiles.append((name, change(before, after).replace("-", "−"), note))
    for size in sorted(card.latency):
        change_in_time, times = result.time(size)
        tiles.append((f"time, batch {size}", change_in_time.replace("-", "−"), f"{times}, measured here"))
    return tiles
