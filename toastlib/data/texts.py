"""Texts as batches of tokens: what `toastlib.data.images` is for images."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.data import catalog
from toastlib.data.images import draw_rows
from toastlib.data.sources import TextTable, open_texts
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError

BOOKS = ("sonnets", "genesis", "alice")
"""Shakespeare's Sonnets, the King James Bible, Alice's Adventures in Wonderland: passages in ``data/texts``."""


@dataclass(frozen=True)
class Texts:
    """Tokenised texts with or without labels, handed out in batches.

    Parameters
    ----------
    tokens
        All of them, padded on the right, on the CPU.
    labels
        int64, shape (n,), or `None`.
    class_names
        One name per class.
    device
        Of the batches that `batches` yields.

    Raises
    ------
    InputError
        If there are not as many labels as texts.
    """

    tokens: Tokens
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.tokens):
            raise InputError(f"There are {len(self.labels)} labels for {len(self.tokens)} texts.")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Self:
        """The texts of an index tensor, list or slice."""
        return replace(self, tokens=self.tokens[rows], labels=None if self.labels is None else self.labels[rows])

    @property
    def cache_key_parts(self) -> tuple[Any, ...]:
        """All that features depend on, for `toastlib.cache.fingerprint`."""
        return self.tokens.input_ids, self.tokens.attention_mask

    def sample(self, n: int, seed: int) -> Self:
        """`n` texts drawn without replacement.

        Raises
        ------
        InputError
            If there are fewer than `n`.
        """
        return self[draw_rows(len(self), n, seed, "texts")]

    def batches(self, size: int = 32) -> Iterator[tuple[Tokens, Tensor | None]]:
        """Yield (tokens, labels) on the device, in order; a batch is as wide as its longest text."""
        for start in range(0, len(self), size):
            part = self[start : start + size]
            width = int(part.tokens.attention_mask.sum(1).max())
            tokens = Tokens(part.tokens.input_ids[:, :width], part.tokens.attention_mask[:, :width])
            yield tokens.to(self.device), None if part.labels is None else part.labels.to(self.device)


@dataclass(frozen=True)
class TextSet:
    """A data set: its texts for training (calibration and heads) and for testing.

    Parameters
    ----------
    name
        How tables call it.
    train, test
        `Texts`.
    """

    name: str
    train: Texts
    test: Texts

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        return self.train.class_names


def load_texts(
    name: str,
    encoder: Any,
    *,
    length: int = 128,
    chunks: bool = False,
    train_size: int | None = None,
    test_size: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> TextSet:
    """Load a set of texts as the encoder reads them.

    Parameters
    ----------
    name
        ``"books"`` (passages of three books) and ``"lines"`` (the same in lines of at most 60 characters) are embedded,
        labelled with the book; else an alias of `TEXTS`, a Hub id or a local folder that
        `datasets.load_dataset` reads, such as one of ``.txt`` files. ``name:column`` names the label column.
    encoder
        Gives tokenizer and device.
    length
        Longer texts are cut after so many tokens.
    chunks
        Join all texts and part them into pieces of exactly `length` tokens, without labels: for language models.
    train_size, test_size
        How many texts (or chunks) to draw from each split; all of them if `None` or 0.
    text_column, label_column
        Column names; found from their usual names and types if `None`.
    seed
        Of the draw, and of the split where the set has no test split.

    Returns
    -------
    TextSet
        Tokenised, on the CPU.

    Raises
    ------
    InputError
        If the encoder reads no texts, or none so long; or the set is unknown, cannot be fetched, has no such columns,
        too few rows, or a text without tokens (the message names it).
    """
    _check(encoder, length, chunks)
    entry = catalog.text_entry(name)
    tables = EMBEDDED[name]() if name in EMBEDDED else open_texts(entry, text_column, label_column, seed)

    def load(split: str, table: TextTable, size: int | None) -> Texts:
        if chunks:
            texts = Texts(chunked(encoder.tokenizer, table.texts, length), device=encoder.device)
            return texts.sample(size, seed) if size else texts
        rows = draw_rows(len(table.texts), size, seed, f"{split} texts") if size else torch.arange(len(table.texts))
        tokens = tokenised(encoder.tokenizer, [table.texts[row] for row in rows.tolist()], length)
        labels = None if table.labels is None else table.labels[rows]
        return Texts(tokens, labels, table.class_names, encoder.device)

    alias = catalog.dataset_alias(f"{name}:{label_column}" if label_column else name)
    train, test = tables
    return TextSet(alias, load("train", train, train_size), load("test", test, test_size))


def tokenised(tokenizer: Any, texts: list[str], length: int, side: str = "right") -> Tokens:
    """Each text as a row of at most `length` tokens, padded on that side to the longest.

    Raises
    ------
    InputError
        If a text has no tokens.
    """
    options = {"truncation": True, "max_length": length, "padding": True, "padding_side": side}
    found = tokenizer(texts, return_tensors="pt", **options)
    tokens = Tokens(found["input_ids"], found["attention_mask"])
    empty = (tokens.attention_mask.sum(1) == 0).nonzero()
    if len(empty):
        raise InputError(f"Text {int(empty[0])} has no tokens.")
    return tokens


def chunked(tokenizer: Any, texts: list[str], length: int) -> Tokens:
    """All texts, an empty line between them, in pieces of exactly `length` tokens; what is left over is dropped.

    Raises
    ------
    InputError
        If there is not one such piece.
    """
    running = "\n\n".join(text for text in texts if text.strip())
    ids = torch.tensor(tokenizer(running, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    count = len(ids) // length
    if not count:
        raise InputError(f"{len(ids)} tokens make no chunk of {length}.")
    ids = ids[: count * length].view(count, length)
    return Tokens(ids, torch.ones_like(ids))


def passages(book: str) -> list[str]:
    """The passages of an embedded book, which empty lines part in its file."""
    return (catalog.DATA / "texts" / f"{book}.txt").read_text(encoding="utf-8").strip().split("\n\n")


def books(width: int | None = None) -> tuple[TextTable, TextTable]:
    """The embedded passages, every fifth of each book for testing; in lines of at most `width` characters if given."""
    tables = []
    for is_test in (False, True):
        texts, labels = [], []
        for label, book in enumerate(BOOKS):
            part = [text for row, text in enumerate(passages(book)) if (row % 5 == 4) == is_test]
            part = [line for text in part for line in textwrap.wrap(text, width)] if width else part
            texts += part
            labels += [label] * len(part)
        tables.append(TextTable(texts, torch.tensor(labels), BOOKS))
    return tuple(tables)


EMBEDDED = {"books": books, "lines": lambda: books(width=60)}
"""Alias -> function that makes its training and test texts."""


def _check(encoder: Any, length: int, chunks: bool) -> None:
    if encoder.tokenizer is None:
        raise InputError(f"{encoder.name} has no tokenizer, and reads no texts.")
    if chunks and not encoder.is_causal:
        raise InputError(f"Chunks of running text are for decoders, and {encoder.name} is none: take chunks=False.")
    longest = min(encoder.tokenizer.model_max_length, encoder.model.config.max_position_embeddings)
    if not 2 <= length <= longest:
        raise InputError(f"{encoder.name} reads texts of 2 to {longest} tokens, not of {length}.")
