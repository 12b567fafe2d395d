"""Spans and plans: read, checked, printed."""

import itertools

import numpy as np
import pytest

from toastlib.errors import InputError
from toastlib.plan import Plan, Span, all_spans, parse_plans, plan_of


@pytest.mark.parametrize("text", ["1->2", "-1->0", "0->11", "1->2 4->5", "-1->1 1->3 7->10", "original"])
def test_a_plan_prints_as_it_was_written(text):
    assert str(Plan.parse(text)) == text


def test_every_two_spans_either_make_a_plan_that_reads_back_or_share_a_block():
    for pair in itertools.combinations(all_spans(4), 2):
        if set(pair[0].blocks) & set(pair[1].blocks):
            with pytest.raises(InputError, match="overlap"):
                Plan(pair)
        else:
            assert Plan.parse(str(Plan(pair))) == Plan(pair)


@pytest.mark.parametrize("text", ["4->5 1->2", " 1->2   4->5 ", "1 -> 2 4 ->5"])
def test_order_and_spaces_do_not_matter(text):
    assert Plan.parse(text) == Plan((Span(1, 2), Span(4, 5)))


@pytest.mark.parametrize("text", ["", "  ", "original"])
def test_nothing_and_original_are_the_empty_plan(text):
    plan = Plan.parse(text)
    assert plan == Plan()
    assert not plan
    assert plan.removed == ()


def test_a_span_removes_the_blocks_after_its_start_up_to_its_end():
    assert list(Span.parse("2->5").blocks) == [3, 4, 5]
    assert list(Span.parse("-1->0").blocks) == [0]


def test_a_plan_removes_the_blocks_of_all_its_spans():
    plan = Plan.parse("7->9 1->2")
    assert plan.removed == (2, 8, 9)
    assert len(plan) == 2
    assert list(plan) == [Span(1, 2), Span(7, 9)]


def test_spans_may_touch():
    assert Plan.parse("1->2 2->3").removed == (2, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5->2", "Span '5->2' runs backwards: write '2->5' to remove the blocks after 2 up to 5."),
        ("3->3", "Span '3->3' removes nothing: its end must lie after its start."),
        ("-2->1", "Span '-2->1' starts before the model: the input of block 0 is -1."),
        ("2-5", "'2-5' is not a span: write it as start->end, for example '2->5'."),
        ("1->2->3", "'1->2->3' is not a span"),
        ("2-", "(a shell takes > for itself: write '2->5' in quotes, or 2..5)"),
        ("1...3", "'1...3' is not a span"),
        ("0->-1", "'0->-1' is not a span"),
        ("1.5->2", "'1.5->2' is not a span"),
        ("1->4 2->5", "Spans 1->4 and 2->5 overlap: both remove block 3; start the second at 4 or later."),
        ("1->3 1->2", "overlap: both remove block 2; start the second at 2 or later"),
    ],
)
def test_what_is_no_plan_is_refused_with_what_would_be_one(text, says):
    with pytest.raises(InputError) as error:
        Plan.parse(text)
    assert says in str(error.value)


def test_the_last_block_may_go_but_none_beyond_it():
    plan = Plan.parse("3->5")
    assert plan.check(6) is plan
    with pytest.raises(InputError, match=r"^Span 3->5 leaves the model: it has 5 blocks, so the last is 4\.$"):
        plan.check(5)


@pytest.mark.parametrize(
    "pairs",
    [[(1, 5), (7, 8)], [(7, 8), (1, 5)], ((1, 5), (7, 8)), [[1, 5], [7, 8]], [Span(1, 5), Span(7, 8)]],
    ids=["in order", "out of order", "tuple", "lists", "spans"],
)
def test_a_plan_is_read_from_pairs_of_blocks(pairs):
    assert Plan.parse(pairs) == Plan.parse("1->5 7->8")
    assert parse_plans(pairs) == [Plan.parse("1->5 7->8")]


def test_pairs_may_be_numpy_numbers_and_come_from_a_generator():
    assert str(Plan.parse(pair for pair in zip(np.array([1, 7]), np.array([5, 8])))) == "1->5 7->8"
    assert parse_plans(zip(np.array([1, 7]), np.array([5, 8]))) == [Plan.parse("1->5 7->8")]


def test_no_pairs_are_the_empty_plan_and_no_plans_are_none():
    assert Plan.parse([]) == Plan()
    assert parse_plans([]) == []
    assert parse_plans([[]]) == [Plan()]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ([(1, 5, 6)], "(1, 5, 6) is not a span: a list of spans holds pairs of blocks, as in [(1, 2), (4, 5)]."),
        ([(1, 5), (7,)], "(7,) is not a span"),
        ([(1, 5), 7], "7 is not a span"),
        ([(1, 5), "7->8"], "'7->8' is not a span: a list of spans holds pairs"),
        ([(1, 5), [(7, 8)]], "[(7, 8)] is not a span"),
        ([(1.5, 2)], "(1.5, 2) is not a span"),
        ([("1", "2")], "('1', '2') is not a span"),
        ((1, 5), "1 is not a span: a list of spans holds pairs"),
        (5, "5 is not a plan: write it as '1->2 4->5' or [(1, 2), (4, 5)]."),
        (None, "None is not a plan"),
        ([(5, 2)], "Span '5->2' runs backwards: write '2->5'"),
        ([(3, 3)], "Span '3->3' removes nothing"),
        ([(-2, 1)], "Span '-2->1' starts before the model"),
        ([(0, -1)], "'0->-1' is not a span"),
        ([(True, 2)], "'True->2' is not a span"),
        ([(1, 4), (2, 5)], "Spans 1->4 and 2->5 overlap"),
    ],
)
def test_a_malformed_list_of_pairs_is_refused(plan, says):
    with pytest.raises(InputError) as error:
        Plan.parse(plan)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "plans", [[(1, 5, 6)], [(1, 5), "7->8"], [(1, 5), [(7, 8)]], (1, 5), 5, None, [None], [[1, 5], 7]]
)
def test_parse_plans_refuses_a_malformed_list_of_pairs(plans):
    with pytest.raises(InputError, match=r"is not a (span|plan)"):
        parse_plans(plans)


def test_parse_plans_reads_lists_of_pairs_beside_texts_and_plans():
    plans = parse_plans([[(1, 5), (7, 8)], "2->3", Plan.parse("1->2"), [(2, 3)], []])
    assert [str(plan) for plan in plans] == ["1->5 7->8", "2->3", "1->2", "original"]


def test_parse_plans_keeps_the_order_and_drops_repetitions():
    plans = parse_plans(["4->5 1->2", "2->3", Plan.parse("1->2 4->5"), "original"])
    assert [str(plan) for plan in plans] == ["1->2 4->5", "2->3", "original"]


def test_parse_plans_takes_a_single_plan():
    assert parse_plans("1->2 4->5") == [Plan.parse("1->2 4->5")]


def test_all_spans_are_every_ordered_pair_of_outputs():
    spans = all_spans(5)
    assert len(set(spans)) == 5 * 6 / 2
    assert all(-1 <= span.start < span.end < 5 for span in spans)


@pytest.mark.parametrize("span", all_spans(4))
def test_neighbouring_blocks_make_one_span(span):
    assert plan_of(reversed(span.blocks)) == Plan((span,))


def test_blocks_apart_make_spans_of_their_own():
    assert str(plan_of([9, 0, 4, 5])) == "-1->0 3->5 8->9"
    assert plan_of([]) == Plan()


def test_dots_are_an_arrow_that_a_shell_leaves_alone():
    assert Plan.parse("-1..0 2 .. 5") == Plan.parse("-1->0 2->5")
