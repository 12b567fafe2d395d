"""The course: all commands, slides that show the notebooks' own outputs, reading times, the citation."""

import base64
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest
import yaml

from toastlib.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def script(name):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_every_command_of_the_help_is_on_the_page_with_all_its_options():
    asked = subprocess.run([sys.executable, "-m", "toastlib.cli", "--help"], capture_output=True, text=True, check=True)
    named = re.findall(r"^    ([a-z]+)(?: |$)", asked.stdout, re.M)
    assert len(named) > 10
    page = script("command_page").command_page()
    sections = dict(re.findall(r"^## toast (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert list(sections) == named
    for name, sub in _parser()._subparsers._group_actions[0].choices.items():
        options = re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", sub.format_help())
        assert [option for option in options if f"`{option}" not in sections[name]] == [], name
    assert read("docs/commands.md") == page


def test_every_row_of_the_commands_has_two_cells():
    rows = [line for line in script("command_page").command_page().splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {4}


SLIDES = script("make_slides")


def test_slides_show_the_outputs_of_the_notebooks_as_they_are_committed():
    page = SLIDES.slides()
    named = re.findall(r"\]\(([^)#]+\.ipynb)#([^)]+)\)", read("docs/slides/slides.md"))
    assert page.count("<figure>") == len(named) > 5
    assert page.count("<section>") == len(re.split("^---$", read("docs/slides/slides.md"), flags=re.M))
    pictures = set(re.findall(r"base64,([^\"]+)", page))
    committed = {path: nbformat.read(SLIDES.FOLDER / path, 4) for path, _ in named}
    outputs = [o.get("data", {}) for nb in committed.values() for c in nb.cells for o in c.get("outputs", [])]
    assert pictures <= {data["image/png"] for data in outputs if "image/png" in data}
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_no_number_of_a_result_is_typed_on_a_slide():
    assert set(re.findall(r"\d+\.\d+|\d+ ?%|\d+ points", read("docs/slides/slides.md"))) == {"95 %"}  # intervals


def test_a_slide_with_an_output_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="0 cells of 05_skipat"):
        SLIDES.output_of(ROOT / "notebooks/05_skipat.ipynb", "nowhere")


def test_the_rule_of_the_reading_time():
    rule, new = script("reading_time"), nbformat.v4
    text, claims = new.new_markdown_cell("word " * 2000), new.new_markdown_cell("## Claims\n\n" + "word " * 2000)
    code = new.new_code_cell("x = 1\n\n" * 100, outputs=[new.new_output("display_data", {"image/png": ""})] * 10)
    assert rule.reading_minutes([text]) == 10
    assert rule.reading_minutes([code]) == 5 + 5
    summary = new.new_markdown_cell("## Summary")
    assert rule.reading_minutes([text, claims, code, summary, text]) == 20  # without the claims and their code


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_reading_times_follow_the_rule(name):
    rule = script("reading_time")
    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4).cells
    said = int(re.search(r"Time:\s(\d+)\sminutes\sto\sread,", cells[0].source)[1])
    row = re.search(
        rf"^\|.*\({re.escape(f'../notebooks/{name}.ipynb')}\).*\| (\d+) \| .* \|$", read("docs/study.md"), re.M
    )
    assert said == int(row[1])
    assert abs(said - rule.reading_minutes(cells)) <= 5  # a sentence more or less is not a new time


def test_the_hours_are_the_sum_of_the_minutes():
    page = read("docs/study.md")
    minutes = [int(told) for told in re.findall(r"^\| \[\d\d · .*\| (\d+) \| [^|]+ \|$", page, re.M)]
    number, hours = map(int, re.search(r"All (\d+) take about (\d+) hours to read", page).groups())
    assert len(minutes) == number == len(NOTEBOOKS)
    assert round(sum(minutes) / 60) == hours


def test_the_glossary_is_in_alphabetical_order():
    words = [
        re.sub(r"\W", "", word).lower() for word in re.findall(r"^- \*\*(.+?)\*\*", read("docs/glossary.md"), re.M)
    ]
    assert len(words) > 30
    assert words == sorted(words)


def test_the_plan_for_teachers_says_what_each_notebook_teaches():
    rows = re.findall(r"^\| \[\d\d\]\(\.\./notebooks/(\w+)\.ipynb\) \| .{20,} \|$", read("docs/teach.md"), re.M)
    assert rows == NOTEBOOKS


def test_bibtex_and_citation_file_agree():
    page, cff = read("docs/cite.md"), yaml.safe_load(read("CITATION.cff"))
    paper = cff["preferred-citation"]
    said = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", page, re.M))  # the software's entry stands last
    entry = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", page.partition("@software")[0], re.M))
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert entry["author"].replace(r"{\`a}", "à").split(" and ") == names
    assert re.sub("[{}]", "", entry["title"]) == paper["title"]
    assert (entry["journal"], entry["doi"], entry["url"]) == (paper["journal"], paper["doi"], paper["url"])
    assert int(entry["year"]) == paper["year-original"]
    assert (said["version"], said["license"], said["title"]) == (cff["version"], cff["license"], cff["title"])
