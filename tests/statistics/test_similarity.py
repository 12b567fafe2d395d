"""MSE, cosine, CKA, RSA, Procrustes: against their formulas on activations, and by what must not change them."""

import functools
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity, mse_loss

from toastlib import plots
from toastlib.approximation.replace import approximate
from toastlib.errors import InputError
from toastlib.models.hooks import collect_activations
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments, all_pairs
from toastlib.statistics.similarity import (
    METRICS,
    METRICS_BETWEEN,
    cka,
    cka_from_samples,
    debiased_cka,
    procrustes,
    rsa,
    similarity,
    similarity_between,
)

EXACT = {"rtol": 0, "atol": 1e-8}


def rows(count: int = 60, width: int = 8, blocks: int = 3) -> dict[int, torch.Tensor]:
    """Block outputs that resemble each other, off centre."""
    draw = torch.Generator().manual_seed(0)
    steps = torch.randn(blocks + 1, count, width, generator=draw, dtype=torch.float64)
    return {k - 1: 3 + steps[: k + 1].sum(0) for k in range(blocks + 1)}


def moments_of(h: dict[int, torch.Tensor]) -> Moments:
    return Moments.of(h, all_pairs(max(h) + 1))


@pytest.mark.parametrize("metric", METRICS)
def test_every_matrix_is_symmetric_over_all_pairs(metric):
    matrix = METRICS[metric](moments_of(rows()))
    assert matrix.shape == (4, 4)
    assert torch.equal(matrix, matrix.mT)


@pytest.mark.parametrize(
    ("metric", "value"), [("mse", 0), ("cosine", 1), ("angular", 0), ("cka", 1), ("debiased-cka", 1)]
)
def test_a_block_is_like_itself(metric, value):
    diagonal = METRICS[metric](moments_of(rows())).diagonal()
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, float(value)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", ["all", "patch", "cls", "mean"])
def test_matrices_from_moments_are_those_of_the_stored_activations(tiny_encoder, tiny_images, tokens):
    images = tiny_images.train[:24]
    stored = collect_activations(tiny_encoder, images, tokens=tokens)
    moments = collect_moments(tiny_encoder, images, folds=0, tokens=tokens)
    direct = {
        "mse": lambda x, y: mse_loss(x, y).item(),
        "cosine": lambda x, y: cosine_similarity(x, y).mean().item(),
        "angular": lambda x, y: (cosine_similarity(x, y).clamp(-1, 1).acos() / math.pi).mean().item(),
        "cka": cka_from_samples,
        "debiased-cka": functools.partial(cka_from_samples, debiased=True),
    }
    for metric, formula in direct.items():
        expected = [[formula(x.double(), y.double()) for y in stored.values()] for x in stored.values()]
        matrix = METRICS[metric](moments)
        expected = torch.tensor(expected, dtype=torch.float64)
        # An angle is known to the root of the rounding of its cosine where the cosine is near 1.
        exact = {"rtol": 0, "atol": 1e-7} if metric == "angular" else EXACT
        torch.testing.assert_close(matrix, expected, **exact, equal_nan=True)


def test_cka_of_feature_and_sample_space_agree_where_rows_are_fewer_than_the_width():
    h = rows(count=6, width=20, blocks=1)
    assert cka(moments_of(h))[0, 1].item() == pytest.approx(cka_from_samples(h[-1], h[0]), abs=1e-8)


def test_cka_does_not_see_rotations_scales_and_shifts():
    h = rows()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()).Q
    moved = h | {0: 5 * h[0] @ rotation + 2}
    torch.testing.assert_close(cka(moments_of(moved)), cka(moments_of(h)), **EXACT)


def test_cka_sees_a_map_that_is_no_rotation():
    h = rows()
    stretched = h | {0: h[0] * torch.tensor([10.0, 1, 1, 1, 1, 1, 1, 1])}
    assert (cka(moments_of(stretched)) - cka(moments_of(h)))[0, 1].abs() > 0.01


def test_cka_of_samples_takes_two_widths():
    h = rows()
    assert cka_from_samples(h[0], torch.cat([h[0], h[0]], dim=1)) == pytest.approx(1)


def test_cka_of_rows_that_are_all_alike_is_not_a_number():
    h = rows() | {-1: torch.randn(8, generator=torch.Generator().manual_seed(2)).double().expand(60, 8)}
    for matrix in (cka(moments_of(h)), debiased_cka(moments_of(h))):
        assert matrix[0].isnan().all()
        assert not matrix[1:, 1:].isnan().any()
    assert math.isnan(cka_from_samples(h[-1], h[0]))


def test_the_frame_is_tidy_and_names_blocks():
    moments = moments_of(rows())
    frame = similarity(moments, "cosine")
    assert list(frame.columns) == ["first", "second", "metric", "value"]
    assert len(frame) == 16
    assert set(frame["metric"]) == {"cosine"}
    value = frame[(frame["first"] == -1) & (frame["second"] == 1)]["value"].item()
    assert value == METRICS["cosine"](moments)[0, 2].item()


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="Unknown metric 'cca': did you mean 'cka'"):
        similarity(moments_of(rows()), "cca")


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (lambda moments: 0.5, r"Metric 'mine' returns a float, where a \(4, 4\) tensor is needed\."),
        (lambda moments: torch.ones(4), r"Metric 'mine' returns shape \(4,\), where a \(4, 4\) tensor is needed\."),
        (lambda moments: {}["x"], "Metric 'mine' raises KeyError: 'x'"),
    ],
)
def test_a_metric_of_ones_own_that_gives_no_matrix_is_named(monkeypatch, own, says):
    monkeypatch.setitem(METRICS, "mine", own)
    with pytest.raises(InputError, match=f"^{says}$"):
        similarity(moments_of(rows()), "mine")


def test_a_metric_between_encoders_that_fails_is_named(monkeypatch):
    monkeypatch.setitem(METRICS_BETWEEN, "mine", lambda first, second: {}["x"])
    with pytest.raises(InputError, match=r"^Metric 'mine' raises KeyError: 'x'$"):
        similarity_between({0: rows()[0]}, {0: rows()[0]}, "mine")


def test_cka_without_all_pairs_says_which_is_missing():
    with pytest.raises(InputError, match=r"do not hold the blocks \(-1, 0\)"):
        cka(Moments.of(rows(), [(block, block) for block in range(-1, 3)]))


@pytest.mark.parametrize("metric", METRICS)
def test_moments_in_folds_give_the_similarities_of_the_whole(tiny_encoder, tiny_images, metric):
    moments = collect_moments(tiny_encoder, tiny_images.train[:10])
    assert similarity(moments, metric).equals(similarity(moments.whole, metric))


def unbiased_hsic(x, y):
    """Song et al. (2012), equation 4, as it is printed."""
    k, l, n = x @ x.mT, y @ y.mT, len(x)
    k, l = k - k.diagonal().diag(), l - l.diagonal().diag()
    means = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)
    return ((k @ l).trace() + means) / (n * (n - 3))


def test_debiased_cka_is_made_of_the_unbiased_hsic():
    h = rows(count=7, width=20)
    x, y = h[-1], h[2]
    expected = unbiased_hsic(x, y) / (unbiased_hsic(x, x) * unbiased_hsic(y, y)).sqrt()
    assert cka_from_samples(x, y, debiased=True) == pytest.approx(expected.item(), rel=1e-9)
    assert cka_from_samples(x, x, debiased=True) == pytest.approx(1)
    x, y = (rows(count=2000)[block] for block in (0, 1))
    assert cka_from_samples(x, y, debiased=True) == pytest.approx(cka_from_samples(x, y), abs=0.01)


def test_debiased_cka_of_few_independent_rows_is_near_zero_where_cka_is_near_one():
    draw = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 12, 100, generator=draw) for _ in range(50)]
    mean = {debiased: sum(cka_from_samples(x, y, debiased) for x, y in pairs) / 50 for debiased in (False, True)}
    assert mean[False] > 0.85
    assert abs(mean[True]) < 0.05


def test_debiased_cka_refuses_three_rows_and_rows_that_are_all_alike_are_not_a_number():
    with pytest.raises(InputError, match="Debiased CKA needs at least 4 rows; there are 3"):
        cka_from_samples(torch.randn(3, 5), torch.randn(3, 5), debiased=True)
    assert math.isnan(cka_from_samples(torch.ones(6, 5), torch.randn(6, 5), debiased=True))
    with pytest.raises(InputError, match="Debiased CKA needs at least 4 rows; there are 3"):
        similarity(moments_of(rows(count=3)), "debiased-cka")


@pytest.mark.parametrize("count", [20, 100, 500, 3000])
def test_debiased_cka_of_moments_is_near_zero_for_independent_rows_and_cka_warns_that_it_is_not(count):
    draw = torch.Generator().manual_seed(0)
    h = {block: torch.randn(count, 384, generator=draw) + 1 for block in (0, 1)}
    moments = Moments.of(h, [(0, 0), (0, 1), (1, 1)])
    value = similarity(moments, "debiased-cka")["value"][1]
    assert abs(value) < 0.05
    assert value == pytest.approx(cka_from_samples(h[0], h[1], debiased=True), abs=1e-8)
    with pytest.warns(UserWarning, match=f"CKA is up to 0...? too large: {count} rows are few for a width of 384"):
        assert similarity(moments, "cka")["value"][1] > 0.1


def test_enough_rows_are_not_warned_about(recwarn):
    similarity(moments_of(rows(count=500)), "cka")
    assert not recwarn


def draw(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PAIR = (draw(30, 8, 0), draw(30, 8, 0) @ draw(8, 5, 1) + 0.3 * draw(30, 5, 2) + 4)
"""Rows of the same images, of two widths."""
ROTATION = torch.linalg.qr(draw(8, 8, 3)).Q


def test_the_procrustes_distance_is_what_scipy_s_best_rotation_leaves():
    x, y = ((rows - rows.mean(0)).numpy() for rows in PAIR)
    x, y = x / np.linalg.norm(x), np.pad(y / np.linalg.norm(y), ((0, 0), (0, 3)))
    rotation, _ = orthogonal_procrustes(x, y)
    assert procrustes(*PAIR) == pytest.approx(np.linalg.norm(x @ rotation - y) ** 2, abs=1e-12)
    _, _, disparity = scipy_procrustes(x, y)  # that after the best scale too: 1 - s^2, where ours is 2 - 2 s
    assert procrustes(*PAIR) == pytest.approx(2 - 2 * math.sqrt(1 - disparity), abs=1e-12)


def test_rsa_is_spearman_s_correlation_of_distances_as_scipy_has_it():
    x, y = (rows.numpy() for rows in PAIR)
    assert rsa(*PAIR) == pytest.approx(spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic, abs=1e-12)
    tied = [rows.round() for rows in PAIR]  # equal rows, and equal distances
    tied = [torch.cat([rows, rows[:5]]) for rows in tied]
    above = [(1 - np.corrcoef(rows.numpy()))[np.triu_indices(35, 1)].round(12) for rows in tied]
    assert rsa(*tied) == pytest.approx(spearmanr(*above).statistic, abs=1e-3)


@pytest.mark.parametrize("metric", METRICS_BETWEEN)
def test_what_changes_no_metric_between_two_sets(metric):
    compare, (x, y) = METRICS_BETWEEN[metric], PAIR
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    same = {"swapped": (y, x), "scaled": (7 * x, y), "columns": (x.flip(1), y), "rows": (x[order], y[order])}
    if metric == "rsa":  # each row's mean and spread may differ
        same["rows' own means and spreads"] = ((1 + x.norm(dim=1, keepdim=True)) * x + x[:, :1], y)
    else:
        same |= {"rotated": (x @ ROTATION, y), "shifted": (x + draw(1, 8, 5), y)}
        same["widened"] = (torch.cat([x, torch.zeros(30, 4)], 1), y)
    for name, pair in same.items():
        assert compare(*pair) == pytest.approx(compare(x, y), abs=1e-9), name
    assert compare(x, y[order]) != pytest.approx(compare(x, y), abs=0.05)
    assert compare(x * torch.linspace(0.1, 3, 8), y) != pytest.approx(compare(x, y), abs=1e-3)


@pytest.mark.parametrize(("metric", "value"), [("cka", 1), ("debiased-cka", 1), ("rsa", 1), ("procrustes", 0)])
def test_the_same_rows_are_alike_and_rows_that_are_all_alike_are_not_a_number(metric, value):
    compare = METRICS_BETWEEN[metric]
    assert compare(PAIR[0], PAIR[0]) == pytest.approx(value, abs=1e-9)
    assert math.isnan(compare(PAIR[0], torch.full((30, 5), 0.1)))
    assert math.isnan(compare(draw(1, 8, 0).expand(30, 8), PAIR[1]))


def test_a_row_without_variance_has_no_rsa():
    assert math.isnan(rsa(PAIR[0], torch.cat([PAIR[1][:-1], torch.zeros(1, 5)])))


def test_independent_rows_are_unlike():
    first, second = draw(400, 20, 7), draw(400, 30, 8)
    assert abs(METRICS_BETWEEN["debiased-cka"](first, second)) < 0.02
    assert METRICS_BETWEEN["cka"](first, second) > 0.04
    assert abs(rsa(first, second)) < 0.02
    assert 1 < procrustes(first, second) < 2
    first[200:], second[:200] = 0, 0  # nothing in common: |X'Y| is what centring leaves
    assert procrustes(first, second) == pytest.approx(2, abs=0.05)


def test_blocks_of_two_encoders_are_compared_pair_by_pair(tiny_encoder, tiny_images):
    images, blocks = tiny_images.train[:20], len(tiny_encoder.blocks)
    moments = collect_moments(tiny_encoder, images, folds=0)
    smaller = approximate(tiny_encoder, "0->2", moments, translator="linear")
    rows = [collect_activations(encoder, images, tokens="cls") for encoder in (tiny_encoder, smaller)]
    frame = similarity_between(*rows)
    assert list(frame.columns) == ["first", "second", "metric", "value"]
    assert len(frame) == (1 + blocks) * blocks
    value = frame.set_index(["first", "second"])["value"]
    assert value[1, 2] == cka_from_samples(rows[0][1], rows[1][2], debiased=True)
    assert value[0, 0] == pytest.approx(1)
    assert value[:, -1].isna().all()
    ax = plots.similarity(frame)
    assert ax.collections[0].get_array().shape == (1 + blocks, blocks)
    both = [[text.get_text() for text in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)]
    assert both == [[str(block) for block in side] for side in rows]
    plt.close("all")


@pytest.mark.parametrize(
    ("first", "second", "metric", "sentence"),
    [
        (*PAIR, "rda", "Unknown metric 'rda': did you mean 'rsa'?"),
        (PAIR[0], PAIR[1][1:], "rsa", "RSA compares rows of the same images, shapes (rows, width), not (30, 8) and"),
        (PAIR[0][0], PAIR[1], "cka", "CKA compares rows of the same images, shapes (rows, width), not (8,) and"),
        ("x", PAIR[1], "cka", "CKA compares rows of the same images, shapes (rows, width), not () and (30, 5)."),
        (PAIR[0][:3], PAIR[1][:3], "debiased-cka", "Debiased CKA needs at least 4 rows; there are 3."),
        (PAIR[0][:2], PAIR[1][:2], "rsa", "RSA needs at least 3 rows; there are 2."),
        (PAIR[0][:0], PAIR[1][:0], "procrustes", "The Procrustes distance needs at least 2 rows; there are 0."),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, metric, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        similarity_between({0: first}, {0: second}, metric)


def test_rows_without_their_blocks_are_refused():
    with pytest.raises(InputError, match="A dictionary, block -> rows, such as collect_activations returns, is needed"):
        similarity_between(*PAIR)
