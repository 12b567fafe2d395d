"""The pages of a collection of runs: an index, and each executed notebook; small HTML that needs no network."""

from html import escape
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from toastlib.runs.states import FIXED, STATES, describe

if TYPE_CHECKING:
    import pandas as pd

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --ink: #1d2433; --soft: #667085; --line: #e4e2dc;
  --done: #00795c; --failed: #c04a00; --running: #0072b2; --missing: #667085 }
@media (prefers-color-scheme: dark) { :root { --page: #14171d; --card: #1c2129; --ink: #e8eaf0; --soft: #9aa4b5;
  --line: #303743; --done: #3ec79b; --failed: #f08c4a; --running: #56b4e9; --missing: #9aa4b5 } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem } h1 { font-size: 1.8rem; margin: 0 0 .6rem }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem } a { color: var(--running) } .soft { color: var(--soft) }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 } .tile b { display: block; font-size: 1.75rem }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: .7rem 1.2rem }
.tile { min-width: 8rem } .table { overflow-x: auto } .runs { width: 100%; border-collapse: collapse }
th, td { padding: .38rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
.dataframe { border-collapse: collapse; border: 0 } .dataframe th, .dataframe td { border-width: 0 0 1px }
th { color: var(--soft); font-size: .85rem } .number { text-align: right } td { font-variant-numeric: tabular-nums }
.done { color: var(--done) } .failed { color: var(--failed) }
.running { color: var(--running) } .missing { color: var(--missing) }
.figures { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; max-width: 22rem }
figcaption, code, pre { font-size: .85rem } img { max-width: 100%; background: #fff; border-radius: 8px }
.cell { margin: .8rem 0 } .prompt { color: var(--soft); font: .75rem monospace } .anchor-link { display: none }
.input pre, .output_stream pre, .output_error pre { margin: 0; padding: .7rem; border-radius: 8px; overflow-x: auto;
  background: var(--card); border: 1px solid var(--line) } .output_error pre { border-color: var(--failed) }
.ansi-red-fg { color: var(--failed) } .ansi-green-fg { color: var(--done) } .highlight .c1 { color: var(--soft) }
.highlight .k, .highlight .kn { color: var(--running) } .highlight .s2 { color: var(--done) }
"""


def index_page(title: str, states: "pd.DataFrame", figures: dict[str, list[str]]) -> str:
    """The index: how many runs stand how, the failures with their reasons, all runs, and their figures.

    Parameters
    ----------
    title
        Its heading.
    states
        What `run_states` returns.
    figures
        Run -> the names of its pictures, under ``runs/<run>/``.
    """
    counts = states["state"].value_counts()
    tiles = "".join(
        f'<div class="tile"><b class="{state}">{counts.get(state, 0)}</b><span class="soft">{state}</span></div>'
        for state in STATES
    )
    failed = states[states["state"] == "failed"]
    parts = [
        f'<h1>{escape(title)}</h1><div class="tiles">{tiles}</div>',
        '<p>All results in one table: <a href="results.parquet">results.parquet</a>, '
        '<a href="results.csv">results.csv</a>. How each run ended: <a href="runs.csv">runs.csv</a>.</p>',
        _failures(failed) if len(failed) else "",
        _runs(states),
        _figures(states, figures),
    ]
    return _page(title, "\n".join(parts))


def notebook_page(notebook: Path, row: "pd.Series") -> str:
    """An executed notebook as a page, its pictures inside; `row` is the run's of `run_states`."""
    import nbformat
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.read(notebook, 4))
    why = f'<p class="failed">{escape(describe(row))}</p>' if row["state"] == "failed" else ""
    file = f'<a href="{quote(notebook.name)}">{escape(notebook.name)}</a>'
    links = f'<p><a href="../../index.html">All runs</a> · {file}</p>'
    return _page(row["run"], f"{links}{why}{body}")


def _failures(failed: "pd.DataFrame") -> str:
    rows = "".join(
        f'<tr><td>{_link(row)}<br><span class="soft">{_told(row)}</span></td>'
        f'<td class="failed">{escape(describe(row))}</td></tr>'
        for _, row in failed.iterrows()
    )
    return f'<h2>Failures</h2><table class="runs"><tr><th>run</th><th>what happened</th></tr>{rows}</table>'


def _runs(states: "pd.DataFrame") -> str:
    knobs = [name for name in states if name not in FIXED]
    head = '<th>run</th><th>state</th><th class="number">seconds</th><th>host</th>'
    head += "".join(f"<th>{escape(name)}</th>" for name in knobs)
    rows = "".join(_run(row, knobs) for _, row in states.iterrows())
    return f'<h2>Runs</h2><div class="table"><table class="runs"><tr>{head}</tr>{rows}</table></div>'


def _run(row: "pd.Series", knobs: list[str]) -> str:
    seconds = "" if isnan(row["seconds"]) else f"{row['seconds']:.1f}"
    told = "".join(f"<td>{escape(str(row[name]))}</td>" for name in knobs)
    return (
        f'<tr><td>{_link(row)}</td><td class="{row["state"]}">{row["state"]}</td>'
        f'<td class="number">{seconds}</td><td>{escape(row["host"])}</td>{told}</tr>'
    )


def _figures(states: "pd.DataFrame", figures: dict[str, list[str]]) -> str:
    drawn = [
        _figure(row, name)
        for _, row in states.iterrows()
        for name in figures.get(row["run"], [])
        if name.endswith(".png")
    ]
    return f'<h2>Figures</h2><div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _figure(row: "pd.Series", name: str) -> str:
    file, title = quote(f"runs/{row['run']}/{name}"), escape(Path(name).stem)
    picture = f'<a href="{file}"><img loading="lazy" src="{file}" alt="{title} of {escape(row["run"])}"></a>'
    return f"<figure>{picture}<figcaption>{title} of {_link(row)} {_told(row)}</figcaption></figure>"


def _told(row: "pd.Series") -> str:
    """The parameters that tell a run from the others."""
    return escape(", ".join(f"{name}={row[name]}" for name in row.index if name not in FIXED))


def _link(row: "pd.Series") -> str:
    name = escape(row["run"])
    return f'<a href="{quote("runs/" + row["run"] + "/index.html")}">{name}</a>' if row["path"] else name


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f"<body><main>{body}</main></body>"
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n{body}</html>\n'
