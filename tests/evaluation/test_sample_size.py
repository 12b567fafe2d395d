"""Nested draws are what drawing anew gives, and every point of the curve is an evaluation of its own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.evaluation.sample_size import (
    cap_sizes,
    nested_moments,
    sample_size_curve,
    saturation,
    variance_split,
)
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.models.walk import check_walk
from toastlib.plan import Span, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import plan_pairs
from toastlib.translators.linear import Linear

SIZES, DRAWS, SEEDS = [8, 20, 64], [0, 3], [0, 1]
PLANS = ["1->3", "0->1 3->5"]
HEAD = HeadConfig("frozen", SEEDS, learning_rate=1e-2, min_steps=50)
OPTIONS = {"sizes": SIZES, "draws": DRAWS, "head": HEAD}


@pytest.fixture(scope="module")
def curve(tiny_model, tiny_images) -> pd.DataFrame:
    """Of an encoder with the weights of `tiny_encoder`."""
    encoder = Encoder(tiny_model("vit", num_hidden_layers=6), name="tiny")
    return sample_size_curve(encoder, tiny_images, PLANS, **OPTIONS)


@pytest.mark.parametrize("seed", DRAWS)
def test_nested_moments_are_those_of_each_draw_by_itself(tiny_encoder, tiny_images, seed):
    pairs = plan_pairs(parse_plans(PLANS))
    nested = nested_moments(tiny_encoder, tiny_images.train, SIZES, seed, pairs)
    assert list(nested) == SIZES
    for size, moments in nested.items():
        direct = collect_moments(tiny_encoder, tiny_images.train.sample(size, seed), pairs, folds=0)
        assert moments.count == direct.count == 17 * size
        assert moments.products.keys() == direct.products.keys() == set(pairs)
        for pair in pairs:
            torch.testing.assert_close(moments.product(*pair), direct.product(*pair), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moments.inner, direct.inner, rtol=1e-6, atol=0)


def test_each_image_passes_the_encoder_once_per_draw(tiny_encoder, tiny_images):
    seen = []
    check_walk(tiny_encoder, next(tiny_images.train.batches(2))[0])
    tiny_encoder.blocks[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    nested_moments(tiny_encoder, tiny_images.train, SIZES, 0, [(1, 1), (1, 3)])
    assert sum(seen) == max(SIZES)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", SIZES)
def test_every_point_of_the_curve_is_what_an_evaluation_gives(tiny_encoder, tiny_images, curve, size, draw):
    drawn = tiny_images.train.sample(size, seed=draw)
    alone = evaluate_plans(tiny_encoder, tiny_images, PLANS, translators=["linear"], calibration=drawn, head=HEAD)
    for plan in PLANS:
        chosen = (curve["plan"] == plan) & (curve["calibration_size"] == size) & (curve["calibration_seed"] == draw)
        theirs = alone.correct[(alone.variants["plan"] == plan).to_numpy()].sum(1)
        assert np.abs(curve.loc[chosen, "correct"].to_numpy() - theirs).max() <= 1  # a tie that rounding decides


def test_original_and_identity_are_those_of_an_evaluation(tiny_encoder, tiny_images, curve):
    alone = evaluate_plans(tiny_encoder, tiny_images, PLANS, translators=["identity"], head=HEAD)
    for translator, plan in [("original", "original"), *(("identity", plan) for plan in PLANS)]:
        ours = curve[(curve["translator"] == translator) & (curve["plan"] == plan)]
        kinds = alone.variants
        theirs = alone.correct[((kinds["translator"] == translator) & (kinds["plan"] == plan)).to_numpy()].sum(1)
        assert ours["seed"].tolist() == SEEDS
        assert np.abs(ours["correct"].to_numpy() - theirs).max() <= 1


def test_residuals_are_those_of_the_rows(tiny_encoder, tiny_images, curve):
    span, size, draw = Span(1, 3), 20, 3
    calibration = tiny_images.train.sample(size, draw)
    weight = Linear().fit_moments(collect_moments(tiny_encoder, calibration, folds=0), span).weight_

    def left(images) -> float:
        h = collect_activations(tiny_encoder, images, span, tokens="all")
        start, end = h[1].double(), h[3].double()
        return ((end - start @ weight).square().sum() / end.square().sum()).item()

    row = curve.query("plan == '1->3' and calibration_size == @size and calibration_seed == @draw").iloc[0]
    assert row["residual"] == pytest.approx(left(calibration), rel=1e-6)
    assert row["residual_test"] == pytest.approx(left(tiny_images.test), rel=1e-6)
    dropped = curve.query("plan == '1->3' and translator == 'identity'")["residual_test"].iloc[0]
    h = collect_activations(tiny_encoder, tiny_images.test, span, tokens="all")
    assert dropped == pytest.approx(((h[3] - h[1]).square().sum() / h[3].square().sum()).item(), rel=1e-4)


def test_the_curve_is_tidy_and_complete(curve):
    assert list(curve.columns) == [
        *("model", "features", "dataset", "image_size", "head", "translator", "plan"),
        *("calibration_size", "calibration_seed"),
        *("rank", "residual", "residual_test", "seed", "correct", "images", "accuracy", "accuracy_low"),
        *("accuracy_high", "lost", "lost_low", "lost_high"),
        *("blocks_removed", "parameters", "removed_parameters", "removed_parameters_paper", "gflops"),
    ]
    assert len(curve) == len(SEEDS) * (1 + len(PLANS) * (1 + len(SIZES) * len(DRAWS)))
    assert not curve.duplicated(["plan", "translator", "calibration_size", "calibration_seed", "seed"]).any()
    mapped = curve[curve["translator"] == "linear"]
    assert set(mapped["calibration_size"]) == set(SIZES)
    assert not mapped.isna().any(axis=None)
    assert (mapped["rank"] == 32).all()
    without = curve[curve["translator"] != "linear"]
    assert (without[["calibration_size", "calibration_seed", "rank"]] == 0).all(axis=None)
    assert without["residual"].isna().all()
    assert curve.loc[curve["translator"] == "original", "residual_test"].isna().all()
    assert set(curve["head"]) == {"frozen"}


def test_the_same_seeds_give_the_same_curve_bit_for_bit(tiny_encoder, tiny_images, curve):
    again = sample_size_curve(tiny_encoder, tiny_images, PLANS, **OPTIONS)
    pd.testing.assert_frame_equal(curve, again, check_exact=True)


def test_sizes_beyond_the_split_become_all_of_it(tiny_encoder, tiny_images):
    assert cap_sizes([64, 8, 500, 8, 1000], 90) == [8, 64, 90]
    curve = sample_size_curve(tiny_encoder, tiny_images, "1->3", sizes=[1000], draws=[0, 1], head=HeadConfig(seeds=[0]))
    mapped = curve[curve["translator"] == "linear"]
    assert mapped["calibration_size"].tolist() == [90, 90]
    assert mapped["residual"].iloc[0] == pytest.approx(mapped["residual"].iloc[1], rel=1e-9)  # the same images


@pytest.mark.parametrize("sizes", [[], [0, 16], [-1]])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(InputError, match=r"numbers of images from 1 on|calibration size is a whole number from 1 on"):
        cap_sizes(sizes, 90)


def test_what_has_no_curve_is_refused(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="Span 4->6 leaves the model"):
        sample_size_curve(tiny_encoder, tiny_images, "4->6", sizes=[8])
    for none in ([], "original"):
        with pytest.raises(InputError, match=r"^A curve needs a plan that removes blocks, such as '1->3'\.$"):
            sample_size_curve(tiny_encoder, tiny_images, none, sizes=[8])
    unlabelled = ImageSet("bare", tiny_images.train, replace(tiny_images.test, labels=None))
    with pytest.raises(InputError, match="bare has no labels"):
        sample_size_curve(tiny_encoder, unlabelled, "1->3", sizes=[8])


def made_up(accuracy: np.ndarray, plan: str = "1->3") -> pd.DataFrame:
    """A curve from accuracies of shape (sizes, draws, seeds); size number i has 2^i images."""
    rows = [("linear", plan, 2**size, draw, seed, value) for (size, draw, seed), value in np.ndenumerate(accuracy)]
    reference = ("identity", plan, 0, 0, 0, 10.0)
    columns = ["translator", "plan", "calibration_size", "calibration_seed", "seed", "accuracy"]
    return pd.DataFrame([reference, *rows], columns=columns)


def test_variances_are_found_again():
    draw = np.random.default_rng(0)
    deviations = {"draws": 2.0, "head_seeds": 0.7, "remainder": 0.4}
    shapes = {"draws": (1, 400, 1), "head_seeds": (1, 1, 400), "remainder": (1, 400, 400)}
    effects = sum(draw.normal(0, deviation, shapes[name]) for name, deviation in deviations.items())
    split = variance_split(made_up(80 + effects)).iloc[0]
    for name, deviation in deviations.items():
        assert split[name] == pytest.approx(deviation, rel=0.1)
    assert split["draw_share"] == pytest.approx(100 * 4 / (4 + 0.49 + 0.16), abs=5)


def test_pure_effects_are_told_apart():
    of_draw, of_seed = np.array([0.0, 1, 2]).reshape(1, 3, 1), np.array([0.0, 4]).reshape(1, 1, 2)
    split = variance_split(made_up(np.concatenate([80 + of_draw + 0 * of_seed, 80 + of_draw + of_seed])))
    assert split["calibration_size"].tolist() == [1, 2]
    assert np.allclose(split[["draws", "head_seeds", "remainder"]], [[1, 0, 0], [1, 8**0.5, 0]])
    assert np.allclose(split["draw_share"], [100, 100 / 9])


def test_nothing_is_split_where_nothing_varies_or_one_value_stands_alone():
    assert np.isnan(variance_split(made_up(np.full((1, 3, 3), 80.0)))["draw_share"]).all()
    assert np.isnan(variance_split(made_up(np.array([[[80.0, 81.0]]])))["draws"]).all()


def test_saturation_is_where_no_larger_size_brings_more():
    accuracy = np.array([70.0, 79.6, 79.0, 79.8, 80.0]).reshape(5, 1, 1)
    found = {within: saturation(made_up(accuracy), within)["calibration_size"].item() for within in (0.1, 0.5, 20)}
    assert found == {0.1: 16, 0.5: 2, 20: 1}
    both = saturation(pd.concat([made_up(accuracy), made_up(accuracy[::-1], "7->10")]))
    assert dict(zip(both["plan"], both["calibration_size"])) == {"1->3": 2, "7->10": 1}
