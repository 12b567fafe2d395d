"""Spans and plans: the blocks that are removed, and the outputs between which a translator stands in for them.

Blocks count from 0, and ``h[k]`` is the output of block ``k``; ``h[-1]`` is the input of block 0.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Self

from toastlib.errors import InputError

ORIGINAL = "original"
"""How the empty plan is printed: the model without changes."""


class Span(NamedTuple):
    """Blocks ``start+1..end``, replaced by one map.

    Parameters
    ----------
    start, end
        The map takes ``h[start]`` (-1: the input of block 0) to an approximation of ``h[end]``.
    """

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"s->e"``, or ``"s..e"``, which needs no quotes in a shell.

        Raises
        ------
        InputError
            If the text is not of that form, or the span runs backwards, is empty or starts before ``h[-1]``.
        """
        match = re.fullmatch(r"(-?\d+)(?:->|\.\.)(\d+)", text.strip())
        if match is None:
            shell = " (a shell takes > for itself: write '2->5' in quotes, or 2..5)" if text.endswith("-") else ""
            raise InputError(f"{text!r} is not a span: write it as start->end, for example '2->5'{shell}.")
        start, end = span = cls(int(match[1]), int(match[2]))
        if end < start:
            right = f"'{end}->{start}' to remove the blocks after {end} up to {start}"
            raise InputError(f"Span {text!r} runs backwards: write {right}.")
        if end == start:
            raise InputError(f"Span {text!r} removes nothing: its end must lie after its start.")
        if start < -1:
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
    >>> print(Plan.parse([(4, 5), (1, 2)]), "|", Plan())
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
    def parse(cls, plan: "str | Plan | Iterable[tuple[int, int]]") -> "Plan":
        """Read ``"1->2 4->5"``, ``"1..2 4..5"``, ``[(1, 2), (4, 5)]`` or a plan.

        ``"original"``, ``""`` and ``[]`` give the empty plan.

        Raises
        ------
        InputError
            If it is no plan, or a span of it is none.
        """
        if isinstance(plan, Plan):
            return plan
        if not isinstance(plan, Iterable):
            raise InputError(f"{plan!r} is not a plan: write it as '1->2 4->5' or [(1, 2), (4, 5)].")
        if not isinstance(plan, str):
            plan = " ".join(map(_span_text, plan))
        if plan.strip() in ("", ORIGINAL):
            return cls()
        return cls(tuple(map(Span.parse, re.sub(r"\s*(->|\.\.)\s*", r"\1", plan).split())))

    def check(self, block_count: int) -> Self:
        """The plan itself, if it fits a model of `block_count` blocks.

        Raises
        ------
        InputError
            If a span ends beyond the last block.
        """
        for span in self.spans:
            if span.end >= block_count:
                depth = f"it has {block_count} blocks, so the last is {block_count - 1}"
                raise InputError(f"Span {span} leaves the model: {depth}.")
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


def plan_of(removed: Iterable[int]) -> Plan:
    """The plan that removes these blocks, neighbours in one span: ``1->3 6->7`` removes 2, 3 and 7."""
    runs = itertools.groupby(enumerate(sorted(removed)), key=lambda item: item[1] - item[0])
    blocks = [[block for _, block in run] for _, run in runs]
    return Plan(tuple(Span(run[0] - 1, run[-1]) for run in blocks))


def parse_plans(plans: "str | Plan | Iterable[Any]") -> list[Plan]:
    """Read one plan or several, in any form of `Plan.parse`, without repetitions and in the order given.

    A list that holds pairs of blocks, such as ``[(1, 5), (7, 8)]``, is one plan.
    """
    if not isinstance(plans, str | Plan) and isinstance(plans, Iterable):
        plans = list(plans)
        if not any(map(_is_pair, plans)):
            return list(dict.fromkeys(map(Plan.parse, plans)))
    return [Plan.parse(plans)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, Integral) for end in value)


def _span_text(pair: Any) -> str:
    if not _is_pair(pair):
        raise InputError(f"{pair!r} is not a span: a list of spans holds pairs of blocks, as in [(1, 2), (4, 5)].")
    return f"{pair[0]}->{pair[1]}"


def all_spans(block_count: int) -> list[Span]:
    """Every span of a model: ``block_count * (block_count + 1) / 2`` of them."""
    return [Span(start, end) for start in range(-1, block_count) for end in range(start + 1, block_count)]
