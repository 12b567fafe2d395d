"""The script that pretrains gpt-mini: two steps give a folder that opens, and the same to the bit."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from toastlib.data.texts import books, load_texts
from toastlib.evaluation.language import evaluate_language_model, load_language_model

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pretrain_gpt_mini.py"
SMALL = ["--steps", "2", "--blocks", "2", "--width", "8", "--heads", "2", "--window", "32", "--batch", "2"]


@pytest.fixture
def pretrain(monkeypatch, tmp_path):
    """Runs the script with small knobs, and returns the folder that it wrote."""
    spec = importlib.util.spec_from_file_location("pretrain_gpt_mini", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()

    def run(name):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--out", str(tmp_path / name), *SMALL])
        script.main()
        return tmp_path / name

    yield run
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_what_it_writes_opens_and_is_the_same_every_time(pretrain):
    first, second = pretrain("first"), pretrain("second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    language = load_language_model(str(first), device="cpu")
    assert (len(language.encoder.blocks), language.encoder.width) == (2, 8)
    assert len(language.generate("Shall I", 5)[0]) == 5
    assert "2 blocks of width 8" in (first / "README.md").read_text()


@pytest.fixture(scope="module")
def language():
    return load_language_model("gpt-mini", device="cpu")


class TestEmbedded:
    def test_it_is_small_enough_to_be_carried_along(self, language):
        folder = SCRIPT.parents[1] / "data" / "models" / "gpt-mini"
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
        assert (len(language.encoder.blocks), language.encoder.width) == (6, 64)

    def test_it_knows_every_character_of_the_books(self, language):
        text = "\n\n".join(text for table in books() for text in table.texts)
        tokenizer = language.encoder.tokenizer
        ids = tokenizer(text, verbose=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text

    def test_it_predicts_unseen_passages_far_better_than_letter_frequencies_do(self, language):
        texts = load_texts("books", language.encoder, chunks=True, test_size=20)
        table = evaluate_language_model(language, texts, []).table
        frequencies = texts.train.tokens.input_ids.flatten().bincount().double()
        shares = frequencies[frequencies > 0] / frequencies.sum()
        assert table["bits"].item() < 0.75 * -(shares * shares.log2()).sum()
