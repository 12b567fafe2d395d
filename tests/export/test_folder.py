"""The folder of a smaller model and its report: complete, self-contained, and nobody else's."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from toastlib.cli import main
from toastlib.errors import InputError
from toastlib.export.folder import report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.deepest = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_the_report_is_one_whole_page_that_fetches_nothing(taken):
    text = report(taken)
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == min(12, len(taken.flips)) > 0
    for fetching in ("url(", "@import", "http", "<script"):
        assert fetching not in text
    for part in (
        "0-&gt;2 3-&gt;4",
        "three",
        f"{taken.card.sizes.parameters[1]:,}",
        f"{taken.card.after[0]:.1f} %",
        "ms",
    ):
        assert part in text
    assert "prefers-color-scheme: dark" in text


def test_names_in_the_report_are_escaped(taken):
    text = report(replace(taken, card=replace(taken.card, base="<script>alert(1)</script>")))
    assert "<script" not in text


def test_a_folder_that_fails_leaves_nothing_behind(taken, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr("toastlib.export.folder.report", fail)
    with pytest.raises(InputError, match="full"):
        taken.save(tmp_path / "smaller")
    assert not list(tmp_path.iterdir())


def test_folders_are_compared_and_what_differs_is_told(taken, tmp_path, capsys):
    taken.save(tmp_path / "one")
    replace(taken, card=replace(taken.card, device="another machine")).save(tmp_path / "two")
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "one")]) == 0
    same = capsys.readouterr().out
    assert "differ" not in same
    assert "{:.1f} [{:.1f}, {:.1f}]".format(*taken.lost).replace("-0.0", "0.0") in same
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert "They differ in device, " in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "one"), str(tmp_path)]) == 2
    assert "holds no report.json" in capsys.readouterr().err
