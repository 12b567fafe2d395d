"""The page of families that are known to work says what is found now."""

import re

import known_to_work
import pytest


@pytest.mark.slow
def test_the_page_is_what_is_found_now():
    assert known_to_work.PAGE.read_text(encoding="utf-8") == known_to_work.page(), (
        "write it anew: .venv/bin/python tests/known_to_work.py"
    )


@pytest.mark.parametrize("family", ["ViT", "SigLIP 2, vision", "Llama", "vit-pytorch: ViT"])
def test_a_row_of_the_page_is_what_is_found_now(family, monkeypatch):
    monkeypatch.delitem(known_to_work.CHECKS, "ONNX")  # which takes longest
    families = {name: make for part in known_to_work.models().values() for name, make in part.items()}
    cells = known_to_work.row(family, families[family]).split(" | ")[:-1]
    assert " | ".join(cells) in known_to_work.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_family_once():
    rows = re.findall(r"^\| (.+?) \| [✓✗]", known_to_work.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [family for part in known_to_work.models().values() for family in part]
    assert len(rows) >= 50
