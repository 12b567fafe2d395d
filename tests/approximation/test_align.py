"""Feature alignment: a ridge on features, behind blocks that run once for the variants with it and without."""

from collections import Counter

import pytest
import torch

from toastlib.approximation.align import align_features, fit_alignment
from toastlib.approximation.engine import Variant, collect_features, forward_plans, variants_of
from toastlib.approximation.prepare import fit_alignments, fit_maps, name_translators
from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.plan import Plan, Span
from toastlib.statistics.collect import collect_moments
from toastlib.translators.linear import Ridge

NAMES = ["identity", "identity+align", "linear", "linear+align"]
HEAD = HeadConfig("frozen", seeds=[0], learning_rate=1e-2, min_steps=0)
QUICK = {"calibration": 40, "head": HEAD}


@pytest.fixture
def prepared(tiny_encoder, tiny_images):
    images = tiny_images.train[:40]
    variants = variants_of([Plan.parse("1->3")], NAMES)
    maps = fit_maps(tiny_encoder, variants, name_translators(NAMES), collect_moments(tiny_encoder, images))
    return images, variants, maps


def features_of(encoder, images):
    return torch.cat([encoder(pixel_values) for pixel_values, _ in images.batches()])


def test_features_that_were_moved_come_back():
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(300, 8, generator=draw)
    moved = target @ (torch.eye(8) + 0.3 * torch.randn(8, 8, generator=draw)) + 2
    torch.testing.assert_close(fit_alignment(moved, target).module()(moved), target, rtol=0, atol=1e-3)


def test_features_that_say_nothing_of_the_target_are_left_alone_but_for_the_mean():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(30, 8, generator=draw)
    fit = fit_alignment(features, features + 1 + 0.1 * torch.randn(30, 8, generator=draw))
    assert fit.alpha_ > 1
    assert (fit.bias_ - 1).abs().max() < 0.2


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="4 calibration images are too few to align features on 5 folds"):
        fit_alignment(torch.randn(4, 8), torch.randn(4, 8))


def test_a_name_and_the_same_name_aligned_have_one_source():
    form = Ridge(alpha=1.0)
    for source in ("linear", form, {Span(1, 3): torch.nn.Identity()}):
        assert name_translators({"x": source, "x+align": source}) == {"x": source, "x+align": source}
    for other in ("affine", Ridge(alpha=1.0)):
        with pytest.raises(InputError, match=r"^'x\+align' aligns .* the maps of 'x': give both names the same source"):
            name_translators({"x": form, "x+align": other})


def test_aligned_variants_are_aligned_by_hand(tiny_encoder, tiny_images, prepared):
    images, variants, maps = prepared
    maps |= fit_alignments(tiny_encoder, images, variants, maps)
    features = dict(zip(variants, collect_features(tiny_encoder, tiny_images.test, variants, maps), strict=True))
    for name in ("identity", "linear"):
        small = approximate(tiny_encoder, "1->3", collect_moments(tiny_encoder, images), translator=name)
        plain, aligned = (features[Variant(Plan.parse("1->3"), kind)] for kind in (name, f"{name}+align"))
        torch.testing.assert_close(plain, features_of(small, tiny_images.test), rtol=1e-4, atol=1e-5)
        by_hand = align_features(small, tiny_encoder, images)
        assert isinstance(by_hand, Ridge)
        torch.testing.assert_close(aligned, by_hand.module()(plain), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(aligned, plain, atol=1e-2)


def test_no_block_runs_twice_for_an_aligned_variant(tiny_encoder, pixel_values, prepared):
    _, variants, maps = prepared
    calls = Counter()
    for k, block in enumerate(tiny_encoder.blocks):
        block.register_forward_hook(lambda m, args, out, k=k: calls.update([k]))
    forward_plans(tiny_encoder, pixel_values, [variant for variant in variants if not variant.aligned], maps)
    plain = calls.copy()
    calls.clear()
    forward_plans(tiny_encoder, pixel_values, variants, maps)
    assert calls == plain


def test_labels_play_no_part(tiny_encoder, tiny_images, prepared):
    images, variants, maps = prepared
    bare = type(images)(images.pixels, None, images.class_names, images.preprocessing)
    ours, theirs = (fit_alignments(tiny_encoder, part, variants, maps) for part in (images, bare))
    assert ours.keys() == {variant for variant in variants if variant.aligned}
    assert all(torch.equal(ours[variant].weight, theirs[variant].weight) for variant in ours)


def test_an_evaluation_has_a_row_for_it_at_the_same_cost(tiny_encoder, tiny_images):
    table = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=NAMES, **QUICK).table.set_index("translator")
    assert list(table.index) == ["original", *NAMES]
    for name in ("identity", "linear"):
        assert table.loc[f"{name}+align", "parameters"] == table.loc[name, "parameters"]
        assert table.loc[f"{name}+align", "gflops"] == table.loc[name, "gflops"]


def test_an_evaluation_predicts_with_the_frozen_head_on_aligned_features(tiny_encoder, tiny_images):
    ours = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=["identity+align"], **QUICK)
    small = approximate(
        tiny_encoder, "1->3", collect_moments(tiny_encoder, tiny_images.train[:5]), translator="identity"
    )
    fit = align_features(small, tiny_encoder, tiny_images.train.sample(40, 0))
    probe = Probe(3, HEAD)
    probe.fit(features_of(tiny_encoder, tiny_images.train)[None], tiny_images.train.labels)
    expected = probe.absorb(fit).predict(features_of(small, tiny_images.test)[None])[0, 0].numpy()
    assert (ours.predictions[1] == expected).mean() > 0.95  # but for ties that float32 rounding decides


def test_what_is_kept_on_disk_is_not_aligned_twice(tiny_encoder, tiny_images, monkeypatch, tmp_path):
    monkeypatch.setenv("TOAST_CACHE", str(tmp_path))
    ours = [
        evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=names, **QUICK)
        for names in (NAMES, NAMES, NAMES[:2])
    ]
    assert (ours[0].predictions == ours[1].predictions).all()
    assert (ours[0].predictions[:3] == ours[2].predictions).all()
    # Original, identity and linear, each on the calibration and test images; the original on the training images too;
    # and the heads, which are those of the original; and the moments.
    assert len(list(tmp_path.glob("*.safetensors"))) == 7 + 1 + 1


def test_trained_maps_folds_and_alignment_go_together(tiny_encoder, tiny_images):
    names = ["mlp", "linear", "separate+align"]
    table = evaluate_plans(tiny_encoder, tiny_images, "1->3", translators=names, **QUICK).table
    assert table["translator"].tolist() == ["original", *names]


def test_approximate_says_where_alignment_belongs(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train[:5])
    with pytest.raises(
        InputError, match=r"approximate with 'linear' and give the result to toastlib\.approximation\.align"
    ):
        approximate(tiny_encoder, "1->3", moments, translator="linear+align")
