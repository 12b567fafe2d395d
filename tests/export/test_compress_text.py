"""`compress` of text classifiers, and `compress_language`: what is measured is what is saved."""

import numpy as np
import pytest
import torch

from toastlib.cli import main
from toastlib.data.texts import Texts, TextSet, load_texts
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.evaluation.language import evaluate_language_model, load_language_model
from toastlib.export.compress import compress
from toastlib.export.language import compress_language
from toastlib.models.loading import load_encoder


@pytest.fixture(scope="module")
def language():
    return load_language_model("gpt-mini", device="cpu")


@pytest.fixture(scope="module")
def chunks(language):
    return load_texts("books", language.encoder, length=48, chunks=True, train_size=120, test_size=24)


@pytest.fixture(scope="module")
def lines():
    encoder = load_encoder("gpt-mini", features="mean", device="cpu")
    return encoder, load_texts("lines", encoder, train_size=300, test_size=80)


@pytest.fixture(scope="module")
def classified(lines):
    return compress(*lines, remove=2, calibration=60)


@pytest.fixture(scope="module")
def written(language, chunks):
    return compress_language(language, chunks, 1, calibration=80)


def tokens_of(ids):
    return Tokens(ids, torch.ones_like(ids))


class TestClassifier:
    def test_the_saved_classifier_has_the_accuracy_that_was_measured(self, lines, classified, tmp_path):
        from transformers import AutoModelForSequenceClassification, pipeline

        classified.save(tmp_path / "saved")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
        test = lines[1].test
        with torch.no_grad():
            right = [model(**vars(tokens)).logits.argmax(1) == labels for tokens, labels in test.batches()]
        assert 100 * torch.cat(right).double().mean().item() == pytest.approx(classified.card.after[0])
        assert list(model.config.id2label.values()) == ["sonnets", "genesis", "alice"]
        answer = pipeline("text-classification", str(tmp_path / "saved"))("And God said, Let there be light.")
        assert answer[0]["label"] in ("sonnets", "genesis", "alice")

    def test_report_and_summary_speak_of_texts_and_show_those_that_turn_wrong(self, classified, tmp_path):
        classified.save(tmp_path / "saved")
        page = (tmp_path / "saved" / "report.html").read_text()
        assert "images" not in classified.summary() + classified.verdict()
        assert " image" not in page.split("<body>")[1]
        assert "<img" not in page
        for flip in classified.flips[:3]:
            assert isinstance(flip.shown, str)
        assert len(classified.flips) == classified.maps.iloc[1]["worse"]

    def test_the_checkpoints_own_classifier_is_kept(self, tmp_path):
        import transformers
        from tiny import letter_tokenizer, make_tiny_model

        whole = make_tiny_model("bert", head="ForSequenceClassification", num_labels=2)
        whole.config.id2label, whole.config.label2id = {0: "odd", 1: "even"}, {"odd": 0, "even": 1}
        whole.save_pretrained(tmp_path / "checkpoint")
        letter_tokenizer().save_pretrained(tmp_path / "checkpoint")
        encoder = load_encoder(str(tmp_path / "checkpoint"), device="cpu")
        ids = torch.randint(2, 48, (90, 12), generator=torch.Generator().manual_seed(0))
        labels = torch.arange(90) % 2
        texts = [Texts(tokens_of(ids[part]), labels[part], ("odd", "even")) for part in (slice(60), slice(60, None))]
        result = compress(encoder, TextSet("tiny", *texts), remove="1->2", translator="linear", calibration=40)
        assert result.head.own
        with torch.no_grad():
            right = whole(**vars(texts[1].tokens)).logits.argmax(1) == texts[1].labels
        assert result.card.before[0] == pytest.approx(100 * right.double().mean().item())
        result.save(tmp_path / "smaller")
        opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "smaller")
        assert opened.config.head == "sequence"
        assert opened.config.id2label == {0: "odd", 1: "even"}

    def test_onnxruntime_is_for_images(self, lines):
        with pytest.raises(InputError, match="Models of texts are not measured in onnxruntime"):
            compress(*lines, remove=1, onnx=True)


class TestLanguage:
    def test_the_table_is_of_the_model_that_is_saved(self, chunks, written, tmp_path):
        folder = written.save(tmp_path / "saved")
        opened = load_language_model(str(folder), device="cpu")
        measured = evaluate_language_model(opened, chunks, [])
        row = written.table.set_index("translator").loc["context"]
        np.testing.assert_allclose(measured.table["bits"].item(), row["bits"], rtol=1e-5)
        assert opened.generate(list(written.samples["prompt"]), 48) == list(written.samples["smaller"])
        assert list(written.table["translator"]) == ["original", "context", "linear", "identity"]

    def test_test_texts_decide_nothing(self, language, chunks, written):
        other = TextSet(chunks.name, chunks.train, chunks.test[:5])
        assert compress_language(language, other, 1, calibration=80).plan == written.plan

    def test_card_and_report_say_what_it_costs(self, written, tmp_path):
        folder = written.save(tmp_path / "saved")
        for name in ("README.md", "report.html"):
            assert "perplexity" in (folder / name).read_text()
        assert "text-generation" in (folder / "README.md").read_text()
        for sample in written.samples["smaller"]:
            assert sample.split()[0] in (folder / "report.html").read_text()

    def test_a_given_plan_and_map_are_taken(self, language, chunks, tmp_path):
        result = compress_language(language, chunks, "1->3", translator="identity", calibration=20)
        assert (str(result.plan), result.translator) == ("1->3", "identity")
        result.save(tmp_path / "plain")
        from transformers import AutoConfig

        assert AutoConfig.from_pretrained(tmp_path / "plain").model_type == "gpt2"

    def test_a_smaller_model_is_refused(self, chunks, written):
        with pytest.raises(InputError, match="gpt-mini was made smaller already: start from the original"):
            compress_language(written.model, chunks, 1)

    def test_a_plan_that_removes_nothing_is_refused(self, language, chunks):
        with pytest.raises(InputError, match="The plan removes nothing: name spans such as"):
            compress_language(language, chunks, "original")

    @pytest.mark.parametrize("remove", [0, 6])
    def test_as_many_blocks_as_there_are_cannot_go(self, language, chunks, remove):
        with pytest.raises(InputError, match=f"{remove} blocks cannot be removed: the model has 6, and keeps one"):
            compress_language(language, chunks, remove)


class TestCommand:
    def test_a_language_model_is_made_smaller(self, tmp_path, capsys):
        small = ["--train-size", "60", "--test-size", "8", "--device", "cpu"]
        arguments = ["approximate", "gpt-mini", "--data", "books", "--plan", "1->2", "--out", str(tmp_path / "smaller")]
        assert main([*arguments, *small]) == 0
        out = capsys.readouterr().out
        assert "perplexity" in out
        assert "smaller: " in out
        assert (tmp_path / "smaller" / "report.html").is_file()

    def test_what_it_cannot_do_is_refused(self, tmp_path, capsys):
        out = ["--out", str(tmp_path / "smaller")]
        assert main(["approximate", "gpt-mini", "--data", "books", "--max-drop", "1", *out]) == 2
        assert "gpt-mini predicts tokens: give --remove or --plan" in capsys.readouterr().err
        assert not (tmp_path / "smaller").exists()
