"""Criteria: every span has a cost, from moments alone; and no label is seen."""

import math

import pytest
import torch

from toastlib.errors import InputError
from toastlib.plan import Plan, Span, all_spans
from toastlib.selection.criteria import CRITERIA, NEED_FOLDS, span_costs
from toastlib.selection.plans import best_plans, select
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import plan_pairs
from toastlib.statistics.similarity import angular, cka, cosine, mse
from toastlib.translators.per_token import PerTokenType


@pytest.fixture
def folds(tiny_encoder, tiny_images):
    return collect_moments(tiny_encoder, tiny_images.train[:40], folds=5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_gives_every_span_a_cost(folds, criterion):
    costs = span_costs(folds, criterion)
    assert set(costs) == set(all_spans(6))
    assert all(cost > 0 for cost in costs.values())
    assert select(folds, remove=2, criterion=criterion) == best_plans(costs, 1, 2)[0]


def test_similarities_are_those_of_the_plain_moments(tiny_encoder, tiny_images, folds):
    moments = collect_moments(tiny_encoder, tiny_images.train[:40], folds=0)
    for name, measure in (("mse", mse), ("angular", angular), ("block-influence", cosine), ("cka", cka)):
        matrix, costs = measure(moments), span_costs(folds, name)
        for (start, end), cost in costs.items():
            value = matrix[start + 1, end + 1].item()
            assert cost == pytest.approx(value if measure in (mse, angular) else 1 - value, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("tokens", "rows"), [("all", slice(None)), ("cls", slice(1))])
def test_block_influence_is_one_minus_the_mean_cosine_of_rows(tiny_encoder, tiny_images, tokens, rows):
    """On the outputs of the blocks themselves, caught by hooks, row by row: of all tokens, or of CLS."""
    images = tiny_images.train[:7]
    outputs = []
    catch = [
        tiny_encoder.blocks[0].register_forward_pre_hook(lambda block, given: outputs.append(given[0])),
        *(b.register_forward_hook(lambda block, given, out: outputs.append(out)) for b in tiny_encoder.blocks),
    ]
    with torch.inference_mode():
        tiny_encoder(next(images.batches(7))[0])
    for hook in catch:
        hook.remove()
    h = [(out[0] if isinstance(out, tuple) else out)[:, rows].flatten(0, 1).double() for out in outputs]
    costs = span_costs(collect_moments(tiny_encoder, images, folds=0, tokens=tokens), "block-influence")
    for span in (Span(-1, 0), Span(1, 2), Span(0, 4)):
        x, y = h[span.start + 1], h[span.end + 1]
        cosines = [float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(x, y, strict=True)]
        assert costs[span] == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in NEED_FOLDS])
def test_a_block_whose_rows_are_all_alike_has_a_cost_too(tiny_encoder, tiny_images, criterion):
    """As the CLS tokens before block 0; nothing can be like them, and CKA is undefined."""
    costs = span_costs(collect_moments(tiny_encoder, tiny_images.train[:40], tokens="cls"), criterion)
    assert all(math.isfinite(cost) for cost in costs.values())
    if criterion == "cka":
        assert {cost for span, cost in costs.items() if span.start == -1} == {1.0}


def test_a_fit_leaves_less_of_what_it_was_fitted_on_than_of_what_was_held_out(folds):
    fit, held_out = span_costs(folds, "fit"), span_costs(folds, "held-out")
    assert all(fit[span] < held_out[span] for span in fit)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_plain_moments_are_enough_where_nothing_is_held_out(tiny_encoder, tiny_images, folds, criterion):
    moments = collect_moments(tiny_encoder, tiny_images.train[:40], folds=0)
    if criterion in NEED_FOLDS:
        with pytest.raises(
            InputError, match=f"^Criterion '{criterion}' is a held-out error: collect moments with folds"
        ):
            span_costs(moments, criterion)
    else:
        costs = span_costs(moments, criterion)
        assert costs == pytest.approx(span_costs(folds, criterion), rel=1e-6, abs=1e-9)  # summed in another order


def test_the_choice_is_the_same_whatever_the_labels(tiny_encoder, tiny_images):
    images = tiny_images.train[:20]
    bare = type(images)(images.pixels, None, images.class_names, images.preprocessing)
    assert span_costs(collect_moments(tiny_encoder, images, folds=5)) == span_costs(
        collect_moments(tiny_encoder, bare, folds=5)
    )


def test_by_token_is_the_mean_of_the_held_out_errors_of_separate_maps(folds):
    """Spans from one block share the decompositions of its rows; a fit for each span alone does not."""
    for span, cost in span_costs(folds, "by-token").items():
        fits = PerTokenType().fit_moments(folds, span).fits_.values()
        assert cost == pytest.approx(sum(fit.cv_error_ for fit in fits) / len(fits), rel=1e-9)


def test_criteria_and_moments_that_do_not_suit_are_refused(tiny_encoder, tiny_images, folds):
    images = tiny_images.train[:10]
    with pytest.raises(InputError, match="Unknown criterion 'mes': did you mean 'mse'"):
        span_costs(folds, "mes")
    with pytest.raises(InputError, match=r"^Unknown criterion 'cosine': choose from mse, block-influence, angular, "):
        span_costs(folds, "cosine")
    with pytest.raises(InputError, match="Criterion 'by-token' is a held-out error: collect moments with folds"):
        span_costs(collect_moments(tiny_encoder, images, folds=0))
    with pytest.raises(InputError, match="do not hold the blocks"):
        span_costs(collect_moments(tiny_encoder, images, plan_pairs([Plan.parse("1->2 3->5")]), folds=5))


@pytest.mark.parametrize("own", [lambda moments, span: {}["x"], lambda moments, span: moments.inner])
def test_a_criterion_of_ones_own_that_gives_no_number_is_named(folds, monkeypatch, own):
    monkeypatch.setitem(CRITERIA, "mine", own)
    with pytest.raises(InputError, match=r"^Criterion 'mine' raises (KeyError: 'x'|\w+: .* elements? )"):
        span_costs(folds, "mine")
