"""A smaller encoder is the original with its blocks cut out, and a model like any other."""

import contextlib
import itertools

import pytest
import torch
from tiny import FAMILIES
from torch import Tensor

from toastlib.approximation.replace import approximate, collect_calibration, fit_spans
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import collect_activations
from toastlib.models.layers import Replacement
from toastlib.plan import Plan, Span
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import KFoldMoments, Moments, plan_pairs
from toastlib.translators.base import RECOMMENDED
from toastlib.translators.linear import Linear

PLANS = ["1->2", "1->3", "-1->0", "3->4", "-1->1 2->4", "0->1 1->2", "0->2 3->4", "-1->4"]


def encoder_of(model: torch.nn.Module, family: str) -> Encoder:
    return Encoder(model, features="mean" if family == "siglip" else "cls", name=family)


def by_hand(encoder: Encoder, weights: dict[Span, Tensor], inputs: Tensor) -> Tensor:
    """Features of the whole original, where ``h[s] @ W`` overwrites ``h[e]``: no block list is touched."""
    seen = {}
    with contextlib.ExitStack() as hooks:
        for span, weight in weights.items():
            overwrite = encoder.blocks[span.end].register_forward_hook(
                lambda m, args, out, s=span.start, w=weight: seen[s] @ w.float()
            )
            hooks.callback(overwrite.remove)
        for start, _ in weights:  # after the overwriting, so that a span that starts where another ends sees its map
            record = (
                encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.update({-1: args[0]}))
                if start == -1
                else encoder.blocks[start].register_forward_hook(lambda m, args, out, k=start: seen.update({k: out}))
            )
            hooks.callback(record.remove)
        return encoder(inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_encoder_computes_what_surgery_by_hand_computes(tiny_model, tiny_images, family, pixel_values):
    encoder = encoder_of(tiny_model(family), family)
    moments = collect_moments(encoder, tiny_images.train[:20], folds=0)
    for plan in map(Plan.parse, PLANS):
        weights = {span: Linear().fit_moments(moments, span).weight_ for span in plan}
        small = approximate(encoder, plan, moments, translator="linear")
        torch.testing.assert_close(small(pixel_values), by_hand(encoder, weights, pixel_values), rtol=1e-4, atol=1e-5)
        small = approximate(encoder, plan, moments, translator="identity")
        dropped = {span: torch.eye(32) for span in plan}
        torch.testing.assert_close(small(pixel_values), by_hand(encoder, dropped, pixel_values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_empty_plan_changes_not_one_bit(tiny_model, family, pixel_values):
    encoder = encoder_of(tiny_model(family), family)
    assert torch.equal(approximate(encoder, "original")(pixel_values), encoder(pixel_values))


@pytest.fixture
def moments(tiny_encoder, tiny_images):
    return collect_moments(tiny_encoder, tiny_images.train[:20], folds=0)


def test_the_removed_blocks_are_gone_from_the_parameters(tiny_encoder, moments):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    removed = sum(count(tiny_encoder.blocks[block]) for block in (2, 4, 5))
    linear = approximate(tiny_encoder, "1->2 3->5", moments, translator="linear")
    identity = approximate(tiny_encoder, "1->2 3->5", moments, translator="identity")
    assert count(identity) == count(tiny_encoder) - removed
    assert count(linear) == count(identity) + 2 * 32**2
    assert len(linear.state_dict()) < len(tiny_encoder.state_dict())


def test_one_replacement_stands_for_each_span(tiny_encoder, moments):
    blocks = approximate(tiny_encoder, "1->2 3->5", moments, translator="linear").blocks
    replaced = [str(block.span) if isinstance(block, Replacement) else None for block in blocks]
    assert replaced == [None, None, "1->2", None, "3->5"]


def test_the_original_stays_as_it_is(tiny_encoder, moments, pixel_values):
    before = {name: value.clone() for name, value in tiny_encoder.state_dict().items()}
    features = tiny_encoder(pixel_values)
    small = approximate(tiny_encoder, "1->2 3->5", moments, translator="linear")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert len(tiny_encoder.blocks) == 6
    assert all(torch.equal(value, before[name]) for name, value in tiny_encoder.state_dict().items())
    assert torch.equal(tiny_encoder(pixel_values), features)


def test_the_map_is_the_fitted_one_in_the_encoders_dtype(tiny_encoder, moments):
    small = approximate(tiny_encoder.to(torch.bfloat16), "1->2", moments, translator="linear")
    weight = Linear().fit_moments(moments, Span(1, 2)).weight_
    assert torch.equal(small.blocks[2].translation.weight, weight.mT.float().to(torch.bfloat16))


def test_the_smaller_encoder_can_be_measured_and_cut_again(tiny_encoder, tiny_images, moments, pixel_values):
    small = approximate(tiny_encoder, "1->3", moments, translator="linear")
    again = collect_moments(small, tiny_images.train[:20], folds=0)
    assert again.blocks == (-1, 0, 1, 2, 3, 4)
    assert approximate(small, "3->4", again, translator="linear")(pixel_values).shape == (3, 32)


class Plain(torch.nn.Module):
    """No transformer: four layers, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_plain_module_with_named_blocks_can_be_cut():
    encoder = Encoder(Plain(), blocks="layers")
    hidden, images = torch.randn(2, 5, 8), torch.randn(9, 5, 8)
    batches = type("Batches", (), {"batches": lambda self, size: [(images, None)]})()
    small = approximate(encoder, "0->2", collect_moments(encoder, batches, folds=0), translator="linear")
    first, second, third, last = encoder.blocks
    weight = torch.linalg.lstsq(first(images).flatten(0, 1), third(second(first(images))).flatten(0, 1)).solution
    torch.testing.assert_close(small(hidden), last(first(hidden) @ weight)[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("calibration", ["images", "moments"])
def test_a_plan_is_taken_as_pairs_of_blocks(tiny_encoder, tiny_images, pixel_values, calibration):
    images = tiny_images.train[:20]
    given = collect_moments(tiny_encoder, images) if calibration == "moments" else images
    for pairs, text in ([(1, 2)], "1->2"), ([(1, 2), (3, 5)], "1->2 3->5"):
        by_pairs, by_text = (approximate(tiny_encoder, plan, given) for plan in (pairs, text))
        assert torch.equal(by_pairs(pixel_values), by_text(pixel_values))


def test_a_translator_with_its_settings_is_taken_for_every_span(tiny_encoder, moments, pixel_values):
    by_name = approximate(tiny_encoder, "1->2 3->5", moments, translator="linear")
    linear = Linear()
    assert torch.equal(
        approximate(tiny_encoder, "1->2 3->5", moments, translator=linear)(pixel_values), by_name(pixel_values)
    )
    assert not hasattr(linear, "weight_")


@pytest.mark.parametrize(
    ("plan", "translator", "says"),
    [
        ("4->6", "linear", "Span 4->6 leaves the model: it has 6 blocks, so the last is 5."),
        ("5->2", "linear", "runs backwards"),
        ("1->2", "lienar", "did you mean 'linear'"),
    ],
)
def test_what_cannot_be_cut_is_refused(tiny_encoder, moments, plan, translator, says):
    with pytest.raises(InputError) as error:
        approximate(tiny_encoder, plan, moments, translator=translator)
    assert says in str(error.value)


def test_a_plan_without_moments_is_refused(tiny_encoder):
    with pytest.raises(InputError, match="moments"):
        approximate(tiny_encoder, "1->2")


@pytest.mark.parametrize("calibration", [500, "digits"])
def test_a_calibration_of_another_kind_is_refused(tiny_encoder, calibration):
    with pytest.raises(
        InputError, match=r"^Span 1->2 needs calibration images, or their moments or activations, to fit its map on\.$"
    ):
        approximate(tiny_encoder, "1->2", calibration, translator="linear")


@pytest.mark.parametrize("translator", ["identity", "linear", "context", "mlp"])
def test_images_are_as_good_as_their_statistics(tiny_encoder, tiny_images, pixel_values, translator):
    images, plan = tiny_images.train[:20], Plan.parse("1->2 3->5")
    given = {
        "context": lambda: collect_moments(tiny_encoder, images, plan_pairs([plan]), batch_size=7, folds=5),
        "mlp": lambda: collect_activations(tiny_encoder, images, [1, 2, 3, 5], tokens="all", batch_size=7),
    }.get(translator, lambda: collect_moments(tiny_encoder, images, plan_pairs([plan]), batch_size=7, folds=0))()
    ours = approximate(tiny_encoder, plan, images, translator=translator, batch_size=7)
    expected = approximate(tiny_encoder, plan, given, translator=translator)
    assert torch.equal(ours(pixel_values), expected(pixel_values))


def test_the_recommended_map_takes_images(tiny_encoder, tiny_images, pixel_values):
    images = tiny_images.train[:20]
    recommended = approximate(tiny_encoder, "1->3", images, translator=RECOMMENDED)
    assert torch.equal(approximate(tiny_encoder, "1->3", images)(pixel_values), recommended(pixel_values))


def test_what_is_collected_serves_every_translator(tiny_encoder, tiny_images):
    images, plans = tiny_images.train[:10], [Plan.parse("1->2"), Plan.parse("3->5")]
    blocks, pairs = {1, 2, 3, 5}, set(plan_pairs(plans))
    plain = collect_calibration(tiny_encoder, images, plans, ["identity", "linear+align", Linear()])
    assert isinstance(plain, Moments)
    assert plain.products.keys() == pairs
    rows = collect_calibration(tiny_encoder, images, plans, ["linear", "mlp"])
    assert rows.keys() == blocks
    assert {values.shape for values in rows.values()} == {(10 * 17, 32)}
    folds = collect_calibration(tiny_encoder, images, plans, ["linear", "context"])
    assert isinstance(folds, KFoldMoments)
    assert folds.activations is None
    both = collect_calibration(tiny_encoder, images, plans, ["mlp", "context"])
    assert isinstance(both, KFoldMoments)
    assert both.activations.keys() == blocks
    for plan, name in itertools.product(plans, ["identity", "linear", "context", "mlp"]):
        assert fit_spans(plan, name, both).keys() == set(plan)


def test_moments_of_another_plan_are_refused(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train[:20], pairs=[(1, 1), (1, 2)], folds=0)
    with pytest.raises(InputError, match=r"do not hold the blocks \(2, 3\)"):
        approximate(tiny_encoder, "2->3", moments, translator="linear")
    with pytest.raises(InputError, match=r"do not hold the blocks \(2, 3\)"):
        approximate(tiny_encoder, "2->3", moments, translator="identity")


@pytest.mark.parametrize("folds", [0, 5])
@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 9}, {"hidden_size": 16, "intermediate_size": 32}])
def test_moments_of_another_encoder_are_refused(tiny_model, tiny_encoder, tiny_images, sizes, folds):
    other = Encoder(tiny_model("vit", **sizes), preprocessing=tiny_encoder.preprocessing)
    theirs = collect_moments(other, tiny_images.train[:20], folds=folds)
    with pytest.raises(InputError, match="These moments are of another encoder"):
        approximate(tiny_encoder, "1->3", theirs, translator="linear")
    with pytest.raises(InputError, match="These moments are of another encoder"):
        evaluate_plans(tiny_encoder, tiny_images, "1->3", calibration=theirs)
