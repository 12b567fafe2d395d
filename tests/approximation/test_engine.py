"""Many plans in one forward pass: the features of every smaller encoder, and no block runs twice on the same states."""

import copy
import random
import weakref
from collections import Counter

import pytest
import torch
from tiny import FAMILIES
from torch import nn

from toastlib.approximation import engine
from toastlib.approximation.engine import (
    THE_ORIGINAL,
    Variant,
    acts_by_token,
    collect_features,
    forward_plans,
    variants_of,
)
from toastlib.approximation.prepare import fit_maps, name_translators
from toastlib.approximation.replace import approximate
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.sublayers import run_last, split_blocks
from toastlib.models.walk import check_walk
from toastlib.paper import plan_list
from toastlib.plan import Plan, Span, parse_plans
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import plan_pairs
from toastlib.translators.base import make_translator
from toastlib.translators.linear import Linear


def make_encoder(model, family):
    return Encoder(model, features={"siglip": "mean", "gpt2": "last"}.get(family, "cls"))


def inputs_of(encoder, count):
    draw = torch.Generator().manual_seed(0)
    if not encoder.reads_text:
        return torch.randn(count, 3, 32, 32, generator=draw)
    ids = torch.randint(2, 50, (count, 12), generator=draw)
    mask = (torch.arange(12) < torch.tensor([[12], [7], [9]][:count])).long()  # padded on the right
    return Tokens(ids, mask)


PLANS = ["1->3", "0->1 3->5", "-1->0", "4->5"]


def fitted(encoder, images, plans, translators=("identity", "linear")):
    variants = variants_of(parse_plans(plans), translators)
    moments = collect_moments(encoder, images, plan_pairs(variant.plan for variant in variants))
    return variants, fit_maps(encoder, variants, name_translators(translators), moments), moments


@pytest.mark.parametrize(("family", "depth"), [("vit", 12), *((family, 6) for family in FAMILIES)])
def test_the_walk_gives_the_features_of_every_approximated_encoder(tiny_model, tiny_images, family, depth):
    model = tiny_model(family, num_hidden_layers=depth)
    encoder = Encoder(model, features="mean" if family == "siglip" else "cls")
    plans = [*plan_list(depth), "-1->0", f"-1->1 2->{depth - 1}"]
    variants, maps, moments = fitted(encoder, tiny_images.train[:10], plans)
    pixel_values, _ = next(tiny_images.test.batches(2))
    features = forward_plans(encoder, pixel_values, variants, maps)
    assert set(features) == set(variants)
    for variant in variants:
        translator = variant.translator if variant.plan else "identity"
        small = approximate(encoder, variant.plan, moments, translator=translator)
        torch.testing.assert_close(features[variant], small(pixel_values), rtol=1e-4, atol=1e-5)


READS_CLS = {"siglip": False, "beit": True, "gpt2": False} | dict.fromkeys(
    ("vit", "deit", "dinov2", "dinov2-registers", "dinov3", "clip", "beit-cls", "bert", "roberta"), True
)
"""Family -> whether its last block is run for the CLS token alone."""


@pytest.mark.parametrize(("family", "alone"), READS_CLS.items(), ids=READS_CLS)
def test_the_last_block_is_run_for_the_tokens_that_are_read(tiny_model, family, alone):
    encoder = make_encoder(tiny_model(family), family)
    seen = []
    with torch.inference_mode():
        inputs = inputs_of(encoder, 3)
        check_walk(encoder, inputs)
        assert (encoder.last_split is not None) == alone
        shared = encoder.embed(inputs)
        whole = encoder.run_block(4, shared.hidden, shared)
        for part in encoder.blocks[-1].modules():
            if list(part.parameters(recurse=False)):  # the last to be called is the end of the MLP
                part.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
        read = run_last(encoder, shared.hidden, shared)
    assert seen[-1] == (1 if alone else whole.shape[1])
    torch.testing.assert_close(read, whole[:, :1] if alone else whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.pool(read, inputs), encoder.pool(whole, inputs), rtol=1e-4, atol=1e-5)


def test_features_that_read_other_tokens_keep_the_whole_last_block(tiny_model, pixel_values):
    for encoder in (Encoder(tiny_model("vit"), features="mean"), split_blocks(Encoder(tiny_model("vit")))):
        check_walk(encoder, pixel_values)
        assert encoder.last_split is None

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = tiny_model("vit")

        def forward(self, pixels):
            return self.vit(pixels).last_hidden_state.mean(1)

    pools_itself = Encoder(Mean())
    check_walk(pools_itself, pixel_values)
    assert pools_itself.last_split is None


def test_dense_features_get_all_tokens_of_the_last_block(tiny_encoder, tiny_images, pixel_values):
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["3->4", "1->2"])
    assert tiny_encoder.last_split is not None
    states_of = forward_plans(tiny_encoder, pixel_values, variants, maps, lambda hidden, inputs: hidden)
    assert {hidden.shape[1] for hidden in states_of.values()} == {17}


def test_a_map_of_the_last_block_gets_the_token_that_is_read(tiny_encoder, tiny_images, pixel_values):
    names = ["identity", "linear", "separate", "context"]
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["3->5"], names)
    seen = {}
    for (_, name, _), module in maps.items():
        module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0].shape[1]}))
    features = forward_plans(tiny_encoder, pixel_values, variants, maps)
    assert seen == {"identity": 1, "linear": 1, "separate": 1, "context": 17}
    whole = forward_plans(tiny_encoder, pixel_values, variants, maps, tiny_encoder.pool)
    for variant in variants:
        torch.testing.assert_close(features[variant], whole[variant], rtol=1e-4, atol=1e-5)
    assert not acts_by_token(nn.MultiheadAttention(8, 2))
    assert acts_by_token(make_translator("mlp").build(8))
    assert not acts_by_token(make_translator("per-position").build(8, tokens=5))  # of CLS alone it would be the first


@pytest.mark.parametrize("translator", ["identity", "linear", "context"])
@pytest.mark.parametrize("plan", ["4->5", "2->5", "1->2"])
def test_features_of_a_smaller_encoder_are_those_of_its_own_forward(tiny_encoder, tiny_images, plan, translator):
    """What was found about the original's last block does not hold for a map in its place."""
    collect_features(tiny_encoder, tiny_images.test, [THE_ORIGINAL], {})
    assert tiny_encoder.reads_cls_alone
    smaller = approximate(tiny_encoder, plan, tiny_images.train[:40], translator=translator)
    found = collect_features(smaller, tiny_images.test, [THE_ORIGINAL], {})[0]
    torch.testing.assert_close(found, smaller.encode(tiny_images.test), rtol=1e-4, atol=1e-5)


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
    variants, maps, _ = fitted(encoder, tiny_images.train[:10], plans)
    if seed is not None:
        random.Random(seed).shuffle(variants)
    calls = Counter()
    for block, module in enumerate(encoder.blocks):
        module.attention.register_forward_hook(lambda m, args, out, k=block: calls.update([k]))
    forward_plans(encoder, pixel_values, variants, maps)
    assert calls == states(variants, 12)
    assert calls.total() < sum(12 - len(variant.plan.removed) for variant in variants) / 2


def test_a_block_that_no_variant_needs_does_not_run(tiny_encoder, tiny_images, pixel_values):
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["2->4"], ["linear"])
    with torch.no_grad():
        next(tiny_encoder.blocks[3].parameters()).fill_(torch.nan)
    assert torch.isfinite(forward_plans(tiny_encoder, pixel_values, variants[1:], maps)[variants[1]]).all()


def test_every_map_is_fitted_once(tiny_encoder, tiny_images):
    _, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["1->2", "1->2 3->4", "3->4"])
    assert len(maps) == 4  # two spans, two translators


def test_a_map_is_fitted_once_with_feature_alignment_and_without(tiny_encoder, tiny_images, monkeypatch):
    fits, fit = [], Linear.fit_moments
    monkeypatch.setattr(
        Linear, "fit_moments", lambda self, moments, span: fits.append(span) or fit(self, moments, span)
    )
    _, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["1->2", "1->2 3->4"], ["linear", "linear+align"])
    assert sorted(fits) == [Span(1, 2), Span(3, 4)]
    assert set(maps) == {(Span(1, 2), "linear", ""), (Span(3, 4), "linear", "")}


def test_every_plan_has_each_calibration_set_but_for_identity_which_needs_none():
    variants = variants_of(parse_plans(["1->2", "3->4"]), ["identity", "linear"], ["a", "b"])
    rows = [(str(variant.plan), variant.translator, variant.calibration) for variant in variants]
    of_a_plan = [("identity", ""), ("linear", "a"), ("linear", "b")]
    assert rows == [("original", "original", ""), *((plan, *kind) for plan in ("1->2", "3->4") for kind in of_a_plan)]


def test_collected_features_are_those_of_the_walk_in_the_order_of_the_images(tiny_encoder, tiny_images):
    images = tiny_images.test[:10]
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], PLANS)
    features = collect_features(tiny_encoder, images, variants, maps, batch_size=4)
    assert features.shape == (len(variants), 10, 32)
    assert features.dtype == torch.float32
    whole = forward_plans(tiny_encoder, next(images.batches(10))[0], variants, maps)
    for values, variant in zip(features, variants, strict=True):
        torch.testing.assert_close(values, whole[variant], rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(tiny_encoder, tiny_images, monkeypatch):
    images, whole, sizes = tiny_images.test[:10], engine.forward_plans, []
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], PLANS)
    expected = collect_features(tiny_encoder, images, variants, maps, batch_size=7)

    def fits(most):
        def run(encoder, inputs, *rest):
            if len(inputs) > most:
                raise torch.cuda.OutOfMemoryError
            sizes.append(len(inputs))
            return whole(encoder, inputs, *rest)

        return run

    monkeypatch.setattr(engine, "forward_plans", fits(2))
    features = collect_features(tiny_encoder, images, variants, maps, batch_size=7)
    assert sizes == [1, 2, 2, 2, 1, 2]  # 7 are 3 and 4, and 3 are 1 and 2
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(engine, "forward_plans", fits(0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        collect_features(tiny_encoder, images, variants, maps, batch_size=7)


def test_a_variant_that_gives_nan_is_named(tiny_encoder, tiny_images):
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["1->2", "3->4"], ["linear"])
    maps[Span(3, 4), "linear", ""].weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"^Plan 3->4 with translator 'linear' gives NaN or infinity\.$"):
        collect_features(tiny_encoder, tiny_images.test, variants, maps)


class Between(nn.Module):
    """Patches of 8 x 8 pixels through plain blocks, with something between them that is no block."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.patches = kind, nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=kind != "tokens first")
        self.stages = nn.ModuleList(copy.deepcopy(layer) for _ in range(4))
        self.positions = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, pixel_values):
        hidden = self.patches(pixel_values).flatten(2).mT
        first = hidden
        for stage, positions in zip(self.stages, self.positions):
            hidden = stage(hidden + (positions if self.kind == "positions" else first if self.kind == "skip" else 0))
        return hidden


@pytest.mark.parametrize("kind", ["positions", "skip"])
def test_a_model_that_is_more_than_its_blocks_is_refused(tiny_images, kind):
    encoder = Encoder(Between(kind), "stages", "mean", preprocessing=tiny_images.train.preprocessing)
    with pytest.raises(InputError, match=r"more than its blocks one after the other: .* such as positions or skips"):
        collect_features(encoder, tiny_images.test, [THE_ORIGINAL], {})
    with pytest.raises(InputError, match="more than its blocks one after the other"):
        approximate(encoder, "0->2", tiny_images.test)


def test_blocks_that_take_the_batch_for_tokens_are_refused(tiny_images):
    """Whatever the sizes: also where a batch has as many images as an image has tokens."""
    encoder = Encoder(Between("tokens first"), "stages", "mean", preprocessing=tiny_images.train.preprocessing)
    for batch_size in (16, 32):
        with pytest.raises(InputError, match=r"depend on the others in its batch.* without batch_first=True"):
            collect_features(encoder, tiny_images.test, [THE_ORIGINAL], {}, batch_size)
        with pytest.raises(InputError, match="depend on the others in its batch"):
            collect_moments(encoder, tiny_images.test, batch_size=batch_size)


def test_a_plain_stack_of_blocks_is_walked(tiny_images):
    encoder = Encoder(Between("nothing"), "stages", "mean", preprocessing=tiny_images.train.preprocessing)
    found = collect_features(encoder, tiny_images.test, [THE_ORIGINAL], {})[0]
    torch.testing.assert_close(found, encoder.encode(tiny_images.test))


def test_a_block_that_runs_several_times_is_refused():
    model = Between("nothing")
    model.stages = nn.ModuleList([model.stages[0]] * 4)
    with pytest.raises(InputError, match="Between runs one block several times"):
        Encoder(model, "stages", "mean")


@pytest.mark.parametrize("original_last", [False, True])
def test_few_states_wait_in_memory_however_many_plans_there_are(tiny_model, tiny_images, pixel_values, original_last):
    """One state for each map on the way, and the path itself; the plans here have one map each."""
    encoder = Encoder(tiny_model("vit", num_hidden_layers=12))
    plans = [Plan.parse(f"{block}->{block + 1}") for block in range(10)]
    variants, maps, _ = fitted(encoder, tiny_images.train[:10], plans, ["linear"])
    states, most = [], []

    def seen(module, args, output):
        states.append(weakref.ref(output))
        most.append(sum(state() is not None for state in states))

    for module in (*encoder.blocks[:-1], *maps.values()):  # the last one gives one token
        module.register_forward_hook(seen)
    forward_plans(encoder, pixel_values, variants[1:] + variants[:1] if original_last else variants, maps)
    assert max(most) <= 4  # the next block's output of either path, and the two that they are computed from


def test_features_of_an_aligned_variant_go_through_its_map_and_no_others_do(tiny_encoder, tiny_images):
    images, plans, translators = tiny_images.test[:10], parse_plans(["1->2"]), ["linear", "linear+align"]
    plain, aligned = variants_of(plans, translators)[1:]
    _, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], plans, translators)
    align = nn.Linear(32, 32)
    maps[aligned] = align
    features = collect_features(tiny_encoder, images, [aligned, plain], maps)
    assert (plain.aligned, aligned.aligned) == (False, True)
    assert aligned.unaligned == plain
    torch.testing.assert_close(features[0], align(features[1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[1], collect_features(tiny_encoder, images, [plain], maps)[0])


@pytest.mark.parametrize("block", [-1, 2])
def test_a_walk_from_a_block_computed_before_is_the_whole_walk(tiny_encoder, tiny_images, pixel_values, block):
    variants, maps, _ = fitted(tiny_encoder, tiny_images.train[:10], ["2->4", "3->5"], ["linear"])
    with torch.inference_mode():
        shared = tiny_encoder.embed(pixel_values)
        hidden = shared.hidden
        for k in range(block + 1):
            hidden = tiny_encoder.run_block(k, hidden, shared)
    ran = []
    for k, module in enumerate(tiny_encoder.blocks):
        module.register_forward_hook(lambda m, args, out, k=k: ran.append(k))
    found = forward_plans(tiny_encoder, pixel_values, variants, maps, start=(block, hidden))
    assert min(ran) == block + 1
    whole = forward_plans(tiny_encoder, pixel_values, variants, maps)
    for variant in variants:
        torch.testing.assert_close(found[variant], whole[variant])


def test_a_pool_of_ones_own_reads_the_last_output_and_the_inputs(tiny_encoder, pixel_values):
    def pool(hidden, inputs):
        assert inputs is pixel_values
        return hidden.mean(1)

    found = forward_plans(tiny_encoder, pixel_values, [THE_ORIGINAL], {}, pool)[THE_ORIGINAL]
    last = []
    tiny_encoder.blocks[-1].register_forward_hook(lambda m, args, out: last.append(out))
    tiny_encoder(pixel_values)
    torch.testing.assert_close(found, last[0].mean(1))


def test_the_bar_counts_images_and_is_hidden_where_the_environment_says_so(tiny_images, monkeypatch):
    bars = []

    class Bar(engine.tqdm):
        def __init__(self, **options):
            bars.append((self, options))
            super().__init__(**options | {"disable": True})
            self.counted = 0

        def update(self, n=1):
            self.counted += n

    monkeypatch.setattr(engine, "tqdm", Bar)
    for value in ("1", ""):
        monkeypatch.setenv("TQDM_DISABLE", value)
        sizes = [len(inputs) for inputs in engine.visible_batches(tiny_images.test, 25, "features")]
        assert sizes == [25, 25, 10]
    assert [options["disable"] for _, options in bars] == [True, False]
    assert [(options["total"], bar.counted) for bar, options in bars] == [(60, 60)] * 2
    assert not any(options["leave"] for _, options in bars)


def test_an_empty_plan_is_the_original_whatever_its_translators():
    assert variants_of([Plan(), Plan.parse("1->2")], ["linear"]) == [
        THE_ORIGINAL,
        Variant(Plan.parse("1->2"), "linear"),
    ]


def test_one_image_that_gives_nan_is_enough_to_be_refused(tiny_encoder, tiny_images):
    class Poison(nn.Module):
        def forward(self, hidden):
            return torch.where(torch.arange(len(hidden))[:, None, None] == 3, torch.nan, hidden)

    variant = Variant(Plan.parse("1->2"), "mine")
    with pytest.raises(InputError, match=r"^Plan 1->2 with translator 'mine' gives NaN or infinity\.$"):
        collect_features(tiny_encoder, tiny_images.test, [variant], {(Span(1, 2), "mine", ""): Poison()})


def test_what_is_no_encoder_or_no_images_is_named(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match=r"^An Encoder, such as load_encoder returns, is needed here, not a Linear"):
        collect_features(nn.Linear(2, 2), tiny_images.test, [THE_ORIGINAL], {})
    with pytest.raises(InputError, match="is needed here, not a list"):
        collect_features(tiny_encoder, [1, 2], [THE_ORIGINAL], {})
