"""One streaming pass: what the moments hold, and that they add up."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from toastlib.errors import InputError
from toastlib.models.hooks import collect_activations
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import SUMS, KFoldMoments, Moments, all_pairs, plan_pairs, split_folds

PAIRS = all_pairs(2)


def rows(count: int, seed: int = 0, width: int = 5) -> dict[int, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {block: torch.randn(count, width, generator=draw, dtype=torch.float64) for block in (-1, 0, 1)}


def assert_same(ours: Moments, theirs: Moments, rtol: float = 1e-12) -> None:
    """Equal to the rounding of float64 sums taken in another order."""
    assert (ours.blocks, ours.count) == (theirs.blocks, theirs.count)
    assert ours.products.keys() == theirs.products.keys()
    for name in SUMS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=rtol, atol=rtol)
    for pair in theirs.products:
        torch.testing.assert_close(ours.products[pair], theirs.products[pair], rtol=rtol, atol=rtol)


def test_each_entry_is_what_it_says():
    h = rows(40)
    moments = Moments.of(h, PAIRS)
    assert moments.blocks == (-1, 0, 1)
    assert moments.count == 40
    assert moments.width == 5
    for i, first in enumerate(moments.blocks):
        torch.testing.assert_close(moments.sums[i], h[first].sum(0))
        for j, second in enumerate(moments.blocks):
            torch.testing.assert_close(moments.inner[i, j], (h[first] * h[second]).sum())
            torch.testing.assert_close(moments.cosines[i, j], cosine_similarity(h[first], h[second]).sum())
            torch.testing.assert_close(moments.product(first, second), h[first].mT @ h[second])


def test_merging_is_the_same_as_concatenating():
    first, second = rows(30, seed=1), rows(50, seed=2)
    both = {block: torch.cat([first[block], second[block]]) for block in first}
    assert_same(Moments.of(first, PAIRS).merge(Moments.of(second, PAIRS)), Moments.of(both, PAIRS))


def test_only_moments_of_the_same_pairs_merge():
    h = rows(10)
    with pytest.raises(InputError, match="same blocks and pairs"):
        Moments.of(h, PAIRS).merge(Moments.of(h, [(0, 1)]))


def test_float32_rows_are_summed_in_float64():
    h = {0: torch.full((1000, 2), 1.1, dtype=torch.float32)}
    moments = Moments.of(h, [(0, 0)])
    assert moments.inner.dtype == moments.products[0, 0].dtype == torch.float64
    value = torch.tensor(1.1, dtype=torch.float32).double()
    torch.testing.assert_close(moments.products[0, 0][0, 1], 1000 * value**2, rtol=1e-13, atol=0)


def test_a_pair_that_was_not_collected_is_named():
    moments = Moments.of(rows(10), [(0, 1)])
    with pytest.raises(InputError, match=r"do not hold the blocks \(-1, 1\)"):
        moments.product(-1, 1)


def test_plan_pairs_are_those_that_maps_are_fitted_from():
    plans = [Plan.parse("1->3 4->5"), Plan.parse("1->2"), Plan()]
    assert plan_pairs(plans) == [(1, 1), (1, 2), (1, 3), (4, 4), (4, 5)]


def test_all_pairs_count_the_input_of_block_0():
    assert all_pairs(2) == [(-1, -1), (-1, 0), (-1, 1), (0, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("tokens", ["all", "patch", "cls", "mean"])
def test_collected_moments_are_those_of_the_stored_activations(tiny_encoder, tiny_images, tokens):
    images = tiny_images.train[:20]
    stored = collect_activations(tiny_encoder, images, tokens=tokens, batch_size=20)
    moments = collect_moments(tiny_encoder, images, folds=0, tokens=tokens, batch_size=20)
    assert moments.count == {"all": 20 * 17, "patch": 20 * 16, "cls": 20, "mean": 20}[tokens]
    assert_same(moments, Moments.of(stored, all_pairs(6)))


def test_the_batch_size_does_not_matter(tiny_encoder, tiny_images):
    encoder = tiny_encoder.double()  # in float32 the forward pass itself rounds differently for another batch
    images = replace(tiny_images.train[:20], dtype=torch.float64)
    assert_same(*(collect_moments(encoder, images, batch_size=size, folds=0) for size in (20, 7)))


def test_only_the_pairs_asked_for_are_kept(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train[:4], plan_pairs([Plan.parse("-1->0 2->4")]), folds=0)
    assert set(moments.products) == {(-1, -1), (-1, 0), (2, 2), (2, 4)}
    assert moments.blocks == (-1, 0, 2, 4)
    assert moments.inner.shape == (4, 4)


def test_no_hook_is_left_behind(tiny_encoder, tiny_images):
    collect_moments(tiny_encoder, tiny_images.train[:4], folds=0)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in tiny_encoder.blocks)


def test_no_images_are_refused(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="no images"):
        collect_moments(tiny_encoder, tiny_images.train[:0], folds=0)


def test_unknown_tokens_are_refused_with_the_nearest(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="Unknown tokens 'patches': did you mean 'patch'"):
        collect_moments(tiny_encoder, tiny_images.train[:4], tokens="patches")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_block_that_gives_nan_or_infinity_is_named(tiny_encoder, tiny_images, value):
    with torch.no_grad():
        next(tiny_encoder.blocks[3].parameters()).fill_(value)
    with pytest.raises(InputError, match=r"^The output of block 3 holds NaN or infinity"):
        collect_moments(tiny_encoder, tiny_images.train[:4], folds=0)


def test_nan_before_the_blocks_is_named(tiny_encoder, tiny_images):
    with torch.no_grad():
        tiny_encoder.model.embeddings.cls_token.fill_(torch.nan)
    with pytest.raises(InputError, match=r"^The input of block 0 holds NaN or infinity"):
        collect_moments(tiny_encoder, tiny_images.train[:4], folds=0)


def test_folds_part_images_and_kinds_of_tokens(tiny_encoder, tiny_images):
    images = tiny_images.train[:23]
    folds = collect_moments(tiny_encoder, images, folds=5)
    assert list(folds.parts) == ["special", "patch"]
    assert [fold.count for fold in folds.kind("special").folds] == [5, 5, 5, 4, 4]
    assert [fold.count for fold in folds.kind("patch").folds] == [80, 80, 80, 64, 64]
    assert_same(folds.whole, collect_moments(tiny_encoder, images, folds=0), rtol=1e-5)
    for k, fold in enumerate(folds.folds):
        assert_same(fold, collect_moments(tiny_encoder, images[k::5], folds=0), rtol=1e-5)


def test_restricted_moments_are_those_of_the_blocks_alone():
    h = rows(20)
    restricted = Moments.of(h, PAIRS).restrict((-1, 1))
    assert_same(restricted, Moments.of({-1: h[-1], 1: h[1]}, [(-1, -1), (-1, 1), (1, 1)]))
    with pytest.raises(InputError, match=r"do not hold the blocks \(1, 2\)"):
        restricted.restrict((1, 2))


@pytest.mark.parametrize("folds", [-1, 1, 5])
def test_folds_that_would_be_empty_are_refused(tiny_encoder, tiny_images, folds):
    with pytest.raises(InputError, match=f"4 images cannot be parted into {folds} folds"):
        collect_moments(tiny_encoder, tiny_images.train[:4], folds=folds)


def test_moments_survive_their_tensors(tmp_path):
    from safetensors.torch import load_file, save_file

    moments = Moments.of(rows(7), PAIRS)
    save_file({name: tensor.contiguous() for name, tensor in moments.tensors().items()}, tmp_path / "moments")
    again = Moments.from_tensors(load_file(tmp_path / "moments"))
    assert (again.blocks, again.count, list(again.products)) == (moments.blocks, moments.count, PAIRS)
    for name in SUMS:
        assert torch.equal(getattr(again, name), getattr(moments, name))
    assert all(torch.equal(again.products[pair], moments.products[pair]) for pair in PAIRS)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_pairs_at_once_are_the_products_one_by_one(count):
    draw = torch.Generator().manual_seed(count)
    hidden = {block: torch.randn(6, 5, generator=draw, dtype=torch.float64) for block in range(count)}
    pairs = [(i, j) for i in hidden for j in hidden if i <= j]
    found = Moments.of(hidden, pairs).products
    assert list(found) == pairs
    for i, j in pairs:
        torch.testing.assert_close(found[i, j], hidden[i].mT @ hidden[j])


def test_by_default_moments_come_in_five_folds_and_selected_tokens_do_not(tiny_encoder, tiny_images):
    images = tiny_images.train[:10]
    assert len(collect_moments(tiny_encoder, images, [(0, 0)]).folds) == 5
    assert isinstance(collect_moments(tiny_encoder, images, [(0, 0)], tokens="cls"), Moments)
    with pytest.raises(InputError, match="Only all tokens are collected in folds: leave out folds=2 with tokens='cls'"):
        collect_moments(tiny_encoder, images, [(0, 0)], folds=2, tokens="cls")


def test_images_that_cannot_be_sliced_are_collected_without_folds_alone(tiny_encoder, tiny_images):
    class Stream:
        def batches(self, size):
            return tiny_images.train[:4].batches(size)

    assert collect_moments(tiny_encoder, Stream(), [(0, 0)], folds=0).count == 4 * 17
    with pytest.raises(InputError, match="A Stream cannot be split into folds: take folds=0"):
        collect_moments(tiny_encoder, Stream(), [(0, 0)])


def test_moments_of_hidden_states_at_once_are_those_collected(tiny_encoder, tiny_images):
    images, pairs = tiny_images.train[:10], [(0, 0), (0, 1)]
    hidden = collect_activations(tiny_encoder, images, [0, 1], tokens="all")
    ours = KFoldMoments.of({k: h.unflatten(0, (10, 17)) for k, h in hidden.items()}, pairs, special_tokens=1)
    theirs = collect_moments(tiny_encoder, images, pairs)
    for kind in ("special", "patch"):
        for a, b in zip(ours.parts[kind], theirs.parts[kind], strict=True):
            assert_same(a, b, rtol=1e-5)
    for a, b in zip(ours.summaries, theirs.summaries, strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=1e-5, atol=1e-5)


def test_the_whole_of_folds_is_added_up_once(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train[:10], [(0, 0)])
    assert moments.whole is moments.whole
    assert moments.whole.whole is moments.whole


def test_angles_lengths_and_weighted_sums_are_what_they_say():
    h = rows(40)
    moments = Moments.of(h, PAIRS)
    for i, x in enumerate(h.values()):
        for j, y in enumerate(h.values()):
            angles = cosine_similarity(x, y).clamp(-1, 1).acos().sum() * (i != j)
            lengths = x.square().sum(1) * y.square().sum(1)
            torch.testing.assert_close(moments.angles[i, j], angles)
            torch.testing.assert_close(moments.lengths[i, j], lengths.sum())
            torch.testing.assert_close(moments.weighted[i, j], (x.square().sum(1)[:, None] * y).sum(0))


def test_a_row_of_zeros_is_at_right_angles_to_all_others():
    h = rows(3)
    h[0][1] = 0
    alone = Moments.of({block: x[1:2] for block, x in h.items()}, PAIRS)
    assert alone.cosines[1].tolist() == [0, 0, 0]
    assert alone.angles[1].tolist() == pytest.approx([math.pi / 2, 0, math.pi / 2])


def test_rows_along_one_line_are_at_an_angle_of_0_or_of_pi():
    """Their cosines may round to a little more than 1, of which there is no angle."""
    x = rows(200)[0]
    moments = Moments.of({0: x, 1: 0.3 * x, 2: -0.7 * x}, [(0, 1)])
    expected = 200 * math.pi * torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]).double()
    torch.testing.assert_close(moments.angles, expected, rtol=0, atol=200 * 1e-7)  # the root of a cosine's rounding


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ([(5, 3), (4, 3)], "[(4, 3), (5, 3)]"),
        ([(4, 3), (4, 2), (4, 3)], "[(4, 2), (4, 3)]"),
        ([(0, 3), (0, 3)], "[(0, 3)]"),
        ([(4,), (4,)], "[(4,)]"),
        ([(2, 4, 3), (2, 4, 3)], "[(2, 4, 3)]"),
        ([], "[]"),
    ],
)
def test_rows_of_several_shapes_or_none_are_refused_and_the_shapes_named(shapes, named):
    with pytest.raises(InputError, match=re.escape(f"Every block has rows of one shape (rows, width), not {named}.")):
        Moments.of({block: torch.ones(shape) for block, shape in enumerate(shapes)}, [(0, 0)])


def test_a_pair_of_a_block_without_rows_is_refused():
    with pytest.raises(InputError, match=r"no rows of block 5, which the pairs name"):
        Moments.of(rows(4), [(0, 1), (0, 7), (5, 7)])


def test_moments_of_all_their_blocks_are_the_same_in_any_order():
    h = rows(20)
    moments = Moments.of(h, PAIRS)
    assert_same(moments.restrict(moments.blocks), moments)
    turned = moments.restrict((1, -1, 0))
    assert turned.blocks == (1, -1, 0)
    torch.testing.assert_close(turned.sums, torch.stack([h[1].sum(0), h[-1].sum(0), h[0].sum(0)]))
    torch.testing.assert_close(turned.inner[0, 1], (h[1] * h[-1]).sum())


def test_the_spectrum_is_that_of_the_product_and_computed_once():
    moments = Moments.of(rows(20), PAIRS)
    values, vectors = moments.spectrum(0)
    torch.testing.assert_close(vectors * values @ vectors.mT, moments.product(0, 0))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(5).double())
    assert (values.diff() > 0).all()
    assert moments.spectrum(0)[0] is values
    assert not torch.equal(moments.spectrum(1)[0], values)


def test_a_product_keeps_no_memory_but_its_own():
    for pairs in ([(0, 1)], PAIRS):
        products = Moments.of(rows(20), pairs).products
        assert {product.untyped_storage().nbytes() for product in products.values()} == {5 * 5 * 8}


def test_hidden_states_come_in_five_folds_without_special_tokens_unless_these_are_named():
    draw = torch.Generator().manual_seed(0)
    hidden = {block: torch.randn(10, 3, 4, generator=draw).double() for block in (0, 2)}
    folds = KFoldMoments.of(hidden, [(0, 2)])
    assert list(folds.parts) == ["patch"]
    assert folds.special_tokens == 0
    assert folds.blocks == (0, 2)
    assert [fold.count for fold in folds.folds] == [2 * 3] * 5
    for k, fold in enumerate(folds.folds):
        assert_same(fold, Moments.of({block: h[k::5].flatten(0, 1) for block, h in hidden.items()}, [(0, 2)]))
    assert [fold[2].shape for fold in folds.summaries] == [(2, 2 * 4)] * 5


def test_a_kind_of_token_and_the_blocks_that_are_left_know_their_special_tokens():
    hidden = {block: torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(block)) for block in (0, 2)}
    folds = KFoldMoments.of(hidden, [(0, 0), (0, 2)], special_tokens=2, folds=2)
    assert folds.kind("special").special_tokens == folds.restrict([2]).special_tokens == 2
    assert folds.restrict([2]).blocks == (2,)
    assert list(folds.kind("patch").parts) == ["patch"]


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_folds_may_be_two_and_as_many_as_images(folds):
    parts = split_folds(list("abcd"), folds)
    assert sorted("".join(map("".join, parts))) == list("abcd")
    assert [image for part in parts for image in part[:1]] == list("abcd")[:folds]


def test_few_pairs_are_the_products_one_by_one_and_blocks_are_in_order():
    h = rows(20)
    moments = Moments.of({block: h[block] for block in (1, -1, 0)}, [(1, 1), (-1, 1)])
    assert list(moments.products) == [(1, 1), (-1, 1)]
    torch.testing.assert_close(moments.product(1, 1), h[1].mT @ h[1])
    torch.testing.assert_close(moments.product(-1, 1), h[-1].mT @ h[1])
    torch.testing.assert_close(moments.product(1, -1), h[1].mT @ h[-1])
    assert moments.blocks == (-1, 0, 1)
    torch.testing.assert_close(moments.sums, torch.stack([h[block].sum(0) for block in (-1, 0, 1)]))


def test_moments_are_printed_in_one_line(tiny_encoder, tiny_images):
    moments, blocks = collect_moments(tiny_encoder, tiny_images.train[:10]), len(tiny_encoder.blocks) + 1
    per_image = moments.whole.count // 10
    assert repr(moments) == (
        f"KFoldMoments({blocks} blocks, width {tiny_encoder.width}, 5 folds, 10 special and {10 * per_image - 10:,} "
        "patch rows)"
    )
    assert repr(moments.whole) == f"Moments({blocks} blocks, width {tiny_encoder.width}, {10 * per_image:,} rows)"
