"""A playground gives the answers of `evaluate_plans` on the same images, and runs only the blocks behind a span."""

from dataclasses import replace

import numpy as np
import pytest

from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.interactive import Playground
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.encoder import Encoder
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments
from toastlib.translators.base import TRANSLATORS

PLANS = ("1->3", "-1->0", "0->1 1->2 3->5")
HEAD = HeadConfig(seeds=2, min_steps=0)


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder(tiny_model("vit", num_hidden_layers=6), name="tiny")


@pytest.fixture(scope="module")
def moments(encoder, tiny_images):
    return collect_moments(encoder, tiny_images.train, folds=0)


@pytest.fixture(scope="module")
def playground(encoder, tiny_images, moments):
    return Playground(encoder, tiny_images, moments, head=HEAD)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("translator", ["identity", "linear"])
def test_an_answer_is_that_of_evaluate_plans(encoder, tiny_images, moments, playground, plan, translator):
    options = {"translators": [translator], "calibration": moments, "head": HEAD}
    evaluation = evaluate_plans(encoder, tiny_images, plan, **options)
    row = evaluation.table.query("plan != 'original'")
    answer = playground.answer(plan, translator)
    first = (evaluation.variants["plan"] == plan) & (evaluation.variants["seed"] == 0)
    assert np.array_equal(answer.predicted, evaluation.predictions[first][0])
    assert answer.accuracy == pytest.approx(row["accuracy"].mean())
    assert [answer.lost, answer.lost_low, answer.lost_high] == evaluation.lost.iloc[0, -3:].tolist()
    assert answer.parameters == row["parameters"].iloc[0]
    assert answer.gflops == pytest.approx(row["gflops"].iloc[0])


def test_the_empty_plan_is_the_original_with_any_translator(playground):
    assert playground.answer("", "linear") is playground.original
    assert (playground.original.lost, playground.original.lost_low, playground.original.lost_high) == (0, 0, 0)


def test_lost_is_the_difference_of_the_accuracies(playground):
    answer = playground.answer("1->3", "identity")
    assert answer.lost == pytest.approx(playground.original.accuracy - answer.accuracy)
    assert answer.lost_low <= answer.lost <= answer.lost_high


def test_only_blocks_behind_the_first_span_run(encoder, playground):
    ran = []
    hooks = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(encoder.blocks)]
    playground.answer("0->3", "affine")
    assert sorted(set(ran)) == [4, 5]
    ran.clear()
    playground.answer("0->3", "affine")
    assert ran == []  # cached
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("translator", ["affine", "diagonal"])
@pytest.mark.parametrize("plan", PLANS)
def test_costs_add_up_to_those_of_the_whole_plan(encoder, tiny_images, playground, plan, translator):
    inputs, _ = next(tiny_images.test[:1].batches(1))
    whole = plan_costs(encoder, [Plan.parse(plan)], [translator], inputs=inputs).iloc[0]
    answer = playground.answer(plan, translator)
    assert (answer.parameters, answer.gflops) == (whole["parameters"], pytest.approx(whole["gflops"]))


def test_translators_that_need_folds_are_offered_with_folds_and_trained_ones_never(encoder, tiny_images, playground):
    folds = collect_moments(encoder, tiny_images.train, folds=5)
    with_folds = Playground(encoder, tiny_images, folds, head=HEAD)
    assert set(TRANSLATORS) - set(with_folds.translators) == {"per-position", "mlp", "res-mlp", "warm-start-mlp"}
    assert set(with_folds.translators) - set(playground.translators) == {"ridge", "separate", "context"}
    for name in with_folds.translators:
        assert len(with_folds.answer("1->3", name).predicted) == 60


def test_the_table_has_a_row_for_each_translator_after_the_original(playground):
    table = playground.table("1->3", ["identity", "linear"])
    assert list(table["translator"]) == ["original", "identity", "linear"]
    assert table["accuracy"].iloc[1] == playground.answer("1->3", "identity").accuracy
    assert list(playground.table("")["translator"]) == ["original"]
    assert list(playground.table("1->3")["translator"])[1:] == playground.translators


def test_flips_are_counted_both_ways(playground):
    answer, labels = playground.answer("-1->3", "identity"), playground.labels
    assert (answer.predicted != labels).sum() > 0
    before, after = playground.original.predicted == labels, answer.predicted == labels
    worse, better = answer.right_to_wrong, answer.wrong_to_right
    assert worse - better == before.sum() - after.sum()
    assert worse == sum(b and not a for b, a in zip(before, after))


def test_few_images_take_part_where_memory_is_short(encoder, tiny_images, moments):
    one_image = 17 * 32 * 4 * 7  # tokens, width, bytes, blocks and the input of block 0
    assert len(Playground(encoder, tiny_images, moments, head=HEAD, memory=10 * one_image).labels) == 10
    assert len(Playground(encoder, tiny_images, moments, head=HEAD, images=20).labels) == 20


def test_the_images_of_which_the_original_is_least_sure_are_right_ones_first(playground):
    right = playground.original.predicted == playground.labels
    shown = playground.least_sure(int(right.sum()))
    assert right[shown].all()
    assert playground.least_sure(3) == sorted(set(playground.least_sure(3)))
    assert set(playground.least_sure(3)) <= set(shown)


@pytest.mark.parametrize(
    ("plan", "translator", "message"),
    [
        ("1->3", "mlp", "'mlp'"),
        ("1->3", "separate", "'separate'"),
        ("1->9", "linear", "leaves the model"),
        ("3->1", "linear", "runs backwards"),
    ],
)
def test_what_cannot_be_answered_is_said(playground, plan, translator, message):
    with pytest.raises(InputError, match=message):
        playground.answer(plan, translator)


def test_images_need_labels(encoder, tiny_images, moments):
    unlabelled = ImageSet("bare", tiny_images.train, replace(tiny_images.test, labels=None))
    with pytest.raises(InputError, match="bare has no labels"):
        Playground(encoder, unlabelled, moments)
