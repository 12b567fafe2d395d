"""Accuracies of plans: heads on the encoders of `approximate`, with every kind of calibration and translator."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_tiny_model
from torch import nn

from toastlib.approximation.engine import collect_features, variants_of
from toastlib.approximation.prepare import fit_maps, name_translators
from toastlib.approximation.replace import approximate, fit_spans
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.metrics import paired_difference
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.evaluation.result import ALL_PLANS
from toastlib.models.base_architecture import own_classifier
from toastlib.models.costs import parameter_count
from toastlib.models.hooks import collect_activations
from toastlib.models.loading import load_encoder
from toastlib.models.saving import saved_form
from toastlib.plan import Plan, Span, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import plan_pairs
from toastlib.translators.linear import Linear, LowRank, Ridge

PLANS = ["1->3", "0->1 3->5", "-1->0", "4->5"]
BOTH = ("retrained", "frozen")


def quick(protocol="retrained", seeds=(0, 1), min_steps=0) -> HeadConfig:
    return HeadConfig(protocol, seeds, learning_rate=1e-2, min_steps=min_steps)


def features_of(encoder, images):
    return torch.cat([encoder(pixels) for pixels, _ in images.batches(32)])


class TestHeads:
    def test_predictions_are_those_of_heads_on_the_approximated_encoders(self, tiny_encoder, tiny_images):
        moments = collect_moments(tiny_encoder, tiny_images.train, folds=0)
        head = quick(BOTH, 3, min_steps=30)
        ours = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=["linear"], calibration=moments, head=head)
        small = approximate(tiny_encoder, "1->3", moments, translator="linear")
        expected = {}
        for protocol, trained_on in (("retrained", small), ("frozen", tiny_encoder)):
            probe = Probe(3, head).fit(features_of(trained_on, tiny_images.train), tiny_images.train.labels)
            expected[protocol] = probe.predict(features_of(small, tiny_images.test)).numpy()
            chosen = (ours.variants["head"] == protocol) & (ours.variants["plan"] == "1->3")
            assert (ours.predictions[chosen] == expected[protocol]).mean() > 0.98  # but for ties that rounding decides
        assert (expected["retrained"] == expected["frozen"]).mean() < 0.9

    def test_there_is_one_variant_for_each_head_translator_plan_and_seed(self, tiny_encoder, tiny_images):
        result = evaluate_plans(tiny_encoder, tiny_images, ["1->2", "3->5"], calibration=20, head=quick(BOTH))
        expected = {(head, "original", "original", seed) for head in BOTH for seed in (0, 1)} | {
            (head, translator, plan, seed)
            for head in BOTH
            for translator in ("identity", "linear")
            for plan in ("1->2", "3->5")
            for seed in (0, 1)
        }
        assert len(result.variants) == len(expected)
        assert set(result.variants.itertuples(index=False, name=None)) == expected
        assert result.predictions.shape == (len(expected), 60)
        assert np.array_equal(result.labels, tiny_images.test.labels)
        assert result.class_names == ("one", "two", "three")

    def test_the_original_fares_alike_under_both_heads(self, tiny_encoder, tiny_images):
        result = evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=20, head=quick(BOTH))
        assert np.array_equal(*(result.mean_correct(head=head, plan="original") for head in BOTH))

    def test_heads_learn_something(self, tiny_encoder, tiny_images):
        head = quick(seeds=3, min_steps=100)
        table = evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=40, head=head).table
        assert table["accuracy"].min() > 50  # a third by chance

    def test_more_steps_change_the_heads(self, tiny_encoder, tiny_images):
        few, many = (
            evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=20, head=quick(min_steps=steps)).predictions
            for steps in (0, 100)
        )
        assert not np.array_equal(few, many)

    def test_heads_are_frozen_and_three_if_nothing_is_said(self, tiny_encoder, tiny_images):
        said, unsaid = (
            evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=20, head=head)
            for head in (HeadConfig("frozen", seeds=[0, 1, 2], learning_rate=1e-3, min_steps=1000), None)
        )
        pd.testing.assert_frame_equal(said.table, unsaid.table, check_exact=True)
        assert set(unsaid.variants["head"]) == {"frozen"}


class TestTable:
    def test_the_same_seeds_give_the_same_table_bit_for_bit(self, tiny_encoder, tiny_images):
        first, again = (
            evaluate_plans(tiny_encoder, tiny_images, PLANS, calibration=20, head=quick(BOTH)).table for _ in range(2)
        )
        pd.testing.assert_frame_equal(first, again, check_exact=True)

    def test_another_seed_of_heads_or_calibration_gives_other_predictions(self, tiny_encoder, tiny_images):
        train = tiny_images.train
        first, drawn, other_head, other_draw = (
            evaluate_plans(tiny_encoder, tiny_images, "1->4", calibration=calibration, head=quick("frozen", [seed]))
            for calibration, seed in ((4, 0), (train.sample(4, seed=0), 0), (4, 1), (train.sample(4, seed=1), 0))
        )
        assert np.array_equal(first.predictions, drawn.predictions)
        assert not np.array_equal(first.predictions, other_head.predictions)
        assert not np.array_equal(first.predictions, other_draw.predictions)

    def test_the_original_alone_needs_no_plan(self, tiny_encoder, tiny_images):
        table = evaluate_plans(tiny_encoder, tiny_images, [], head=quick(seeds=[0])).table
        assert table["plan"].tolist() == ["original"]
        assert table["removed_parameters"].tolist() == [0]

    def test_the_table_is_tidy(self, tiny_encoder, tiny_images):
        table = evaluate_plans(tiny_encoder, tiny_images, "1->2 3->4", calibration=20, head=quick()).table
        assert list(table.columns) == [
            *("model", "features", "dataset", "image_size", "head", "translator", "plan", "seed"),
            *("correct", "images", "accuracy", "accuracy_low", "accuracy_high", "lost", "lost_low", "lost_high"),
            *("blocks_removed", "parameters", "removed_parameters", "removed_parameters_paper", "gflops"),
        ]
        assert set(table[["model", "features", "dataset", "head"]].iloc[0]) == {"tiny", "cls", "retrained"}
        assert not table.isna().any(axis=None)
        assert not table.duplicated(["translator", "plan", "seed"]).any()

    @pytest.mark.parametrize("plans", ["1->2", ["1->2"], Plan.parse("1->2"), parse_plans("1->2")])
    def test_a_plan_is_given_in_any_form(self, tiny_encoder, tiny_images, plans):
        result = evaluate_plans(tiny_encoder, tiny_images, plans, translators=["identity"], head=quick(seeds=[0]))
        assert list(result.variants["plan"]) == ["original", "1->2"]


class TestTranslators:
    def test_a_translator_named_twice_is_one_variant(self, tiny_encoder, tiny_images):
        names = ["identity", "identity"]
        twice = evaluate_plans(tiny_encoder, tiny_images, ["1->2"], translators=names, calibration=20, head=quick())
        assert list(twice.variants["translator"].unique()) == ["original", "identity"]
        assert len(twice.variants) == 2 * 2

    def test_one_name_is_one_translator(self, tiny_encoder, tiny_images):
        result = evaluate_plans(
            tiny_encoder, tiny_images, "1->2", translators="linear", calibration=20, head=quick(seeds=[0])
        )
        assert list(result.variants["translator"]) == ["original", "linear"]

    def test_a_translator_of_ones_own_is_called_as_one_likes(self, tiny_encoder, tiny_images):
        low, translators = LowRank(rank=2), {"registered": "linear", "own": Linear()}
        translators["rank 2"] = low
        result = evaluate_plans(
            tiny_encoder, tiny_images, PLANS, translators=translators, calibration=20, head=quick("frozen")
        )
        assert list(result.variants["translator"].unique()) == ["original", *translators]
        of = result.variants.groupby("translator").indices
        assert np.array_equal(result.predictions[of["own"]], result.predictions[of["registered"]])
        assert not np.array_equal(result.predictions[of["rank 2"]], result.predictions[of["registered"]])
        assert not [name for name in vars(low) if name.endswith("_")]  # a copy of it is fitted
        costs = result.table.drop_duplicates(["translator", "plan"]).set_index(["translator", "plan"])["parameters"]
        moments = collect_moments(tiny_encoder, tiny_images.train.sample(20, 0), folds=0)
        for name, translator in (("own", "linear"), ("rank 2", low)):
            small = approximate(tiny_encoder, "0->1 3->5", moments, translator=translator)
            assert costs[name, "0->1 3->5"] == parameter_count(small)

    def test_maps_that_are_fitted_already_are_taken_as_they_are(self, tiny_encoder, tiny_images):
        plans, moments = ["1->3", "1->3 4->5"], collect_moments(tiny_encoder, tiny_images.train.sample(20, 0), folds=0)
        maps = {span: one.module() for span, one in fit_spans([Span(1, 3), Span(4, 5)], "linear", moments).items()}
        maps[Span(4, 5)] = nn.Linear(32, 32, bias=False).requires_grad_(False)
        before = {span: one.weight.clone() for span, one in maps.items()}
        result = evaluate_plans(
            tiny_encoder,
            tiny_images,
            plans,
            translators={"mine": maps, "linear": "linear"},
            calibration=moments,
            head=quick("frozen"),
        )
        of = result.variants.groupby(["translator", "plan"]).indices
        mine, linear = ([result.predictions[of[name, plan]] for plan in plans] for name in ("mine", "linear"))
        assert np.array_equal(mine[0], linear[0])
        assert not np.array_equal(mine[1], linear[1])
        assert all(torch.equal(maps[span].weight, before[span]) for span in maps)
        costs = result.table.drop_duplicates(["translator", "plan"]).set_index(["translator", "plan"])
        counted = ["parameters", "gflops", "removed_parameters", "removed_parameters_paper"]
        assert costs.loc["mine", counted].equals(costs.loc["linear", counted])

    def test_maps_that_are_fitted_need_no_calibration(self, tiny_encoder, tiny_images):
        maps = {Span(1, 3): nn.Identity()}
        ours = evaluate_plans(
            tiny_encoder, tiny_images, "1->3", translators={"mine": maps, "identity": "identity"}, head=quick()
        )  # 500 calibration images, the default, are more than there are
        assert np.array_equal(ours.mean_correct(translator="mine"), ours.mean_correct(translator="identity"))

    def test_a_map_that_is_missing_is_named(self, tiny_encoder, tiny_images):
        with pytest.raises(InputError, match=r"^The maps of 'mine' have none for span 3->4\.$"):
            evaluate_plans(
                tiny_encoder, tiny_images, "1->2 3->4", translators={"mine": {Span(1, 2): nn.Identity()}}, head=quick()
            )

    def test_identity_needs_no_calibration(self, tiny_encoder, tiny_images):
        for calibration in (500, None, {"a": 20, "b": 500}):  # there are 90 images
            result = evaluate_plans(
                tiny_encoder,
                tiny_images,
                "1->3",
                translators=["identity"],
                calibration=calibration,
                head=quick("frozen", [0]),
            )
            assert list(result.variants) == ["head", "translator", "plan", "seed"]
            small = approximate(
                tiny_encoder, "1->3", collect_moments(tiny_encoder, tiny_images.train, folds=0), translator="identity"
            )
            probe = Probe(3, quick(seeds=[0])).fit(
                features_of(tiny_encoder, tiny_images.train), tiny_images.train.labels
            )
            expected = probe.predict(features_of(small, tiny_images.test))[0].numpy()
            assert (result.predictions[1] == expected).mean() > 0.98


class TestCalibration:
    @pytest.mark.parametrize("kind", ["images", "moments", "folds", "activations", "mapping"])
    @pytest.mark.parametrize("translator", ["linear", "affine"])
    def test_a_number_is_that_many_images_and_images_are_their_statistics(
        self, tiny_encoder, tiny_images, kind, translator
    ):
        drawn, plans = tiny_images.train.sample(40, seed=0), ["1->3", "0->1 3->5"]
        pairs = plan_pairs(parse_plans(plans))
        calibration = {
            "images": lambda: drawn,
            "moments": lambda: collect_moments(tiny_encoder, drawn, pairs, folds=0),
            "folds": lambda: collect_moments(tiny_encoder, drawn, pairs, folds=5),
            "activations": lambda: collect_activations(tiny_encoder, drawn, [0, 1, 3, 5], tokens="all"),
            "mapping": lambda: {"forty": 40},
        }[kind]()
        options = {"translators": [translator], "head": quick("frozen")}
        number = evaluate_plans(tiny_encoder, tiny_images, plans, calibration=40, **options)
        other = evaluate_plans(tiny_encoder, tiny_images, plans, calibration=calibration, **options)
        # The same sums in another order: a tie may fall either way.
        assert (number.predictions == other.predictions).mean() > 0.99
        if kind == "images":
            assert np.array_equal(number.predictions, other.predictions)

    def test_trained_maps_are_fitted_on_activations_or_images(self, tiny_encoder, tiny_images):
        drawn = tiny_images.train.sample(20, seed=0)
        activations = collect_activations(tiny_encoder, drawn, [1, 3], tokens="all")
        images, rows = (
            evaluate_plans(
                tiny_encoder, tiny_images, "1->3", translators=["mlp"], calibration=calibration, head=quick("frozen")
            )
            for calibration in (drawn, activations)
        )
        assert np.array_equal(images.predictions, rows.predictions)

    def test_maps_may_be_fitted_on_another_data_set(self, tiny_encoder, tiny_images):
        moments = collect_moments(tiny_encoder, tiny_images.test, folds=0)
        options = {"translators": ["linear"], "calibration": moments, "head": quick()}
        given = evaluate_plans(tiny_encoder, tiny_images, ["1->3"], **options)
        variants = variants_of(parse_plans("1->3"), ["linear"])
        maps = fit_maps(tiny_encoder, variants, {"linear": "linear"}, moments)
        train, test = (
            collect_features(tiny_encoder, part, variants, maps) for part in (tiny_images.train, tiny_images.test)
        )
        probe = Probe(3, quick()).fit(train, tiny_images.train.labels)
        assert np.array_equal(given.predictions, probe.predict(test).flatten(0, 1))

    @pytest.mark.parametrize("calibration", ["moments", "folds", "activations"])
    def test_feature_alignment_needs_images(self, tiny_encoder, tiny_images, calibration):
        images = tiny_images.train[:20]
        given = {
            "moments": lambda: collect_moments(tiny_encoder, images, folds=0),
            "folds": lambda: collect_moments(tiny_encoder, images, folds=5),
            "activations": lambda: collect_activations(tiny_encoder, images, [1, 3], tokens="all"),
        }[calibration]()
        with pytest.raises(
            InputError, match=r"^'linear\+align' aligns features: pass calibration images, not their moments\.$"
        ):
            evaluate_plans(
                tiny_encoder, tiny_images, "1->3", translators=["linear+align"], calibration=given, head=quick()
            )

    @pytest.mark.parametrize(
        ("translator", "says"), [("context", "needs moments in folds"), ("mlp", "is fitted on activations")]
    )
    def test_moments_that_do_not_suit_a_map_are_refused(self, tiny_encoder, tiny_images, translator, says):
        moments = collect_moments(tiny_encoder, tiny_images.train[:20], folds=0)
        with pytest.raises(InputError, match=f"^Translator '{translator}' {says}"):
            evaluate_plans(
                tiny_encoder, tiny_images, "1->3", translators=[translator], calibration=moments, head=quick()
            )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"plans": "4->6"}, "Span 4->6 leaves the model"),
        ({"plans": "1->2", "translators": ["linaer"]}, "Unknown translator 'linaer': did you mean 'linear'"),
        ({"plans": "1->2", "translators": {"mine": "linaer"}}, "Unknown translator 'linaer': did you mean 'linear'"),
        ({"plans": "1->2", "calibration": 91}, "91 images were asked for, and there are 90"),
        ({"plans": "1->2", "calibration": {"a": 20, "b": 91}}, "91 images were asked for, and there are 90"),
    ],
)
def test_plans_that_cannot_be_evaluated_are_refused(tiny_encoder, tiny_images, options, says):
    with pytest.raises(InputError) as error:
        evaluate_plans(tiny_encoder, tiny_images, **options)
    assert says in str(error.value)


class TestWhatIsGivenInPlaceOfNames:
    def test_translators_in_a_list_go_by_their_names(self, tiny_encoder, tiny_images):
        both = [
            evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=given, calibration=20, head=quick())
            for given in ([Linear(), "identity", Ridge()], ["linear", "identity", "ridge"])
        ]
        pd.testing.assert_frame_equal(both[0].table, both[1].table)
        assert list(name_translators(Linear())) == ["linear"]  # one alone

    @pytest.mark.parametrize("given", [[LowRank(1), LowRank(2)], [LowRank(1), "low-rank"]])
    def test_two_translators_of_one_name_are_refused(self, given):
        with pytest.raises(InputError, match=r"^Two translators have the name 'low-rank': name them yourself"):
            name_translators(given)

    def test_a_head_goes_by_its_protocol(self, tiny_encoder, tiny_images):
        result = evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=20, head="retrained")
        assert set(result.variants["head"]) == {"retrained"}
        with pytest.raises(InputError, match=r"^Unknown head 'retraned': did you mean 'retrained'"):
            evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=20, head="retraned")

    @pytest.mark.parametrize("part", [slice(None), slice(20), slice(None, None, 2)])
    def test_maps_fitted_on_the_test_images_are_warned_of(self, tiny_encoder, tiny_images, part):
        def evaluate(images, **options):
            evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=images, head=quick(), **options)

        with pytest.warns(UserWarning, match="^Maps are fitted on the test images that score them: ") as caught:
            evaluate(tiny_images.test[part])
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(tiny_images.train[part])
            evaluate(tiny_images.test[part], translators=["identity"])  # nothing is fitted


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_without_labels_are_refused(tiny_encoder, tiny_images, part):
    unlabelled = replace(tiny_images, name="bare", **{part: replace(getattr(tiny_images, part), labels=None)})
    with pytest.raises(InputError, match=r"^bare has no labels: accuracies need them, similarities and maps do not\.$"):
        evaluate_plans(tiny_encoder, unlabelled, "1->2")


class TestSeveralCalibrationSets:
    """Maps of other data sets: against `evaluate_plans` with those moments alone, one set at a time."""

    PLANS = ("1->3", "0->1 2->4")
    HEAD = HeadConfig("frozen", [5, 6], learning_rate=1e-2, min_steps=40)

    @pytest.fixture
    def sources(self, tiny_encoder, tiny_images):
        """The images' own moments, and those of the same images with inverted colours."""
        own = tiny_images.train
        turned = replace(own, pixels=255 - own.pixels.flip(1))
        pairs = plan_pairs(parse_plans(self.PLANS))
        sets = (("tiny", own), ("turned", turned))
        return {name: collect_moments(tiny_encoder, images, pairs, folds=0) for name, images in sets}

    @pytest.fixture
    def transferred(self, tiny_encoder, tiny_images, sources):
        return evaluate_plans(tiny_encoder, tiny_images, self.PLANS, calibration=sources, head=self.HEAD)

    @pytest.mark.parametrize("source", ["tiny", "turned"])
    def test_each_set_predicts_as_it_does_alone(self, tiny_encoder, tiny_images, sources, transferred, source):
        alone = evaluate_plans(tiny_encoder, tiny_images, self.PLANS, calibration=sources[source], head=self.HEAD)
        both = transferred.variants.reset_index().merge(
            alone.variants.reset_index(), on=["head", "translator", "plan", "seed"]
        )
        both = both[both["calibration"].isin([source, ""])]
        assert len(both) == len(alone.variants)
        assert (transferred.predictions[both["index_x"]] == alone.predictions[both["index_y"]]).all()
        assert (transferred.labels == alone.labels).all()

    def test_sets_differ_and_identity_and_original_have_none(self, transferred):
        variants = transferred.variants
        assert variants.groupby("translator", sort=False)["calibration"].unique().map(list).to_dict() == {
            "original": [""],
            "identity": [""],
            "linear": ["tiny", "turned"],
        }
        linear = [transferred.predictions[variants["calibration"] == source] for source in ("tiny", "turned")]
        assert (linear[0] != linear[1]).any()
        assert len(variants) == (1 + 3 * len(self.PLANS)) * 2

    def test_a_set_may_be_a_number_images_moments_or_activations(self, tiny_encoder, tiny_images):
        drawn, pairs = tiny_images.train.sample(40, seed=0), plan_pairs(parse_plans("1->3"))
        calibration = {
            "number": 40,
            "images": drawn,
            "moments": collect_moments(tiny_encoder, drawn, pairs, folds=0),
            "activations": collect_activations(tiny_encoder, drawn, [1, 3], tokens="all"),
            "others": tiny_images.test,
        }
        result = evaluate_plans(
            tiny_encoder, tiny_images, "1->3", translators=["linear"], calibration=calibration, head=self.HEAD
        )
        correct = {name: result.mean_correct(calibration=name) for name in calibration}
        assert np.array_equal(correct["number"], correct["images"])
        for name in ("moments", "activations"):
            assert np.abs(correct["number"] - correct[name]).mean() < 0.01  # a tie that rounding decides
        assert not np.array_equal(correct["number"], correct["others"])

    def test_the_table_keeps_the_calibration_set(self, transferred):
        table, columns = transferred.table, ["head", "calibration", "translator", "plan", "seed"]
        assert table[columns].equals(transferred.variants[columns])
        assert list(table)[4:9] == ["head", "translator", "calibration", "plan", "seed"]
        assert (table.loc[table["calibration"] == "turned", "translator"] == "linear").all()

    def test_lost_against_the_original_is_that_of_the_set_alone(self, tiny_encoder, tiny_images, sources, transferred):
        alone = evaluate_plans(tiny_encoder, tiny_images, self.PLANS, calibration=sources["turned"], head=self.HEAD)
        for kind in ("lost", "pooled"):
            expected = getattr(alone, kind).set_index(["translator", "plan"])
            ours = getattr(transferred, kind)
            ours = ours[ours["calibration"].isin(["turned", ""])].set_index(["translator", "plan"])
            columns = ["lost", "lost_low", "lost_high"]
            assert len(ours) == len(expected)
            assert np.allclose(ours.loc[expected.index, columns], expected[columns])

    def test_gain_over_another_set_is_paired_and_pooled(self, transferred):
        columns = ["gain", "gain_low", "gain_high"]
        gain = transferred.gain(calibration="tiny").set_index(["calibration", "plan"])
        assert set(gain.index) == {("", ALL_PLANS), ("turned", ALL_PLANS)}  # the reference itself is left out
        expected = paired_difference(
            transferred.mean_correct(calibration="turned", translator="linear"),
            transferred.mean_correct(calibration="tiny"),
        )
        assert tuple(gain.loc[("turned", ALL_PLANS), columns]) == expected
        per_plan = transferred.gain(pooled=False, calibration="tiny").query("calibration == 'turned'")
        assert list(per_plan["plan"]) == list(self.PLANS)
        assert per_plan["gain"].mean() == pytest.approx(expected[0])
        for row in per_plan.itertuples():
            assert (row.gain, row.gain_low, row.gain_high) == paired_difference(
                transferred.mean_correct(calibration="turned", plan=row.plan),
                transferred.mean_correct(calibration="tiny", plan=row.plan),
            )

    def test_gain_over_a_translator_is_on_the_same_set(self, tiny_encoder, tiny_images, sources):
        result = evaluate_plans(
            tiny_encoder,
            tiny_images,
            self.PLANS,
            translators=["identity", "linear", "affine"],
            calibration=sources,
            head=self.HEAD,
        )
        gain = result.gain(translator="linear").set_index(["translator", "calibration"])
        assert list(gain.index) == [("identity", ""), ("affine", "tiny"), ("affine", "turned")]
        for source in sources:
            expected = paired_difference(
                result.mean_correct(translator="affine", calibration=source),
                result.mean_correct(translator="linear", calibration=source),
            )
            assert tuple(gain.loc[("affine", source), ["gain", "gain_low", "gain_high"]]) == expected
        # Identity has no calibration set: it stands against the maps of all of them.
        expected = paired_difference(
            result.mean_correct(translator="identity"), result.mean_correct(translator="linear")
        )
        assert tuple(gain.loc[("identity", ""), ["gain", "gain_low", "gain_high"]]) == expected
        over_both = result.gain(translator="linear", calibration="tiny").set_index(["translator", "calibration"])
        assert list(over_both.index) == [
            *(("identity", ""), ("linear", "turned")),
            *(("affine", "tiny"), ("affine", "turned")),
        ]
        assert tuple(over_both.loc[("affine", "turned"), ["gain", "gain_low", "gain_high"]]) == paired_difference(
            result.mean_correct(translator="affine", calibration="turned"),
            result.mean_correct(translator="linear", calibration="tiny"),
        )

    def test_feature_alignment_is_fitted_on_every_set(self, tiny_encoder, tiny_images):
        sets = {"first": tiny_images.train[:30], "last": tiny_images.train[60:]}
        names = ["identity", "identity+align", "linear+align"]
        options = {"translators": names, "head": self.HEAD}
        both = evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=sets, **options)
        kinds = both.variants.drop(columns=["seed", "head", "plan"]).drop_duplicates()
        assert kinds.to_numpy().tolist() == [
            ["original", ""],
            ["identity", ""],
            *(["identity+align", name] for name in sets),
            *(["linear+align", name] for name in sets),
        ]
        for name, images in sets.items():
            alone = evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=images, **options)
            for translator in names[1:]:
                assert np.array_equal(
                    both.mean_correct(translator=translator, calibration=name),
                    alone.mean_correct(translator=translator),
                )

    def test_a_target_without_labels_is_refused(self, tiny_encoder, tiny_images, sources):
        bare = replace(tiny_images.train, labels=None)
        with pytest.raises(InputError, match="bare has no labels"):
            evaluate_plans(tiny_encoder, ImageSet("bare", bare, bare), self.PLANS, calibration=sources)

    def test_a_plan_must_fit(self, tiny_encoder, tiny_images, sources):
        with pytest.raises(InputError, match="5->6 leaves the model"):
            evaluate_plans(tiny_encoder, tiny_images, "5->6", calibration=sources)

    def test_moments_must_hold_the_pairs(self, tiny_encoder, tiny_images):
        moments = collect_moments(tiny_encoder, tiny_images.train, [(0, 0), (0, 1)], folds=0)
        with pytest.raises(InputError, match=r"do not hold the blocks \(1, 1\)|do not hold the blocks \(1, 3\)"):
            evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration={"tiny": moments})

    def test_other_translators_are_fitted_on_every_set(self, tiny_encoder, tiny_images):
        turned = replace(tiny_images.train, pixels=255 - tiny_images.train.pixels)
        folds = {"turned": collect_moments(tiny_encoder, turned, folds=5)}
        names = ["linear", "context"]
        both = evaluate_plans(
            tiny_encoder,
            tiny_images,
            self.PLANS,
            translators=["identity", *names],
            calibration=folds,
            head=self.HEAD,
        )
        assert list(both.variants["translator"].unique()) == ["original", "identity", *names]
        alone = evaluate_plans(
            tiny_encoder,
            tiny_images,
            self.PLANS,
            translators=names,
            calibration=folds["turned"],
            head=self.HEAD,
        )
        for name in names:
            ours, theirs = (p.predictions[p.variants["translator"] == name] for p in (both, alone))
            assert (ours == theirs).all()
        assert set(both.lost["translator"]) == set(both.pooled["translator"]) == {"identity", *names}

    def test_a_translator_that_needs_folds_says_so(self, tiny_encoder, tiny_images, sources):
        with pytest.raises(InputError, match="'context' needs moments in folds"):
            evaluate_plans(tiny_encoder, tiny_images, self.PLANS, translators=["context"], calibration=sources)


def test_maps_are_not_called_as_the_encoder_is(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="'original' is the name of the encoder itself"):
        evaluate_plans(tiny_encoder, tiny_images, "1->2", translators={"original": "linear"})


def test_an_encoder_in_training_mode_is_refused(tiny_encoder, tiny_images):
    evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=20, head=HeadConfig(seeds=1, min_steps=1))
    tiny_encoder.model.train()
    with pytest.raises(InputError, match=r"tiny is in training mode, .* call its eval\(\) first"):
        evaluate_plans(tiny_encoder, tiny_images, "1->2", calibration=20, head=HeadConfig(seeds=1, min_steps=1))


LABELS = {0: "another", 1: "Two", 2: "one", 3: "three"}


@pytest.fixture(params=["vit", "deit", "dinov2", "beit"])
def with_classifier(request, tmp_path, tiny_images):
    """The encoder of a checkpoint with a classifier of four labels, loaded from a folder; and that folder."""
    family = request.param
    model = make_tiny_model(family, head="ForImageClassification", id2label=LABELS, label2id={})
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tiny_images.train.preprocessing.to_config()))
    return load_encoder(str(tmp_path), features="pooler" if family == "beit" else "cls", device="cpu"), tmp_path


class TestTheCheckpointsOwnClassifier:
    def test_its_answers_are_those_of_the_smaller_classifier(self, with_classifier, tiny_images):
        encoder, folder = with_classifier
        head = HeadConfig(("own", "frozen"), seeds=2, min_steps=0)
        result = evaluate_plans(encoder, tiny_images, ["1->3"], calibration=40, head=head)
        classes = {1: 1, 2: 0, 3: 2}  # label of the checkpoint -> class of the images
        fitted_on = tiny_images.train.sample(40, seed=0)
        whole = own_classifier(str(folder))
        for translator in ("identity", "linear"):
            small = saved_form(approximate(encoder, "1->3", fitted_on, translator=translator), whole)
            with torch.inference_mode():
                answers = torch.cat([small(pixels).logits.argmax(-1) for pixels, _ in tiny_images.test.batches(32)])
            expected = [classes.get(answer, 3) for answer in answers.tolist()]
            found = result.predicted(head="own", translator=translator, plan="1->3")
            assert (found == np.array(expected)).mean() > 0.95  # but for ties that rounding decides
            assert (found[0] == found[1]).all()  # one answer for all seeds
        assert result.class_names[3:] in ((), ("another label",))
        assert set(result.table["head"]) == {"own", "frozen"}

    def test_one_is_needed_and_has_to_know_the_classes(self, with_classifier, tiny_encoder, tiny_images):
        head = HeadConfig("own")
        with pytest.raises(InputError, match="has no classifier of its own"):
            evaluate_plans(tiny_encoder, tiny_images, ["1->3"], calibration=40, head=head)
        named = {
            part: replace(getattr(tiny_images, part), class_names=("one", "two", "4")) for part in ("train", "test")
        }
        with pytest.raises(InputError, match="has no label for '4'"):
            evaluate_plans(with_classifier[0], ImageSet("named", **named), ["1->3"], calibration=40, head=head)
