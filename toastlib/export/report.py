"""One page about a smaller model: self-contained HTML, its figures drawn as SVG; nothing is fetched from elsewhere."""

from html import escape

from toastlib.evaluation.heads import MEASURES
from toastlib.export.compress import CompressionResult
from toastlib.translators.base import split_align

MARK = '<meta name="generator" content="toastlib">'
"""Says in the page who wrote its folder: only such a folder is ever replaced."""
STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --ink: #1d2433; --soft: #667085; --line: #e4e2dc;
  --keep: #0072b2; --gone: #d55e00; --track: #ecebe6; --low: 245,243,238; --high: 0,80,140; }
@media (prefers-color-scheme: dark) { :root { --page: #14171d; --card: #1c2129; --ink: #e8eaf0; --soft: #9aa4b5;
  --line: #303743; --keep: #56b4e9; --gone: #f08c4a; --track: #2b323d; --low: 32,37,46; --high: 110,190,240; } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 } h2 { font-size: 1.1rem; margin: 0 0 .8rem }
p { margin: .4rem 0 } .soft { color: var(--soft) } .small { font-size: .85rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.6rem 0 }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.2rem }
section { margin: 1rem 0 } .tile b { display: block; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.02em }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem }
.two section { margin: 0 } .two div section + section { margin-top: 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .38rem .5rem; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft); font-size: .85rem } th:first-child, td:first-child { text-align: left }
tr:last-child td { border-bottom: 0 } svg { display: block; width: 100%; height: auto } svg text { fill: var(--soft) }
.bar { background: var(--track); border-radius: 4px; height: .55rem; margin: .15rem 0; min-width: 7rem }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--soft) }
.bar + .bar i { background: var(--keep) }
pre { background: var(--track); border-radius: 10px; padding: 1rem; white-space: pre-wrap; font-size: .78rem }
@media (max-width: 30rem) { .two { grid-template-columns: 1fr } }
"""


def report(taken: CompressionResult) -> str:
    """The page, as text; every name in it that came from outside is escaped."""
    name, count = taken.card.base, len(taken.plan.removed)
    title = f"{name}, {count} block{'' if count == 1 else 's'} fewer"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Plan {escape(str(taken.plan))}, {_stand_in(taken)}.</p>',
        _tiles(taken),
        _section("Which blocks are gone", _strip(taken)),
        '<div class="two">',
        _section("How alike the blocks are", _matrix(taken)),
        f"<div>{_section('Cost', _costs(taken))}{_section('How to load it', _how_to_load(taken))}</div>",
        "</div>",
        _classes(taken),
        _search(taken),
        _section("How this was measured", _method(taken)),
    ]
    meta = f'<meta charset="utf-8">{MARK}<meta name="viewport" content="width=device-width">'
    head = f"{meta}<title>{escape(title)}</title>"
    body = "\n".join(["<body><main>", *parts, "</main></body>"])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n{body}</html>\n'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _stand_in(taken: CompressionResult) -> str:
    form, align = split_align(taken.translator)
    features = ", and the classifier has taken in a map that brings the features back" if align else ""
    if taken.folded:
        return f"folded into the blocks before: the base architecture with fewer blocks{features}"
    return f"{escape(form)} maps in place of the blocks; every other weight is as it was{features}"


def _tiles(taken: CompressionResult) -> str:
    parameters, operations = taken.counted.parameters, taken.counted.flops
    tiles = [(MEASURES[taken.head.measure], f"{taken.after[0]:.1f} %", _lost(taken))]
    tiles.append(("parameters", f"{_change(*parameters)}", f"{_millions(parameters[0])} to {_millions(parameters[1])}"))
    tiles.append(
        ("operations", f"{_change(*operations)}", f"{operations[0] / 1e9:.3g} to {operations[1] / 1e9:.3g} GFLOPs")
    )
    for size, (before, after) in sorted(taken.card.latency.items()):
        tiles.append((f"time, batch {size}", _change(before, after), f"{before:.3g} to {after:.3g} ms, measured here"))
    cells = "".join(
        f'<div class="tile"><span class="soft small">{label}</span><b>{value}</b>'
        f'<span class="soft small">{note}</span></div>'
        for label, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _lost(taken: CompressionResult) -> str:
    if taken.head.measure != "accuracy":
        return "95 % interval {1:.1f} to {2:.1f}".format(*taken.after)
    lost, low, high = taken.lost
    return f"from {taken.before[0]:.1f} %: {-lost:+.1f} points [{-high:+.1f}, {-low:+.1f}]"


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "−")


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def _strip(taken: CompressionResult) -> str:
    """The original's blocks in a row: kept ones filled, removed ones dashed, an arc over each span."""
    plan = taken.plan
    kept_maps = 0 if taken.folded else len(plan)
    count, size = len(taken.encoder.blocks) - kept_maps + len(plan.removed), 46
    gone, drawn = set(plan.removed), []
    for k in range(count):
        look = (
            'fill="none" stroke="var(--gone)" stroke-dasharray="4 3"'
            if k in gone
            else 'fill="var(--keep)" stroke="none"'
        )
        ink = "var(--gone)" if k in gone else "var(--card)"
        drawn.append(f'<rect x="{20 + k * size}" y="34" width="{size - 8}" height="38" rx="7" {look}/>')
        drawn.append(
            f'<text x="{20 + k * size + (size - 8) / 2}" y="58" text-anchor="middle" font-size="14" '
            f'style="fill:{ink}">{k}</text>'
        )
    for span in plan:
        first, last = 20 + span.start * size + size - 8, 20 + (span.end + 1) * size
        drawn.append(
            f'<path d="M{first} 34 Q{(first + last) / 2} 2 {last} 34" fill="none" '
            'stroke="var(--gone)" stroke-width="2"/>'
        )
    width = 32 + count * size
    note = "Filled blocks are kept as they were; a map carries the states over the dashed ones."
    if taken.encoder.sublayer_split is not None:
        note += " They are sublayers: 2k is the attention of block k, and 2k + 1 its MLP."
    if taken.folded:
        note = "Dashed blocks are gone; the block where an arc begins has taken the map into its weights."
    return (
        f'<svg viewBox="0 0 {width} 80" role="img" aria-label="plan {plan}" style="max-width:{width * 1.3:.0f}px">'
        f"{''.join(drawn)}</svg>"
        f'<p class="soft small">{note}</p>'
    )


def _matrix(taken: CompressionResult) -> str:
    """Linear CKA of all pairs of blocks; the scale ends at the smallest value."""
    table = taken.similarity.pivot(index="first", columns="second", values="value").fillna(0)
    least, size, cells = float(table.min().min()), 24, []
    for row, first in enumerate(table.index):
        for column, second in enumerate(table.columns):
            value = float(table.iloc[row, column])
            share = (value - least) / (1 - least) if least < 1 else 1
            cells.append(
                f'<rect x="{30 + column * size}" y="{10 + row * size}" width="{size - 1}" height="{size - 1}" rx="3" '
                f'style="fill:rgb(var(--low))"/><rect x="{30 + column * size}" y="{10 + row * size}" '
                f'width="{size - 1}" height="{size - 1}" rx="3" style="fill:rgb(var(--high));opacity:{share:.3f}">'
                f"<title>h[{first}], h[{second}]: {value:.3f}</title></rect>"
            )
        middle = 10 + row * size + size / 2 + 4
        cells.append(f'<text x="24" y="{middle}" text-anchor="end" font-size="11">{first}</text>')
        below = 10 + len(table) * size + 14
        cells.append(
            f'<text x="{30 + (row + 0.5) * size}" y="{below}" text-anchor="middle" font-size="11">{first}</text>'
        )
    for span in taken.plan:
        x, y = (30 + (list(table.index).index(block)) * size for block in (span.start, span.end))
        cells.append(
            f'<rect x="{x - 1}" y="{x - 21}" width="{y - x + size}" height="{y - x + size}" rx="4" fill="none" '
            'stroke="var(--gone)" stroke-width="2.5"/>'
        )
    edge = 34 + len(table) * size
    return (
        f'<svg viewBox="0 0 {edge} {edge - 4}" role="img" aria-label="similarity matrix" style="max-width:26rem">'
        f'{"".join(cells)}</svg><p class="soft small">Linear CKA of the outputs of all blocks (-1: the input of block '
        f"0), from {least:.2f} (faint) to 1; the plan's spans are framed.</p>"
    )


def _costs(taken: CompressionResult) -> str:
    rows = [("parameters", *(f"{value:,}" for value in taken.counted.parameters))]
    rows.append(("GFLOPs per image", *(f"{value / 1e9:.3g}" for value in taken.counted.flops)))
    rows.append((MEASURES[taken.head.measure], f"{taken.before[0]:.2f} %", f"{taken.after[0]:.2f} %"))
    rows.append(("95 % interval", *("{1:.1f} to {2:.1f}".format(*one) for one in (taken.before, taken.after))))
    for size, times in sorted(taken.card.latency.items()):
        rows.append((f"ms per batch of {size}", *(f"{value:.3g}" for value in times)))
    return _table(["", "original", "this model"], rows)


def _table(header: list[str], rows: list[tuple]) -> str:
    top = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _classes(taken: CompressionResult) -> str:
    if taken.classes is None:
        return ""
    worst_first = taken.classes.assign(delta=taken.classes["after"] - taken.classes["before"]).sort_values("delta")
    rows = [
        (
            escape(str(row["class"])),
            row["images"],
            _bars(row),
            f"{row['before']:.1f}",
            f"{row['after']:.1f}",
            f"{row['delta']:+.1f}",
        )
        for row in worst_first.to_dict("records")
    ]
    table = _table(["class", "images", "original above, this model below", "original", "this model", "points"], rows)
    return _section("Accuracy by class", f'<div style="overflow-x:auto">{table}</div>')


def _bars(row: dict) -> str:
    return "".join(f'<div class="bar"><i style="width:{row[kind]:.1f}%"></i></div>' for kind in ("before", "after"))


def _search(taken: CompressionResult) -> str:
    if not len(taken.search):
        return ""
    taken_plan = str(taken.plan)
    cells = [
        (row.removed, escape(row.plan) + (" (taken)" if row.plan == taken_plan else ""), f"{row.lost:+.1f}")
        for row in taken.search.itertuples()
    ]
    note = "Tried on training images that neither maps nor head had seen; the test images took no part."
    return _section(
        "How many blocks could go",
        _table(["blocks removed", "plan", "points lost"], cells) + f'<p class="soft small">{note}</p>',
    )


def _how_to_load(taken: CompressionResult) -> str:
    auto = "AutoModel" if taken.head.module is None else "AutoModelForImageClassification"
    task = "image-feature-extraction" if taken.head.module is None else "image-classification"
    first = "" if taken.folded else "import toastlib  # or, without it: trust_remote_code=True\n"
    code = f"""{first}from transformers import {auto}, pipeline

model = {auto}.from_pretrained("THIS-FOLDER")
answers = pipeline("{task}", "THIS-FOLDER")("image.png")"""
    onnx = "" if taken.folded else '<p class="soft small">As ONNX: <code>toast export THIS-FOLDER --onnx</code></p>'
    return f"<pre>{escape(code)}</pre>{onnx}"


def _method(taken: CompressionResult) -> str:
    card, probe = taken.card, type(taken.head.module).__name__ == "Probe"
    heads = {
        "accuracy": "A linear head was trained on the original's features of the training images and then frozen."
        if probe
        else "The checkpoint's own classifier was kept.",
        "agreement": "The images have no labels: agreement is the share of images that both models call alike.",
        "similarity": "There are neither labels nor a classifier: the features of both models are compared.",
    }
    lines = [
        f"Maps were fitted on {escape(card.calibration)}; the measure is of {escape(card.evaluation)}.",
        heads[taken.head.measure],
        f"Time is the median of rounds in which both models take turns, on {escape(card.device)}.",
    ]
    return "".join(f"<p>{line}</p>" for line in lines)
