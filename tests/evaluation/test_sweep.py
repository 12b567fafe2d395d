"""One walk gives what cutting every plan by itself gives, and runs no block twice."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAMILIES

from toastlib.approximation.engine import Variant, collect_features, fit_maps, forward_plans, variants_of
from toastlib.approximation.replace import approximate
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.probe import Probe
from toastlib.evaluation.sweep import predict, sweep
from toastlib.models.encoder import Encoder
from toastlib.paper import plan_list
from toastlib.plan import Plan, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import plan_pairs

PLANS = ["1->3", "0->1 3->5", "-1->0", "4->5"]
QUICK = {"calibration_size": 20, "seeds": [0, 1], "head_lr": 1e-2}


def prepare(encoder, images, plans, translators=("identity", "linear")):
    variants = variants_of(parse_plans(plans), translators)
    moments = collect_moments(encoder, images, plan_pairs(variant.plan for variant in variants))
    return variants, fit_maps(encoder, variants, moments), moments


@pytest.mark.parametrize(("family", "depth"), [("vit", 12), *((family, 6) for family in FAMILIES)])
def test_the_walk_gives_the_features_of_every_approximated_encoder(tiny_model, tiny_images, family, depth):
    model = tiny_model(family, num_hidden_layers=depth)
    encoder = Encoder(model, features="mean" if family == "siglip" else "cls")
    plans = [*plan_list(depth), "-1->0", f"-1->1 2->{depth - 1}"]
    variants, maps, moments = prepare(encoder, tiny_images.train[:10], plans)
    pixel_values, _ = next(tiny_images.test.batches(2))
    features = forward_plans(encoder, pixel_values, variants, maps)
    assert set(features) == set(variants)
    for variant in variants:
        translator = variant.translator if variant.plan else "identity"
        small = approximate(encoder, variant.plan, translator, moments)
        torch.testing.assert_close(features[variant], small(pixel_values), rtol=1e-4, atol=1e-5)


def states(variants: list[Variant], block_count: int) -> Counter:
    """Block -> how many different states enter it: what lies before a block is told by the spans that end before it."""
    entering = {
        (block, tuple((span, variant.translator) for span in variant.plan if span.end < block))
        for variant in variants
        for block in set(range(block_count)) - set(variant.plan.removed)
    }
    return Counter(block for block, _ in entering)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_no_block_runs_twice_on_the_same_state(tiny_model, tiny_images, pixel_values, seed):
    encoder = Encoder(tiny_model("vit", num_hidden_layers=12))
    plans = [*plan_list(12), Plan.parse("-1->0"), Plan.parse("1->2 7->10"), Plan.parse("1->2 9->11")]
    variants, maps, _ = prepare(encoder, tiny_images.train[:10], plans)
    if seed is not None:
        random.Random(seed).shuffle(variants)
    calls = Counter()
    for block, module in enumerate(encoder.blocks):
        module.register_forward_hook(lambda m, args, out, k=block: calls.update([k]))
    forward_plans(encoder, pixel_values, variants, maps)
    assert calls == states(variants, 12)
    assert calls.total() < sum(12 - len(variant.plan.removed) for variant in variants) / 2


def test_a_block_that_no_variant_needs_does_not_run(tiny_encoder, tiny_images, pixel_values):
    variants, maps, _ = prepare(tiny_encoder, tiny_images.train[:10], ["2->4"], ["linear"])
    with torch.no_grad():
        next(tiny_encoder.blocks[3].parameters()).fill_(torch.nan)
    assert torch.isfinite(forward_plans(tiny_encoder, pixel_values, variants[1:], maps)[variants[1]]).all()


def test_every_map_is_fitted_once(tiny_encoder, tiny_images):
    _, maps, _ = prepare(tiny_encoder, tiny_images.train[:10], ["1->2", "1->2 3->4", "3->4"])
    assert len(maps) == 4  # two spans, two translators


def test_collected_features_are_those_of_the_walk_in_the_order_of_the_images(tiny_encoder, tiny_images):
    images = tiny_images.test[:10]
    variants, maps, _ = prepare(tiny_encoder, tiny_images.train[:10], PLANS)
    features = collect_features(tiny_encoder, images, variants, maps, batch_size=4)
    assert features.shape == (len(variants), 10, 32)
    assert features.dtype == torch.float32
    whole = forward_plans(tiny_encoder, next(images.batches(10))[0], variants, maps)
    for values, variant in zip(features, variants, strict=True):
        torch.testing.assert_close(values, whole[variant], rtol=1e-4, atol=1e-5)


def test_a_variant_that_gives_nan_is_named(tiny_encoder, tiny_images):
    variants, maps, _ = prepare(tiny_encoder, tiny_images.train[:10], ["1->2", "3->4"], ["linear"])
    maps[variants[2].plan.spans[0], "linear"].weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"^Plan 3->4 with translator 'linear' gives NaN or infinity\.$"):
        collect_features(tiny_encoder, tiny_images.test, variants, maps)


def test_predictions_are_those_of_heads_on_the_approximated_encoders(tiny_encoder, tiny_images):
    def features(encoder, images):
        return torch.cat([encoder(pixels) for pixels, _ in images.batches(32)])[None]

    moments = collect_moments(tiny_encoder, tiny_images.train)
    options = {"heads": ["retrained", "frozen"], "head_lr": 1e-2, "head_min_steps": 30, "moments": moments}
    ours = predict(tiny_encoder, tiny_images, "1->3", ["linear"], **options)
    small = approximate(tiny_encoder, "1->3", "linear", moments)
    expected = {}
    for head, trained_on in (("retrained", small), ("frozen", tiny_encoder)):
        probe = Probe(3, range(3), learning_rate=1e-2, min_steps=30)
        probe.fit(features(trained_on, tiny_images.train), tiny_images.train.labels)
        expected[head] = probe.predict(features(small, tiny_images.test))[0].numpy()
        chosen = (ours.variants["head"] == head) & (ours.variants["plan"] == "1->3")
        assert (ours.predicted[chosen] == expected[head]).mean() > 0.98  # but for ties that float32 rounding decides
    assert (expected["retrained"] == expected["frozen"]).mean() < 0.9


def test_there_is_one_variant_for_each_head_translator_plan_and_seed(tiny_encoder, tiny_images):
    predictions = predict(tiny_encoder, tiny_images, ["1->2", "3->5"], heads=["retrained", "frozen"], **QUICK)
    expected = {(head, "original", "original", seed) for head in ("retrained", "frozen") for seed in (0, 1)} | {
        (head, translator, plan, seed)
        for head in ("retrained", "frozen")
        for translator in ("identity", "linear")
        for plan in ("1->2", "3->5")
        for seed in (0, 1)
    }
    assert len(predictions.variants) == len(expected)
    assert set(predictions.variants.itertuples(index=False, name=None)) == expected
    assert predictions.predicted.shape == (len(expected), 60)
    assert np.array_equal(predictions.labels, tiny_images.test.labels)


def test_the_original_fares_alike_under_both_heads(tiny_encoder, tiny_images):
    predictions = predict(tiny_encoder, tiny_images, "1->2", heads=["retrained", "frozen"], **QUICK)
    accuracies = [predictions.mean_correct(head=head, plan="original") for head in ("retrained", "frozen")]
    assert np.array_equal(*accuracies)


def test_heads_learn_something(tiny_encoder, tiny_images):
    table = sweep(tiny_encoder, tiny_images, "1->2", calibration_size=40, head_lr=1e-2, head_min_steps=100)
    assert table["accuracy"].min() > 50  # a third by chance


def test_more_steps_change_the_heads(tiny_encoder, tiny_images):
    few, many = (
        predict(tiny_encoder, tiny_images, "1->2", **QUICK, head_min_steps=steps).predicted for steps in (0, 100)
    )
    assert not np.array_equal(few, many)


def test_the_same_seeds_give_the_same_table_bit_for_bit(tiny_encoder, tiny_images):
    first, again = (sweep(tiny_encoder, tiny_images, PLANS, heads=["retrained", "frozen"], **QUICK) for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_another_seed_of_heads_or_calibration_gives_other_predictions(tiny_encoder, tiny_images):
    options = {"calibration_size": 4, "heads": "frozen", "head_lr": 1e-2}
    first = predict(tiny_encoder, tiny_images, "1->4", seeds=[0], **options)
    other_head = predict(tiny_encoder, tiny_images, "1->4", seeds=[1], **options)
    other_draw = predict(tiny_encoder, tiny_images, "1->4", seeds=[0], calibration_seed=1, **options)
    assert not np.array_equal(first.predicted, other_head.predicted)
    assert not np.array_equal(first.predicted, other_draw.predicted)


def test_maps_may_be_fitted_on_another_data_set(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.test)
    given = predict(tiny_encoder, tiny_images, "1->3", ["linear"], **QUICK, moments=moments)
    _, maps, _ = prepare(tiny_encoder, tiny_images.test, ["1->3"], ["linear"])
    variants = variants_of(parse_plans("1->3"), ["linear"])
    train, test = (
        collect_features(tiny_encoder, part, variants, maps) for part in (tiny_images.train, tiny_images.test)
    )
    probe = Probe(3, QUICK["seeds"], learning_rate=QUICK["head_lr"]).fit(train, tiny_images.train.labels)
    assert np.array_equal(given.predicted, probe.predict(test).flatten(0, 1))


def test_the_original_alone_needs_no_plan(tiny_encoder, tiny_images):
    table = sweep(tiny_encoder, tiny_images, [], seeds=[0])
    assert table["plan"].tolist() == ["original"]
    assert table["removed_parameters"].tolist() == [0]


def test_the_table_is_tidy(tiny_encoder, tiny_images):
    table = sweep(tiny_encoder, tiny_images, "1->2 3->4", **QUICK)
    assert list(table.columns) == [
        *("model", "features", "dataset", "head", "translator", "plan", "seed"),
        *("correct", "images", "accuracy", "accuracy_low", "accuracy_high"),
        *("blocks_removed", "parameters", "removed_parameters", "removed_parameters_paper", "gflops"),
    ]
    assert set(table[["model", "features", "dataset", "head"]].iloc[0]) == {"tiny", "cls", "retrained"}
    assert not table.isna().any(axis=None)
    assert not table.duplicated(["translator", "plan", "seed"]).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"plans": "4->6"}, "Span 4->6 leaves the model"),
        ({"plans": "1->2", "translators": ["linaer"]}, "Unknown translator 'linaer': did you mean 'linear'"),
        ({"plans": "1->2", "heads": "frosen"}, "Unknown head 'frosen': did you mean 'frozen'"),
        ({"plans": "1->2", "calibration_size": 91}, "91 images were asked for, and there are 90"),
    ],
)
def test_what_cannot_be_swept_is_refused(tiny_encoder, tiny_images, options, says):
    with pytest.raises(InputError) as error:
        predict(tiny_encoder, tiny_images, **options)
    assert says in str(error.value)


def test_images_without_labels_are_refused(tiny_encoder, tiny_images):
    unlabelled = ImageSet("bare", replace(tiny_images.train, labels=None), tiny_images.test)
    with pytest.raises(InputError, match="bare has no labels"):
        predict(tiny_encoder, unlabelled, "1->2")


def test_no_seed_is_refused(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="There is no seed"):
        predict(tiny_encoder, tiny_images, ["1->2"], seeds=[])


def test_a_translator_named_twice_is_one_variant(tiny_encoder, tiny_images):
    twice = predict(tiny_encoder, tiny_images, ["1->2"], ["identity", "identity"], seeds=[0], calibration_size=20)
    assert list(twice.variants["translator"]) == ["original", "identity"]
