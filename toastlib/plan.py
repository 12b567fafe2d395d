"""Spans and plans: which blocks are removed, and between which outputs a map stands in for them.

Blocks count from 0, and ``h[k]`` is the output of block ``k``; ``h[-1]`` is the input of block 0.
The span ``s->e`` removes blocks ``s+1..e``: a map takes ``h[s]`` to an approximation of ``h[e]``.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from toastlib.errors import InputError

ORIGINAL = "original"
"""How the empty plan is printed: the model as it came."""


class Span(NamedTuple):
    """Blocks ``start+1..end``, replaced by one map from ``h[start]`` to ``h[end]``.

    Parameters
    ----------
    start
        Block whose output the map takes; -1 is the input of block 0.
    end
        Block whose output the map approximates, and the last one that is removed.
    """

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"s->e"``.

        Raises
        ------
        InputError
            If the text is not of that form, or the span runs backwards or starts before ``h[-1]``.
        """
        match = re.fullmatch(r"(-?\d+)->(\d+)", text.strip())
        if match is None:
            raise InputError(f"{text!r} is not a span: write it as start->end, for example '2->5'.")
        span = cls(int(match[1]), int(match[2]))
        if span.end <= span.start:
            raise InputError(
                f"Span {text!r} runs backwards: write '{span.end}->{span.start}' to remove the blocks "
                f"after {span.end} up to {span.start}."
                if span.end < span.start
                else f"Span {text!r} removes nothing: its end must lie after its start."
            )
        if span.start < -1:
            raise InputError(f"Span {text!r} starts before the model: the input of block 0 is -1.")
        return span

    @property
    def blocks(self) -> range:
        """The blocks that the span removes."""
        return range(self.start + 1, self.end + 1)

    def __str__(self) -> str:
        return f"{self.start}->{self.end}"


@dataclass(frozen=True)
class Plan:
    """Non-overlapping spans in order; the empty plan is the original model.

    Parameters
    ----------
    spans
        Any iterable of `Span`; kept sorted by start.

    Raises
    ------
    InputError
        If two spans overlap.

    Examples
    --------
    >>> Plan.parse("4->5 1->2").removed
    (2, 5)
    >>> print(Plan.parse("4->5 1->2"), "|", Plan())
    1->2 4->5 | original
    """

    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        spans = tuple(sorted(self.spans))
        object.__setattr__(self, "spans", spans)
        for left, right in itertools.pairwise(spans):
            if right.start < left.end:
                raise InputError(
                    f"Spans {left} and {right} overlap: both remove block {right.start + 1}; "
                    f"start the second at {left.end} or later."
                )

    @classmethod
    def parse(cls, text: "str | Plan") -> "Plan":
        """Read ``"1->2 4->5"``; ``"original"`` and ``""`` give the empty plan, a plan is returned as is."""
        if isinstance(text, Plan):
            return text
        if text.strip() in ("", ORIGINAL):
            return cls()
        return cls(tuple(Span.parse(part) for part in re.sub(r"\s*->\s*", "->", text).split()))

    def check(self, block_count: int) -> Self:
        """Return the plan itself if it fits a model of `block_count` blocks.

        Raises
        ------
        InputError
            If a span ends beyond the last block.
        """
        for span in self.spans:
            if span.end >= block_count:
                raise InputError(
                    f"Span {span} leaves the model: it has {block_count} blocks, so the last is {block_count - 1}."
                )
        return self

    @property
    def removed(self) -> tuple[int, ...]:
        """The removed blocks, in order."""
        return tuple(block for span in self.spans for block in span.blocks)

    def __str__(self) -> str:
        return " ".join(map(str, self.spans)) or ORIGINAL

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)


def plan_of(removed: Iterable[int]) -> Plan:
    """The plan that removes these blocks, neighbours in one span.

    Examples
    --------
    >>> print(plan_of([2, 3, 7]))
    1->3 6->7
    """
    runs = itertools.groupby(enumerate(sorted(removed)), key=lambda item: item[1] - item[0])
    blocks = [[block for _, block in run] for _, run in runs]
    return Plan(tuple(Span(run[0] - 1, run[-1]) for run in blocks))


def parse_plans(plans: "str | Plan | Iterable[str | Plan]") -> list[Plan]:
    """Read one plan or several, without repetitions, in the order given."""
    if isinstance(plans, str | Plan):
        plans = [plans]
    return list(dict.fromkeys(Plan.parse(plan) for plan in plans))


def all_spans(block_count: int) -> list[Span]:
    """Every span of a model: ``block_count * (block_count + 1) / 2`` of them."""
    return [Span(start, end) for start in range(-1, block_count) for end in range(start + 1, block_count)]
