"""Texts become batches of tokens, from the embedded books, local folders and tables, without padding that counts."""

import json

import pytest
import torch
from tiny import TEXT_FAMILIES, letter_tokenizer, make_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from toastlib.data.catalog import TEXTS, dataset_entry
from toastlib.data.images import load_images
from toastlib.data.texts import BOOKS, EMBEDDED, Texts, books, chunked, load_texts, passages, tokenised
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.evaluation.language import evaluate_language_model, load_language_model
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder


@pytest.fixture
def encoder():
    return Encoder(make_tiny_model("gpt2"), features="last", name="tiny", tokenizer=letter_tokenizer())


@pytest.fixture
def bert():
    return Encoder(make_tiny_model("bert"), name="tiny-bert", tokenizer=letter_tokenizer())


@pytest.fixture
def folder(tmp_path):
    """Factory: writes rows as ``train.jsonl`` and ``test.jsonl``, and returns the folder."""

    def write(**splits):
        path = tmp_path / "reviews"
        path.mkdir()
        for split, rows in splits.items():
            (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


class TestTexts:
    TOKENS = Tokens(torch.arange(1, 13).view(3, 4), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]))
    TEXTS = Texts(TOKENS, torch.tensor([0, 1, 0]), ("a", "b"))

    def test_a_batch_is_as_wide_as_its_longest_text(self):
        shapes = [(tokens.input_ids.shape, labels.tolist()) for tokens, labels in self.TEXTS.batches(2)]
        assert shapes == [((2, 3), [0, 1]), ((1, 4), [0])]

    def test_rows_are_taken_with_their_labels(self):
        part = self.TEXTS[[2, 0]]
        assert part.tokens.input_ids[:, 0].tolist() == [9, 1]
        assert part.labels.tolist() == [0, 0]
        assert len(self.TEXTS[1:]) == 2
        assert repr(self.TEXTS[1:]) == "Texts(2 of up to 4 tokens, of 2 classes)"

    def test_a_sample_is_drawn_without_replacement_and_the_same_for_a_seed(self):
        drawn = [self.TEXTS.sample(3, seed).tokens.input_ids[:, 0].tolist() for seed in (0, 0, 3)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert sorted(drawn[0]) == [1, 5, 9]

    def test_more_than_there_are_cannot_be_drawn(self):
        with pytest.raises(InputError, match=r"^4 texts were asked for, and there are 3\.$"):
            self.TEXTS.sample(4, 0)

    def test_labels_that_do_not_fit_are_refused(self):
        with pytest.raises(InputError, match=r"^There are 2 labels for 3 texts\.$"):
            Texts(self.TOKENS, torch.tensor([0, 1]))

    def test_without_labels_batches_have_none(self):
        assert [labels for _, labels in Texts(self.TOKENS).batches(2)] == [None, None]


class TestEmbedded:
    def test_every_passage_is_for_training_or_for_testing(self):
        train, test = books()
        assert sorted(train.texts + test.texts) == sorted(text for book in BOOKS for text in passages(book))
        assert set(train.labels.tolist()) == set(test.labels.tolist()) == {0, 1, 2}
        assert test.texts[0] == passages("sonnets")[4]

    def test_lines_are_the_same_words(self):
        for whole, lines in zip(books(), EMBEDDED["lines"]()):
            assert letters_alone(whole.texts) == letters_alone(lines.texts)
            assert max(map(len, lines.texts)) <= 60
            assert not any("\n" in line for line in lines.texts)
            assert lines.labels.bincount().min() > 10

    def test_the_embedded_texts_are_in_the_catalogue(self):
        assert {name for name, entry in TEXTS.items() if entry.path is None} == EMBEDDED.keys()

    def test_sonnets_have_fourteen_lines(self):
        assert {len(sonnet.splitlines()) for sonnet in passages("sonnets")} == {14}


class TestLoadTexts:
    def test_texts_are_tokenised_with_their_labels(self, encoder):
        lines = load_texts("lines", encoder, length=32, train_size=50)
        assert (lines.name, lines.class_names, len(lines.train)) == ("lines", BOOKS, 50)
        assert lines.test.tokens.input_ids.shape[1] == 32
        first = books(60)[1].texts[0]
        row = lines.test.tokens[:1]
        assert encoder.tokenizer.decode(row.input_ids[0][row.attention_mask[0].bool()]) == letters(first[:32])

    def test_chunks_are_the_running_text_without_gap_or_padding(self, encoder):
        chunks = load_texts("books", encoder, length=40, chunks=True)
        running = "\n\n".join(books()[0].texts)
        assert len(chunks.train) == len(running) // 40
        assert encoder.tokenizer.decode(chunks.train.tokens.input_ids[:5].flatten()) == letters(running[:200])
        assert chunks.train.tokens.attention_mask.all()
        assert chunks.train.labels is None

    def test_a_table_is_read_with_its_columns(self, encoder, folder):
        rows = [{"sentence": text, "label": label} for text, label in [("good", "yes"), ("bad", "no"), ("fine", "yes")]]
        texts = load_texts(folder(train=rows, test=rows[:1]), encoder, length=32)
        assert texts.class_names == ("no", "yes")
        assert texts.train.labels.tolist() == [1, 0, 1]
        assert texts.train.tokens.attention_mask.sum(1).tolist() == [4, 3, 4]

    def test_a_set_without_test_split_lends_a_fifth(self, encoder, folder):
        texts = load_texts(folder(train=[{"text": "word" * k} for k in range(1, 11)]), encoder, length=64)
        assert (len(texts.train), len(texts.test)) == (8, 2)

    def test_a_folder_of_text_files_gives_chunks(self, encoder, tmp_path):
        (tmp_path / "train.txt").write_text("one line\n\nanother line\n" * 10)
        (tmp_path / "test.txt").write_text("a last line\n" * 10)
        chunks = load_texts(str(tmp_path), encoder, length=30, chunks=True)
        assert len(chunks.test) == (11 * 10 + 2 * 9) // 30

    @pytest.mark.parametrize(
        ("rows", "options", "says"),
        [
            ([{"words": "a"}], {}, "has no text column, only words"),
            ([{"text": "a", "sentence": "b"}], {}, "has the text columns text, sentence: name one by text_column="),
            ([{"text": "a"}], {"text_column": "txt"}, "Unknown text column 'txt': did you mean 'text'"),
            ([{"text": "a"}, {"text": ""}], {}, "Text 1 has no tokens"),
            ([{"text": "abc"}], {"chunks": True, "length": 4}, "3 tokens make no chunk of 4"),
            ([{"text": "abc"}], {"train_size": 2}, "2 train texts were asked for, and there are 1"),
        ],
    )
    def test_what_is_missing_is_said(self, encoder, folder, rows, options, says):
        with pytest.raises(InputError, match=says):
            load_texts(folder(train=rows, test=rows), encoder, **{"length": 32} | options)

    @pytest.mark.parametrize("length", [1, 67])
    def test_lengths_that_the_model_cannot_read_are_refused(self, encoder, length):
        with pytest.raises(InputError, match=f"^tiny reads texts of 2 to 66 tokens, not of {length}[.]$"):
            load_texts("lines", encoder, length=length)

    def test_an_encoder_reads_no_chunks(self, bert):
        with pytest.raises(InputError, match="Chunks of running text are for decoders, and tiny-bert is none"):
            load_texts("books", bert, length=32, chunks=True)

    def test_images_and_texts_are_not_confused(self, tiny_encoder, encoder):
        with pytest.raises(InputError, match=r"^tiny has no tokenizer, and reads no texts\.$"):
            load_texts("lines", tiny_encoder)
        with pytest.raises(InputError, match=r"^tiny reads texts, and not images: load them by load_texts\.$"):
            load_images("digits", encoder)

    def test_an_unknown_set_is_refused_with_the_nearest_name(self, encoder):
        with pytest.raises(InputError, match="Unknown data set 'line': did you mean 'lines'"):
            load_texts("line", encoder, length=32)
        assert dataset_entry("owner/name:stars", TEXTS).label == "stars"
        with pytest.raises(InputError):
            dataset_entry("lines")


def test_padding_stands_on_the_side_that_is_asked_for():
    tokens = tokenised(letter_tokenizer(), ["ab", "abcd"], 3, side="left")
    assert tokens.attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_a_tokenizer_of_bert_puts_cls_first_and_padding_last_whatever_its_own_side_is(tmp_path):
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=50, special_tokens=special, show_progress=False)
    words.train_from_iterator(passages("sonnets")[:2], trainer)
    pair = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **names).save_pretrained(tmp_path / "tiny")
    make_tiny_model("bert").save_pretrained(tmp_path / "tiny")
    tokens = load_texts(
        "lines", load_encoder(str(tmp_path / "tiny"), device="cpu"), length=40, test_size=20
    ).test.tokens
    lengths = tokens.attention_mask.sum(1)
    assert lengths.min() < lengths.max()
    assert (tokens.input_ids[:, 0] == 2).all()
    assert (tokens.input_ids[torch.arange(20), lengths - 1] == 3).all()
    assert (tokens.input_ids[tokens.attention_mask == 0] == 0).all()


def test_a_byte_level_tokenizer_without_padding_serves_prompts_of_any_length(tmp_path):
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False)
    pieces.train_from_iterator(passages("alice"), trainer)
    PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<end>").save_pretrained(tmp_path / "tiny")
    make_tiny_model("llama", head="ForCausalLM", vocab_size=300).save_pretrained(tmp_path / "tiny")
    language = load_language_model(str(tmp_path / "tiny"), device="cpu")
    prompts = ["Alice", "She ate a little bit, and said anxiously to herself"]
    assert language.generate(prompts, 10) == [language.generate(prompt, 10)[0] for prompt in prompts]
    chunks = load_texts("books", language.encoder, length=30, chunks=True)
    table = evaluate_language_model(language, chunks, [], batch_size=32).table
    assert table["perplexity"].item() > 100  # it knows nothing


def test_positions_are_counted_from_the_first_token_of_each_text():
    tokens = tokenised(letter_tokenizer(), ["ab", "abcd"], 9, side="left")
    assert tokens.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_empty_texts_leave_no_trace_in_chunks():
    with_empty, without = (chunked(letter_tokenizer(), texts, 5) for texts in (["abc", "", " ", "def"], ["abc", "def"]))
    assert torch.equal(with_empty.input_ids, without.input_ids)


def letters_alone(texts):
    return "".join("".join(texts).split())


def letters(text):
    """What the tiny tokenizer keeps of a text."""
    return letter_tokenizer().decode(letter_tokenizer()(text)["input_ids"])


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_checkpoint_with_its_tokenizer_opens_as_an_encoder(family, tmp_path, token_batch):
    model, tokens = make_tiny_model(family), token_batch([5, 9])
    model.save_pretrained(tmp_path / "tiny")
    letter_tokenizer().save_pretrained(tmp_path / "tiny")
    encoder = load_encoder(str(tmp_path / "tiny"), device="cpu")
    assert encoder.feature_kind == ("last" if encoder.is_causal else "cls")
    with torch.no_grad():
        assert torch.equal(encoder(tokens), Encoder(model, features=encoder.feature_kind)(tokens))
    assert len(load_texts("lines", encoder, length=20, train_size=5, test_size=5).train) == 5


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    make_tiny_model("bert").save_pretrained(tmp_path / "tiny")
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        load_encoder(str(tmp_path / "tiny"), device="cpu")
