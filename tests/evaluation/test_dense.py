"""Patches beyond classification: errors and read-outs against direct formulas, for every family."""

import numpy as np
import pytest
import torch
from sklearn import linear_model
from tiny import FAMILIES, PATCHES

from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.evaluation.dense import (
    evaluate_dense,
    final_patches,
    fit_pixel_probe,
    join_patches,
    pixel_patches,
    reconstruct_pixels,
)
from toastlib.models.encoder import Encoder
from toastlib.plan import ORIGINAL
from toastlib.statistics.collect import collect_moments

PLANS = ["0->2", "1->2 3->4"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_final_patches_are_the_models_own(tiny_model, pixel_values, family):
    encoder = Encoder(tiny_model(family), features="mean")
    states = encoder.model(pixel_values).last_hidden_state
    patches = final_patches(encoder, pixel_values)
    assert torch.equal(patches, states[:, -PATCHES:])
    shared = encoder.embed(pixel_values)
    hidden = shared.hidden
    for block in range(5):
        hidden = encoder.run_block(block, hidden, shared)
    torch.testing.assert_close(final_patches(encoder, pixel_values, hidden), patches)


def test_pixels_of_a_patch_are_those_under_it():
    pixels = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    patches = pixel_patches(pixels, 6)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4].reshape(3, 4, 4), pixels[1, :, 4:8, 4:8])  # the second of the second row
    assert torch.equal(join_patches(patches, 8, 12), pixels)
    with pytest.raises(InputError, match="5 patches do not fill 8 x 12 pixels"):
        pixel_patches(pixels, 5)


def test_a_margin_without_patches_is_left_out():
    pixels = torch.ones(1, 3, 9, 9)
    joined = join_patches(pixel_patches(pixels, 4), 9, 9)
    assert torch.equal(joined[:, :, :8, :8], pixels[:, :, :8, :8])
    assert not joined[:, :, 8].any()


@torch.inference_mode()
def test_the_read_out_is_a_ridge_on_patches_and_their_pixels(tiny_encoder, tiny_images):
    images = tiny_images.train[:30]
    fit = fit_pixel_probe(tiny_encoder, images, batch_size=7)
    inputs, _ = next(images.batches(30))
    x = final_patches(tiny_encoder, inputs).double().flatten(0, 1)
    y = pixel_patches(inputs, PATCHES).double().flatten(0, 1)
    alpha = fit.alpha * (x - x.mean(0)).square().sum().item() / x.shape[1]
    oracle = linear_model.Ridge(alpha=alpha, solver="cholesky").fit(x, y)
    # Tokens of float32, in batches of another size.
    torch.testing.assert_close(fit.weight, torch.from_numpy(oracle.coef_.T), rtol=1e-3, atol=1e-4)
    read = reconstruct_pixels(tiny_encoder, fit, inputs)
    expected = torch.from_numpy(oracle.predict(x)).unflatten(0, (30, PATCHES))
    torch.testing.assert_close(pixel_patches(read, PATCHES).double(), expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_errors_are_those_of_the_smaller_encoders(tiny_encoder, tiny_images):
    folds = collect_moments(tiny_encoder, tiny_images.train, folds=5)
    read_out = fit_pixel_probe(tiny_encoder, tiny_images.train)
    settings = {"calibration": folds, "pixel_probe": read_out, "batch_size": 16}
    table = evaluate_dense(tiny_encoder, tiny_images, PLANS, translators=["identity", "context"], **settings)
    assert list(table["plan"]) == [ORIGINAL, *np.repeat(PLANS, 2)]
    inputs, _ = next(tiny_images.test.batches(60))
    original, pixels = final_patches(tiny_encoder, inputs).double(), pixel_patches(inputs, PATCHES).double()
    varies = (original - original.mean((0, 1))).square().sum()
    for row in table.itertuples():
        smaller = approximate(tiny_encoder, row.plan, folds, translator=row.translator) if row.Index else tiny_encoder
        patches = final_patches(smaller, inputs).double()
        assert row.error == pytest.approx(100 * ((patches - original).square().sum() / varies).item(), rel=1e-4)
        left = (patches @ read_out.weight + read_out.bias - pixels).square().sum()
        total = (pixels - pixels.mean((0, 1))).square().sum()
        assert row.explained == pytest.approx(100 * (1 - left / total).item(), rel=1e-4, abs=1e-4)
        assert row.lost == pytest.approx(table["explained"][0] - row.explained, abs=1e-9)
        assert row.error_low <= row.error <= row.error_high
        assert row.lost_low <= row.lost <= row.lost_high
    assert table["error"][0] == table["lost"][0] == 0
    assert table["error"][1:].min() > 0.01


def test_maps_and_read_out_are_fitted_on_training_images(tiny_encoder, tiny_images):
    table = evaluate_dense(tiny_encoder, tiny_images, "0->2", translators=["ridge"], calibration=40)
    again = evaluate_dense(
        tiny_encoder,
        tiny_images,
        "0->2",
        translators=["ridge"],
        calibration=collect_moments(tiny_encoder, tiny_images.train.sample(40, 0), [(0, 0), (0, 2)], folds=5),
        pixel_probe=fit_pixel_probe(tiny_encoder, tiny_images.train),
    )
    assert table.equals(again)


@pytest.mark.parametrize(
    ("plan", "translator", "says"),
    [
        ("1->7", "linear", "Span 1->7 leaves the model"),
        ("1->2", "linear+align", "^Feature alignment maps one vector of an image, not its patches: name the map alone"),
    ],
)
def test_what_cannot_be_judged_is_refused(tiny_encoder, tiny_images, plan, translator, says):
    with pytest.raises(InputError, match=says):
        evaluate_dense(tiny_encoder, tiny_images, plan, translators=[translator])
    with pytest.raises(InputError, match="3 images cannot be parted into 5 folds"):
        fit_pixel_probe(tiny_encoder, tiny_images.train[:3])


def test_maps_of_several_calibration_sets_have_a_row_for_each(tiny_encoder, tiny_images):
    sets = {"first": tiny_images.train[:40], "last": tiny_images.train[50:]}
    options = {"translators": ["identity", "linear"], "pixel_probe": fit_pixel_probe(tiny_encoder, tiny_images.train)}
    both = evaluate_dense(tiny_encoder, tiny_images, "0->2", calibration=sets, **options)
    assert both[["translator", "calibration", "plan"]].to_numpy().tolist() == [
        ["original", "", "original"],
        ["identity", "", "0->2"],
        ["linear", "first", "0->2"],
        ["linear", "last", "0->2"],
    ]
    for name, images in sets.items():
        alone = evaluate_dense(tiny_encoder, tiny_images, "0->2", calibration=images, **options)
        ours = both[both["calibration"].isin(["", name])].drop(columns="calibration").reset_index(drop=True)
        assert alone.equals(ours)
