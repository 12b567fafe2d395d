"""The site builds without a warning, is whole, and asks no other machine for anything."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import toastlib
from toastlib import plots
from toastlib.cli import _parser

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
SPEC = spec_from_file_location("check_site", ROOT / "scripts/check_site.py")
check_site = module_from_spec(SPEC)
SPEC.loader.exec_module(check_site)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make site` builds it, but in another folder."""
    folder = tmp_path_factory.mktemp("site")
    command = re.search(r"^\t\.venv/bin/python -m (sphinx .*) build/site$", (ROOT / "Makefile").read_text(), re.M)[1]
    built = subprocess.run(
        [sys.executable, "-m", *command.split(), str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder.resolve()


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert check_site.problems(site) == []


def test_no_script_of_the_site_names_an_address_to_fetch(site):
    scripts = [path for path in site.rglob("*.js") if "mathjax" not in path.parts]
    fetched = re.compile(r"(?:fetch|import|importScripts|XMLHttpRequest\(\)\.open)\(\s*[\"'`](?:https?:)?//")
    sources = re.compile(r"\.src\s*=\s*[\"'`](?:https?:)?//")
    assert scripts
    assert [p.name for p in scripts if fetched.search(p.read_text()) or sources.search(p.read_text())] == []


def test_the_checker_finds_what_is_wrong(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "there.html").write_text("<p id='here'></p>")
    (tmp_path / "style.css").write_text("@import 'https://a.org/a.css'; p { background: url(//b.org/b.png) }")
    (tmp_path / "sub/page.html").write_text(
        "<a href='../there.html#here'></a><a href='../there.html#nowhere'></a><a href='gone.html'></a>"
        "<a href='https://c.org'></a><script src='https://d.org/d.js'></script><img src='data:image/png;base64,x'>"
        "<link rel='stylesheet' href='http://e.org/e.css'><link rel='canonical' href='http://f.org'>"
    )
    assert check_site.problems(tmp_path) == [
        "sub/page.html loads http://e.org/e.css",
        "sub/page.html loads https://d.org/d.js",
        "sub/page.html links to ../there.html#nowhere, which is not there",
        "sub/page.html links to gone.html, which is not there",
        "style.css loads //b.org/b.png",
        "style.css loads https://a.org/a.css",
    ]
    assert check_site.external_links(tmp_path) == {"https://c.org"}


def test_the_front_door_leads_to_the_start_page(site):
    address = re.search(r"url=([^\"]+)", (site / "index.html").read_text())[1]
    assert "Two commands" in (site / address).read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_there_with_its_figures(site, notebook):
    page = (site / notebook.relative_to(ROOT).with_suffix(".html")).read_text()
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert len(re.findall(r'<img [^>]*src="[^"]*_images/', page)) >= figures
    assert len(re.findall(r'class="cell [^"]*docutils', page)) == sum(cell["cell_type"] == "code" for cell in cells)


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_the_parameters_of_a_notebook_are_folded(site, notebook):
    page = (site / notebook.relative_to(ROOT).with_suffix(".html")).read_text()
    [folded] = re.findall(r'<details class="[^"]*hide.*?</details>', page, re.S)
    assert "Parameters" in folded
    assert "results_dir" in folded


def test_the_sidebar_has_captions_and_shows_solutions_only_when_asked(site):
    bar = re.search(r'<div class="sidebar-tree">.*?</div>', (site / "docs/index.html").read_text(), re.S)[0]
    captions = re.findall(r'class="caption-text">([^<]+)<', bar)
    assert captions[:4] == ["Start", "Notebooks: the paper", "Notebooks: beyond the paper", "Exercises"]
    first = re.findall(r'<li class="toctree-l1[^"]*"><a class="reference internal" href="([^"]+)"', bar)
    assert {"install.html", "howto/smaller.html", "commands.html", "cite.html", "solutions.html"} <= set(first)
    assert sum("notebooks/exercises/" in link for link in first) == 10
    assert [link for link in first if "notebooks/solutions/" in link] == []


def test_the_page_of_commands_is_written_by_the_build(site):
    page = (site / "docs/commands.html").read_text()
    for name, sub in _parser()._subparsers._group_actions[0].choices.items():
        assert f'id="toast-{name}"' in page
        assert [o for action in sub._actions for o in action.option_strings if o not in page] == []


def test_the_slides_lie_in_the_site_with_their_formulas(site):
    page = site / "docs/slides/index.html"
    script = re.search(r'src="([^"]*tex-chtml.js)"', page.read_text())[1]
    assert (page.parent / script).is_file()
    assert "slides/index.html" in (site / "docs/teach.html").read_text()


def test_every_public_name_is_in_the_reference(site):
    anchors = {anchor for page in (site / "docs/api").glob("*.html") for anchor in check_site.Page(page).anchors}
    public = {f"toastlib.{home}.{name}" for home, names in toastlib._HOMES.items() for name in names}
    public |= {f"toastlib.plots.{name}" for name in plots.__all__}
    assert sorted(public - anchors) == []


def test_every_public_name_is_listed_on_the_first_page_of_the_reference():
    listed = set(re.findall(r"^   ~toastlib\.(\S+)", (ROOT / "docs/api/index.md").read_text(), re.M))
    assert listed == {f"{home}.{name}" for home, names in toastlib._HOMES.items() for name in names}


def test_mathematics_is_rendered_by_what_lies_beside_the_page(site):
    page = (site / "docs/method.html").read_text()
    assert page.count('class="math notranslate') > 50
    script = re.search(r'src="([^"]*mathjax[^"]*)"', page)[1].partition("?")[0]
    assert (site / "docs" / script).is_file()
    assert list((site / "_static/mathjax/output/chtml/fonts").rglob("*.woff"))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium, to see what it makes of the formulas")
def test_a_browser_typesets_every_formula_from_a_file(site):
    page = site / "docs/method.html"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    seen = subprocess.run(["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert seen.count("<mjx-container") == page.read_text().count('class="math notranslate')
    assert "data-mjx-error" not in seen


def test_the_search_index_knows_pages_notebooks_and_names(site):
    index = (site / "searchindex.js").read_text()
    for word in ("docs/method", "docs/howto/model", "notebooks/05_skipat", "collect_moments", "procrust"):
        assert word in index, word
