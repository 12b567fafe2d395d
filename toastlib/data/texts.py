"""Sets of texts: tokenised once, cut into batches that are as wide as their longest text."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.data import catalog
from toastlib.data.images import ImageSet, draw_rows
from toastlib.data.sources import TextTable, open_texts
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError, whole_number

BOOKS = ("sonnets", "genesis", "alice")
"""Shakespeare's Sonnets, the King James Bible, Alice's Adventures in Wonderland: passages in ``data/texts``."""


@dataclass(frozen=True)
class Texts:
    """Tokenised texts with or without labels; an `InputError` if there are not as many labels as texts."""

    tokens: Tokens  # of all texts, padded on the right, on the CPU
    labels: Tensor | None = None  # int64, shape (n,)
    class_names: tuple[str, ...] = ()  # one per class
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the tokens that `batches` yields

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.tokens):
            raise InputError(f"There are {len(self.labels)} labels for {len(self.tokens)} texts.")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        labels = "without labels" if self.labels is None else f"of {len(self.class_names)} classes"
        return f"Texts({len(self):,} of up to {self.tokens.input_ids.shape[1]} tokens, {labels})"

    def __getitem__(self, index: Any) -> Self:
        """The texts of a slice, list or index tensor."""
        return replace(self, tokens=self.tokens[index], labels=None if self.labels is None else self.labels[index])

    @property
    def cache_key_parts(self) -> tuple[Any, ...]:
        """Everything that features depend on, for `fingerprint`."""
        return self.tokens.input_ids, self.tokens.attention_mask

    def sample(self, n: int, seed: int) -> Self:
        """`n` texts drawn without replacement; `InputError` if there are fewer."""
        return self[draw_rows(len(self), n, seed, kind="texts")]

    def decoded(self, tokenizer: Any) -> list[str]:
        """The texts that the tokens are of, as far as they were not cut."""
        return tokenizer.batch_decode(self.tokens.input_ids, skip_special_tokens=True)

    def batches(self, size: int = 32) -> Iterator[tuple[Tokens, Tensor | None]]:
        """Yield (tokens, labels) on the device; a batch is as wide as its longest text."""
        whole_number("batch_size", size, least=1)
        for start in range(0, len(self), size):
            batch = self[start : start + size]
            width = int(batch.tokens.attention_mask.sum(1).max())
            labels = None if batch.labels is None else batch.labels.to(self.device)
            yield batch.tokens.cut(width).to(self.device), labels


class TextSet(ImageSet):
    """Texts for training and for testing, in place of images."""

    train: Texts
    test: Texts


def load_texts(
    name: str,
    encoder: Any,
    *,
    length: int = 128,
    chunks: bool = False,
    train_size: int | None = None,
    test_size: int | None = None,
    text_column: str | None = None,
    seed: int = 0,
    at_most: bool = False,
) -> TextSet:
    """Load a set of texts, tokenised for an encoder.

    Parameters
    ----------
    name
        ``"books"`` (passages of three books, labelled with the book) or ``"lines"`` (the same in lines of at most 60
        characters), both embedded; an alias of `TEXTS`, a Hub id, or a folder, such as one of ``.txt`` files.
    encoder
        Encoder that the texts are for: its tokenizer and device are used.
    length, chunks
        Tokens after which texts are cut. Chunks, for language models, are pieces of so many tokens of all texts joined.
    train_size, test_size, text_column, seed, at_most
        As for `load_images`, of texts (or chunks); the column of the texts is found by name if `None`.

    Returns
    -------
    TextSet
        Tokens, int64, on the CPU.

    Raises
    ------
    InputError
        If the encoder reads no texts, or none of this length; the set cannot be loaded; or a text has no tokens.
    """
    if encoder.tokenizer is None:
        raise InputError(f"{encoder.name} has no tokenizer, and reads no texts.")
    if chunks and not encoder.is_causal:
        raise InputError(f"Chunks of running text are for decoders, and {encoder.name} is none: take chunks=False.")
    if not 2 <= length <= encoder.longest_text:
        raise InputError(f"{encoder.name} reads texts of 2 to {encoder.longest_text} tokens, not of {length}.")
    entry = catalog.dataset_entry(name, catalog.TEXTS)
    make = EMBEDDED.get(name) or entry.make
    train, test = make() if make else open_texts(entry, text_column, seed)

    def load(table: TextTable, split: str, size: int | None) -> Texts:
        if chunks:
            texts = Texts(chunked(encoder.tokenizer, table.texts, length), device=encoder.device)
            return texts.sample(min(size, len(texts)) if at_most else size, seed) if size else texts
        count = len(table.texts)
        size = min(size, count) if at_most and size else size
        rows = draw_rows(count, size, seed, kind=f"{split} texts") if size else torch.arange(count)
        tokens = tokenised(encoder.tokenizer, [table.texts[row] for row in rows.tolist()], length)
        labels = None if table.labels is None else table.labels[rows]
        return Texts(tokens, labels, table.class_names, encoder.device)

    return TextSet(catalog.dataset_alias(name), load(train, "train", train_size), load(test, "test", test_size))


def tokenised(tokenizer: Any, texts: list[str], length: int, *, side: str = "right") -> Tokens:
    """Texts cut to at most `length` tokens and padded on that side to the longest; one without tokens is refused."""
    options = {"truncation": True, "max_length": length, "padding": True, "padding_side": side}
    encoded = tokenizer(texts, return_tensors="pt", **options)
    tokens = Tokens(encoded["input_ids"], encoded["attention_mask"])
    if len(empty := (tokens.attention_mask.sum(1) == 0).nonzero()):
        raise InputError(f"Text {int(empty[0])} has no tokens.")
    return tokens


def chunked(tokenizer: Any, texts: list[str], length: int) -> Tokens:
    """All texts, joined by empty lines, in pieces of exactly `length` tokens; the rest of the tokens is dropped."""
    joined = "\n\n".join(text for text in texts if text.strip())
    ids = torch.tensor(tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    count = len(ids) // length
    if not count:
        raise InputError(f"{len(ids)} tokens make no chunk of {length}.")
    ids = ids[: count * length].view(count, length)
    return Tokens(ids, torch.ones_like(ids))


def passages(book: str) -> list[str]:
    """The passages of an embedded book; empty lines separate them in its file."""
    return (catalog.DATA / "texts" / f"{book}.txt").read_text(encoding="utf-8").strip().split("\n\n")


def books(width: int | None = None) -> tuple[TextTable, TextTable]:
    """The embedded passages, every fifth of each book for testing; in lines of at most `width` characters if given."""
    texts, labels = ([], []), ([], [])  # for training, for testing
    for label, book in enumerate(BOOKS):
        for number, passage in enumerate(passages(book)):
            split = number % 5 == 4
            lines = textwrap.wrap(passage, width) if width else [passage]
            texts[split].extend(lines)
            labels[split].extend([label] * len(lines))
    return tuple(TextTable(lines, torch.tensor(numbers), BOOKS) for lines, numbers in zip(texts, labels, strict=True))


EMBEDDED = {"books": books, "lines": lambda: books(width=60)}
"""Alias -> function that makes its training and test split."""
