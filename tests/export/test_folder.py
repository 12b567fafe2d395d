"""The folder of a smaller model and its report: complete, self-contained, and nobody else's."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from toastlib.errors import InputError
from toastlib.export.folder import check_folder, report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.deepest = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_the_report_is_one_whole_page_that_fetches_nothing(taken):
    text = report(taken)
    page = Page(text)
    assert (page.open, page.links) == ([], [])
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


def test_only_its_own_folder_is_replaced(taken, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").touch()
    (tmp_path / "pages" / "deep").mkdir(parents=True)
    (tmp_path / "pages" / "report.html").write_text("of something else, with its own neighbours")
    for name in ("mine", "file", "pages"):
        with pytest.raises(InputError, match="holds more than a smaller model"):
            taken.save(tmp_path / name)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert (tmp_path / "pages" / "report.html").exists()
    with pytest.raises(InputError, match="Nothing can be written"):
        check_folder(tmp_path / "file" / "below")
    taken.save(tmp_path / "new" / "smaller")
    (tmp_path / "new" / "smaller" / "model.onnx").touch()
    (tmp_path / "new" / "smaller" / "parting.py").touch()  # as earlier versions wrote
    taken.save(tmp_path / "new" / "smaller")
    assert not (tmp_path / "new" / "smaller" / "model.onnx").exists()


@pytest.mark.parametrize("named", ["model", "model/inner", ".", "link"])
def test_no_folder_that_is_read_is_written(tmp_path, named):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for column in ("", ":label"):
        with pytest.raises(InputError, match="which is read"):
            check_folder(tmp_path / named, "vit-mini", f"{tmp_path / 'model'}{column}")
    assert check_folder(tmp_path / "elsewhere", tmp_path / "model") == tmp_path / "elsewhere"


def test_a_checkpoint_that_somebody_saved_is_never_replaced(taken, tmp_path):
    taken.encoder.save_pretrained(tmp_path / "tuned")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tuned").iterdir()}
    with pytest.raises(InputError, match="was not written by `toast approximate`"):
        taken.save(tmp_path / "tuned")
    assert {path.name: path.read_bytes() for path in (tmp_path / "tuned").iterdir()} == before


def test_a_folder_that_fails_leaves_nothing_behind(taken, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr("toastlib.export.folder.report", fail)
    with pytest.raises(OSError, match="full"):
        taken.save(tmp_path / "smaller")
    assert not list(tmp_path.iterdir())
