"""Headless Chromium looks at the study: JupyterLab runs notebooks and answers the panel; the site's pages open offline.

Screenshots are left in ``build/screenshots``. `make test-browser` runs this.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
SCREENSHOTS = ROOT / "build" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MINUTES = 60  # seconds
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # no question, no request
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page as well
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt install chromium")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, in which copies of the first two notebooks lie without their outputs."""
    for name in ("00_quickstart", "01_similarity"):
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{kind}_DIR": str(tmp_path / f".{kind}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {"JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / ".workspaces"), "IPYTHONDIR": str(tmp_path / ".ipython")}
    for plugin, setting in SETTINGS.items():
        file = tmp_path / ".settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(setting), encoding="utf-8")
    homes["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / ".settings")
    environment = os.environ | homes | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    settings = [
        f"--port={port}",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1",
    ]
    command = [sys.executable, "-m", "jupyterlab", *settings, f"--ServerApp.root_dir={tmp_path}"]
    with (
        (tmp_path / "lab.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/api", server, tmp_path / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree"
        finally:
            server.terminate()


def test_the_quickstart_runs_in_jupyterlab_and_its_panel_reacts(browser, lab):
    page = _run_all(browser, lab, "00_quickstart")
    panel = page.locator(".jp-OutputArea-output .jupyter-widgets.widget-vbox").first
    panel.scroll_into_view_if_needed()
    answer = panel.locator(".widget-html-content").last
    before = answer.inner_text()
    assert "accuracy, %" in before
    assert panel.locator("input[type=text]").input_value() == "2->5"
    assert answer.locator("img").count() == 10
    page.screenshot(path=_screenshot("00_panel"))
    pressed = time.monotonic()
    panel.get_by_role("button", name="8", exact=True).click()
    _wait_until(lambda: answer.inner_text() != before, seconds=30)
    seconds = time.monotonic() - pressed
    assert panel.locator("input[type=text]").input_value() == "2->5 7->8"
    (SCREENSHOTS / "00_panel.txt").write_text(f"answered in {seconds:.2f} s\n{answer.inner_text()}\n")
    page.screenshot(path=_screenshot("00_panel_pressed"))
    panel.locator("select").select_option("identity")
    _wait_until(lambda: "identity" in answer.inner_text(), seconds=30)
    panel.locator("input[type=text]").fill("5->2")
    panel.locator("input[type=text]").press("Enter")
    _wait_until(lambda: "runs backwards" in answer.inner_text(), seconds=30)
    page.context.close()


def test_the_similarity_notebook_runs_in_jupyterlab(browser, lab):
    page = _run_all(browser, lab, "01_similarity")
    page.context.close()


@pytest.fixture
def site():
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make site")
    return SITE


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("start", "index.html"), ("notebook", "**/00_quickstart.html"), ("api", "**/api/*.html")],
)
def test_a_page_of_the_site_opens_from_its_file_alone(browser, site, scheme, name, pattern):
    file = min(site.glob(pattern), key=lambda path: (path.name != "index.html", str(path)))
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    page.screenshot(path=_screenshot(f"site_{name}_{scheme}"))
    assert page.locator("h1").first.is_visible()
    assert [url for url in asked if not re.match(r"(file|data|blob):", url)] == []
    assert wrong == []
    dark = _brightness(page) < 0.5
    assert dark == (scheme == "dark")
    assert _broken_images(page) == []
    context.close()


def _figures(name) -> int:
    """How many figures the notebook was committed with."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def _run_all(browser, lab, name):
    """A page in which all cells of a notebook have run without an error; both are photographed."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.goto(f"{lab}/{name}.ipynb")
    page.wait_for_selector(".jp-Notebook", timeout=2 * MINUTES * 1000)
    # Before its kernel has started, a notebook that is told to run asks which kernel it should take.
    page.locator("#jp-bottom-panel", has_text=re.compile(r"Python 3.*\| Idle")).wait_for(timeout=2 * MINUTES * 1000)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    try:
        _wait_until(lambda: _is_done(page), seconds=10 * MINUTES, pause=1)
    finally:
        page.screenshot(path=_screenshot(name))
    pictures = page.locator(".jp-RenderedImage img")
    _wait_until(lambda: pictures.count() == _figures(name), seconds=20)
    assert _broken_images(page) == []
    pictures.last.scroll_into_view_if_needed()
    page.screenshot(path=_screenshot(f"{name}_figure"))
    return page


def _is_done(page):
    """Whether every code cell with something in it has its number; a cell that failed ends the test."""
    failed = page.locator(
        '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
    )
    assert failed.count() == 0, failed.first.inner_text()
    prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_text_contents()
    return bool(prompts) and all(re.fullmatch(r"\[\d+\]:", prompt.strip()) for prompt in prompts)


def _wait_until(done, seconds, pause=0.05):
    stop = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < stop, f"not done after {seconds} seconds"
        time.sleep(pause)


def _wait_for(address, server, log):
    def answers():
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return True
        return False

    _wait_until(answers, seconds=2 * MINUTES)


def _screenshot(name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS / f"{name}.png"


def _broken_images(page):
    """Sources of images that did not load."""
    script = "images => images.filter(one => one.complete && one.naturalWidth == 0).map(one => one.src.slice(0, 80))"
    return page.locator("img").evaluate_all(script)


def _brightness(page):
    """Of the page's ground, in [0, 1]."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / (3 * 255)
