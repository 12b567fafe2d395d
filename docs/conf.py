"""The site: guides, the notebooks as they are committed, and the reference from the docstrings. `make site` builds it.

The source folder is the repository, so that links between guides and notebooks work here, on the site and on GitHub.
Nothing is executed, and the built pages ask no other machine for anything.
"""

import json
import logging
import os
import re
import sys
import tomllib
from pathlib import Path
from types import GenericAlias

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
os.environ["TOAST_CACHE"] = "off"  # importing the library for its docstrings leaves nothing behind

project = "toastlib"
author = copyright = "The toastlib developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_nb",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
root_doc = "docs/index"
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in ("docs", "notebooks")]
exclude_patterns += ["**/.ipynb_checkpoints", "docs/_site", "docs/slides"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # it would be fetched; a widget shows the static table that its cell leaves as well
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
mathjax3_config = {"chtml": {"mtextInheritFont": True}, "options": {"enableMenu": False}}

autodoc_default_options = {"members": True, "no-value": True, "exclude-members": "extra_repr"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False
default_role = "py:obj"
maximum_signature_line_length = 88
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_style, pygments_dark_style = "github-light-colorblind", "github-dark-colorblind"
html_title = "toastlib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_site"]  # index.html, which leads to the start page
html_copy_source = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse on a page opened from a file
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5d8a", "color-brand-content": "#0b5d8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ee", "color-brand-content": "#7cc4ee"},
}
copybutton_exclude = ".linenos, .gp, .go"

# A folder that has no pages yet is no mistake, and Sphinx gives this warning no name to suppress it by.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda record: "toctree glob pattern" not in record.msg)


def setup(app):
    """Leave out what has no docstring of its own (fields of named tuples, names for types); make generated pages."""

    def is_bare(app, kind, name, member, skip, options):
        field = (getattr(member, "__doc__", "") or "").startswith("Alias for field number")
        return True if field or isinstance(member, GenericAlias) else None

    app.connect("autodoc-skip-member", is_bare)
    app.connect("source-read", complete)
    app.connect("build-finished", write_play)
    app.connect("build-finished", write_slides)


def complete(app, docname, source):
    """Write results into the front page, and fold the parameters of the notebooks."""
    if docname == "docs/index":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        parts = (("## What it costs", "## The notebooks"), ("## When not to use it", "## Eight lines"))
        results = "".join(readme[readme.index(first) : readme.index(end)] for first, end in parts)
        results = re.sub(r"\[([^]]+)\]\((data/[^)]+)\)", r"\1: `\2`", results)  # these are no pages of the site
        source[0] = source[0].replace("<!-- results -->", re.sub(r"\]\((?!http)", "](../", results))
    elif app.env.doc2path(docname).suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("hide-input")
                cell["metadata"]["mystnb"] = {"code_prompt_show": "Parameters", "code_prompt_hide": "Parameters"}
        source[0] = json.dumps(notebook)


def write_play(app, error):
    """Put the page to play with together: one file with the look of the report, and its numbers inside."""
    folder, target = ROOT / "docs" / "play", Path(app.outdir) / "docs" / "play" / "index.html"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for file in (ROOT / "toastlib/export/report.css", *(folder / f"play.{kind}" for kind in ("css", "js", "json"))):
        page = page.replace(f"{{{{ {file.name} }}}}", file.read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")


def write_slides(app, error):
    """Make the slides of the session from their text and the figures of the executed notebooks."""
    from make_slides import slides

    target = Path(app.outdir) / "docs" / "slides" / "index.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(slides(), encoding="utf-8")
