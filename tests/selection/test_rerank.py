"""What plans cost when they are run, against encoders that are made and run one by one; and no label is looked at."""

import numpy as np
import pytest
import torch
from torch import nn

from toastlib.approximation.align import align_features
from toastlib.approximation.replace import approximate
from toastlib.data.images import Images
from toastlib.errors import InputError
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.plan import Plan, plan_of
from toastlib.selection.plans import every_plan, random_plans, select
from toastlib.selection.rerank import (
    MEASURES,
    divergence,
    features_error,
    loss,
    race,
    race_plans,
    removal_order,
    run_plans,
)
from toastlib.statistics.collect import collect_moments

PLANS = [Plan.parse(text) for text in ("1->2", "0->3", "1->2 3->5")]


@pytest.fixture
def parts(tiny_images) -> tuple[Images, Images]:
    """Calibration images, and others."""
    return tiny_images.train[:40], tiny_images.train[40:70]


@pytest.fixture
def head(tiny_encoder, tiny_images) -> Probe:
    """Two seeds of it."""
    images = tiny_images.train[:40]
    return Probe(3, HeadConfig(seeds=[0, 1], min_steps=200)).fit(features_of(tiny_encoder, images)[None], images.labels)


@torch.inference_mode()
def features_of(encoder, images) -> torch.Tensor:
    return torch.cat([encoder(pixel_values) for pixel_values, _ in images.batches(32)])


@pytest.mark.parametrize("translator", ["identity", "linear", "ridge", "linear+align"])
def test_plans_cost_what_their_encoders_answers_differ(tiny_encoder, parts, head, translator):
    calibration, images = parts
    name = translator.removesuffix("+align")
    folds, original = collect_moments(tiny_encoder, calibration, folds=5), features_of(tiny_encoder, images)
    given = folds if name == translator else calibration
    costs = run_plans(
        tiny_encoder, images, PLANS, calibration=given, translator=translator, head=head, measures=MEASURES
    )
    assert list(costs.index) == list(map(str, PLANS))
    assert list(costs) == list(MEASURES)
    for plan in PLANS:
        smaller = approximate(tiny_encoder, plan, folds, translator=name)
        features = features_of(smaller, images)
        if name != translator:
            features = align_features(smaller, tiny_encoder, calibration).module()(features)
        expected = (
            features_error(features, original).mean().item(),
            divergence(head, features, original).mean().item(),
            loss(head, features, images.labels).mean().item(),
        )
        assert tuple(costs.loc[str(plan)]) == pytest.approx(expected, rel=1e-3)  # float32 sums in another order


def test_of_calibration_images_the_moments_of_the_plans_are_collected(tiny_encoder, parts):
    calibration, images = parts
    moments = collect_moments(tiny_encoder, calibration, folds=0)
    given = run_plans(tiny_encoder, images, PLANS, calibration=moments)
    collected = run_plans(tiny_encoder, images, PLANS, calibration=calibration)
    assert collected["features"].to_dict() == pytest.approx(given["features"].to_dict(), rel=1e-4)


def test_divergence_is_that_of_kullback_and_leibler():
    torch.manual_seed(0)
    features, original, head = torch.randn(7, 4), torch.randn(7, 4), nn.Linear(4, 3)
    p, q = (head(rows).softmax(-1) for rows in (original, features))
    expected = [sum(p[i, k] * (p[i, k] / q[i, k]).log() for k in range(3)).item() for i in range(7)]
    assert divergence(head, features, original).tolist() == pytest.approx(expected, rel=1e-4)
    assert divergence(head, original, original).tolist() == [0] * 7


def test_loss_is_the_cross_entropy():
    torch.manual_seed(0)
    features, labels, head = torch.randn(7, 4), torch.arange(7) % 3, nn.Linear(4, 3)
    expected = nn.functional.cross_entropy(head(features), labels, reduction="none").tolist()
    assert loss(head, features, labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_probe_answers_as_its_linear_layers_do(tiny_encoder, parts, head):
    original = features_of(tiny_encoder, parts[1])
    features, labels = (
        original + torch.randn(original.shape, generator=torch.Generator().manual_seed(0)),
        parts[1].labels,
    )
    each = []
    for weight, bias in zip(head.weight_[0], head.bias_[0], strict=True):
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = weight.mT, bias[0]
        each.append((divergence(linear, features, original), loss(linear, features, labels)))
    expected = [sum(two) / 2 for two in zip(*each, strict=True)]
    torch.testing.assert_close([divergence(head, features, original), loss(head, features, labels)], expected)


def test_the_error_of_features_is_one_minus_the_explained_variance():
    torch.manual_seed(0)
    original = torch.randn(50, 4)
    assert features_error(original, original).tolist() == [0] * 50
    assert features_error(original.mean(0).expand(50, 4), original).mean() == pytest.approx(1)
    assert features_error(2 * original, original).mean() == pytest.approx(
        (original.square().sum() / (original - original.mean(0)).square().sum()).item()
    )


RACES = [(1, 30), (2, 7), (3, 300), (3, 1), (7, 300), (9, 100), (10, 300), (20, 200), (31, 64)]


@pytest.mark.parametrize(("plans", "images"), RACES)
def test_a_race_runs_the_best_third_on_more_images(plans, images):
    """Against the definition: the costs of every image are known, and what is run is written down."""
    generator = np.random.default_rng(plans)
    truth = torch.from_numpy(generator.normal(size=(plans, images)) + 0.2 * np.arange(plans)[:, None])
    names, runs = random_plans(12, remove=3, n=plans), []

    def run(left, part):
        runs.append((left, part))
        return truth[[names.index(plan) for plan in left]][:, part]

    table = race(names, np.arange(images), run)
    ends = [min(max(-(-images // share), 8), images) for share in (10, 3, 1)]
    ends = [end for place, end in enumerate(ends) if end not in ends[:place]][: len(runs)]
    assert [part.tolist() for _, part in runs] == [
        list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)
    ]
    for (left, _), (after, _), end in zip(runs, runs[1:], ends, strict=False):
        ranked = sorted(left, key=lambda plan: truth[names.index(plan), :end].mean())
        assert after == ranked[: len(after)]
        third = -(-len(left) // 3)
        assert len(after) == (third if plans >= 10 else max(third, 2))
    best = min(runs[-1][0], key=lambda plan: truth[names.index(plan), : ends[-1]].mean())
    assert table["cost"].idxmin() == str(best)
    for plan, cost, seen in zip(names, table["cost"], table["images"], strict=True):
        own, other = truth[names.index(plan)], truth[names.index(best)]
        expected = other[: ends[-1]].mean() + (own - other)[:seen].mean()
        assert cost == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        assert seen == ends[max(place for place, (left, _) in enumerate(runs) if plan in left)]
    assert len(runs[-1][0]) == 1 or ends[-1] == images  # two at least are compared on all of them
    if plans >= 20:  # thirds rounded up
        assert sum(len(left) * len(part) for left, part in runs) <= 0.33 * plans * images


def test_without_a_head_a_race_measures_features(tiny_encoder, parts):
    calibration, images = parts
    raced = race_plans(tiny_encoder, images, PLANS, calibration=calibration)
    assert raced.equals(race_plans(tiny_encoder, images, PLANS, calibration=calibration, measure="features"))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_race_ends_with_what_its_plans_cost(tiny_encoder, parts, head, measure):
    calibration, images = parts
    moments, plans = collect_moments(tiny_encoder, calibration), every_plan(6, remove=2)
    options = {"calibration": moments, "head": head}
    raced = race_plans(tiny_encoder, images, plans, measure=measure, **options)
    run = run_plans(tiny_encoder, images, plans, measures=[measure], **options)[measure]
    assert list(raced.index) == list(map(str, plans))
    assert set(raced["images"]) == {8, 10, 30}
    winner = raced["cost"].idxmin()
    assert raced["images"][winner] == 30
    assert run.rank()[winner] <= 3
    if measure != "features":  # its unit is the spread of the images of a round
        assert raced["cost"][winner] == pytest.approx(run[winner], rel=1e-4)


class Sealed:
    """Images whose labels nobody may look at."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return Sealed(self.images[index])

    def batches(self, size=32):
        return ((pixel_values, None) for pixel_values, _ in self.images.batches(size))

    @property
    def cache_key_parts(self):
        return self.images.cache_key_parts  # pixels, and what happens to them

    def __getattr__(self, name):
        pytest.fail(f"{name} was looked at")


@pytest.mark.parametrize(("translator", "measure"), [("linear", "features"), ("separate+align", "divergence")])
def test_a_reranked_choice_looks_at_no_label(tiny_encoder, parts, head, translator, measure):
    """Moments, maps, alignments and runs on sealed images: the same choice as with labels in sight."""

    def choose(calibration, images):
        folds = collect_moments(tiny_encoder, calibration, folds=5)

        def rerank(plans):
            options = {"translator": translator, "head": head, "measures": [measure]}
            return run_plans(tiny_encoder, images, plans, calibration=calibration, **options)[measure]

        assert not race_plans(tiny_encoder, images, every_plan(6, remove=1), calibration=folds, head=head).empty
        return select(folds, remove=2, rerank=rerank, candidates=6)

    assert choose(*map(Sealed, parts)) == choose(*parts)


def test_a_choice_from_all_plans_is_the_best_of_all(tiny_encoder, parts):
    calibration, images = parts
    folds = collect_moments(tiny_encoder, calibration, folds=5)
    costs = run_plans(tiny_encoder, images, every_plan(6, remove=2), calibration=folds)["features"]
    chosen = select(folds, remove=2, rerank=lambda plans: costs[list(map(str, plans))], candidates=15)
    assert str(chosen) == costs.idxmin()


@pytest.mark.parametrize("translator", ["identity", "linear", "linear+align"])
def test_a_removal_order_takes_the_block_that_changes_the_answers_least(tiny_encoder, parts, head, translator):
    """Against encoders that are made and run one by one, a loop over single blocks in every step."""
    calibration, images = parts
    moments, original = collect_moments(tiny_encoder, calibration, folds=0), features_of(tiny_encoder, images)
    plain, removed, expected = translator.removesuffix("+align"), [], []
    for _ in range(3):
        costs = {}
        for block in set(range(6)) - set(removed):
            smaller = approximate(tiny_encoder, plan_of({*removed, block}), moments, translator=plain)
            features = features_of(smaller, images)
            if plain != translator:
                features = align_features(smaller, tiny_encoder, calibration).module()(features)
            costs[block] = divergence(head, features, original).mean().item()
        removed.append(min(costs, key=costs.get))
        expected.append((len(removed), removed[-1], str(plan_of(removed)), costs[removed[-1]]))
    given = moments if plain == translator else calibration
    order = removal_order(tiny_encoder, images, calibration=given, head=head, translator=translator, at_most=3)
    *names, costs = (list(order[column]) for column in ("removed", "block", "plan", "divergence"))
    *expected_names, expected_costs = map(list, zip(*expected, strict=True))
    assert names == expected_names
    assert costs == pytest.approx(expected_costs, rel=1e-3)


def test_a_removal_order_ends_with_all_blocks(tiny_encoder, parts, head):
    moments = collect_moments(tiny_encoder, parts[0], folds=0)
    order = removal_order(tiny_encoder, parts[1], calibration=moments, head=head, translator="identity")
    assert sorted(order["block"]) == list(range(6))
    assert list(order["removed"]) == [1, 2, 3, 4, 5, 6]
    assert [Plan.parse(plan) for plan in order["plan"]] == [plan_of(order["block"][:k]) for k in range(1, 7)]
    some = removal_order(tiny_encoder, parts[1], calibration=moments, head=head, translator="identity", at_most=2)
    assert some.equals(order[:2])


@pytest.mark.parametrize("at_most", [0, -1, 1.5, "2", True])
def test_an_order_of_no_whole_number_of_blocks_is_refused(tiny_encoder, parts, head, at_most):
    with pytest.raises(InputError, match=r"^at_most is a whole number from 1 on, not "):
        removal_order(tiny_encoder, parts[1], calibration=parts[0], head=head, at_most=at_most)


def test_feature_alignment_needs_calibration_images(tiny_encoder, parts):
    calibration, images = parts
    for given in (
        collect_moments(tiny_encoder, calibration, folds=5),
        collect_moments(tiny_encoder, calibration, folds=0),
    ):
        with pytest.raises(
            InputError, match=r"^'linear\+align' aligns features: pass calibration images, not their moments\.$"
        ):
            run_plans(tiny_encoder, images, PLANS, calibration=given, translator="linear+align")


@pytest.mark.parametrize("calibration", [None, 40])
def test_a_calibration_that_is_no_images_is_refused(tiny_encoder, parts, calibration):
    with pytest.raises(InputError, match="calibration images, or their moments"):
        run_plans(tiny_encoder, parts[1], PLANS, calibration=calibration)


def test_measures_that_cannot_be_taken_are_refused(tiny_encoder, parts, head):
    calibration, images = parts
    unlabelled = Images(images.pixels, None, images.class_names, images.preprocessing)
    for options, says in (
        ({"measures": ["divergance"]}, "did you mean 'divergence'"),
        ({"measures": ["divergence"]}, "'divergence' needs a head"),
        ({"measures": ["loss"], "head": head}, "'loss' needs labels"),
    ):
        with pytest.raises(InputError, match=says):
            run_plans(tiny_encoder, unlabelled, PLANS, calibration=calibration, **options)
        measure = {"measure": options["measures"][0], "head": options.get("head")}
        with pytest.raises(InputError, match=says):
            race_plans(tiny_encoder, unlabelled, PLANS, calibration=calibration, **measure)
