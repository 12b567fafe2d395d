"""Maps of foreign sources: against `predict` with those moments, one source at a time."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.metrics import accuracy_lost, paired_difference
from toastlib.evaluation.sweep import predict, tabulate
from toastlib.evaluation.transfer import ALL_PLANS, lost_by_source, transfer
from toastlib.plan import parse_plans
from toastlib.statistics.collect import collect_folds, collect_moments
from toastlib.statistics.moments import plan_pairs

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from toastlib import plots

PLANS = ["1->3", "0->1 2->4"]
SEEDS = [5, 6]


@pytest.fixture
def sources(tiny_encoder, tiny_images):
    """The images' own moments, and those of the same images with inverted colours."""
    own = tiny_images.train
    turned = replace(own, pixels=255 - own.pixels.flip(1))
    pairs = plan_pairs(parse_plans(PLANS))
    return {name: collect_moments(tiny_encoder, images, pairs) for name, images in (("tiny", own), ("turned", turned))}


@pytest.fixture
def transferred(tiny_encoder, tiny_images, sources):
    return transfer(tiny_encoder, tiny_images, PLANS, sources, seeds=SEEDS, head_lr=1e-2, head_min_steps=40)


@pytest.mark.parametrize("source", ["tiny", "turned"])
def test_each_source_predicts_as_it_does_alone(tiny_encoder, tiny_images, sources, transferred, source):
    alone = predict(
        tiny_encoder,
        tiny_images,
        PLANS,
        heads="frozen",
        seeds=SEEDS,
        head_lr=1e-2,
        head_min_steps=40,
        moments=sources[source],
    )
    both = transferred.variants.reset_index().merge(
        alone.variants.reset_index(), on=["head", "translator", "plan", "seed"]
    )
    both = both[both["source"].isin([source, ""])]
    assert len(both) == len(alone.variants)
    assert (transferred.predicted[both["index_x"]] == alone.predicted[both["index_y"]]).all()
    assert (transferred.labels == alone.labels).all()


def test_sources_differ_and_identity_and_original_have_none(transferred):
    variants = transferred.variants
    assert variants.groupby("translator", sort=False)["source"].unique().map(list).to_dict() == {
        "original": [""],
        "identity": [""],
        "linear": ["tiny", "turned"],
    }
    linear = [transferred.predicted[variants["source"] == source] for source in ("tiny", "turned")]
    assert (linear[0] != linear[1]).any()
    assert len(variants) == (1 + 3 * len(PLANS)) * len(SEEDS)


def test_the_table_keeps_the_source(tiny_encoder, tiny_images, transferred):
    table = tabulate(transferred, tiny_encoder, tiny_images)
    assert table[["source", "translator", "plan", "seed"]].equals(
        transferred.variants[["source", "translator", "plan", "seed"]]
    )
    assert (table.loc[table["source"] == "turned", "translator"] == "linear").all()


def test_lost_against_the_original_is_that_of_the_sweep(tiny_encoder, tiny_images, sources, transferred):
    options = {"heads": "frozen", "seeds": SEEDS, "head_lr": 1e-2, "head_min_steps": 40, "moments": sources["turned"]}
    alone = accuracy_lost(predict(tiny_encoder, tiny_images, PLANS, **options)).set_index(["translator", "plan"])
    ours = lost_by_source(transferred, translator="original")
    ours = ours[ours["source"].isin(["turned", ""]) & (ours["plan"] != ALL_PLANS)].set_index(["translator", "plan"])
    columns = ["lost", "lost_low", "lost_high"]
    assert np.allclose(ours.loc[alone.index, columns], alone[columns])


def test_lost_against_another_source_is_paired_and_pooled(transferred):
    lost = lost_by_source(transferred, source="tiny").set_index(["source", "plan"])
    assert (lost.loc["tiny", ["lost", "lost_low", "lost_high"]] == 0).all(axis=None)
    expected = paired_difference(
        transferred.mean_correct(source="tiny"), transferred.mean_correct(source="turned", translator="linear")
    )
    assert tuple(lost.loc[("turned", ALL_PLANS), ["lost", "lost_low", "lost_high"]]) == expected
    per_plan = lost.loc["turned"].drop(ALL_PLANS)["lost"]
    assert per_plan.mean() == pytest.approx(expected[0])


def test_a_target_without_labels_is_refused(tiny_encoder, tiny_images, sources):
    bare = replace(tiny_images.train, labels=None)
    with pytest.raises(InputError, match="bare has no labels"):
        transfer(tiny_encoder, ImageSet("bare", bare, bare), PLANS, sources)


def test_a_plan_must_fit(tiny_encoder, tiny_images, sources):
    with pytest.raises(InputError, match="5->6 leaves the model"):
        transfer(tiny_encoder, tiny_images, "5->6", sources)


def test_moments_must_hold_the_pairs(tiny_encoder, tiny_images):
    moments = collect_moments(tiny_encoder, tiny_images.train, [(0, 0), (0, 1)])
    with pytest.raises(InputError, match=r"do not hold the blocks \(1, 1\)|do not hold the blocks \(1, 3\)"):
        transfer(tiny_encoder, tiny_images, "1->3", {"tiny": moments})


def test_source_by_target_frames_the_own_source_and_names_the_missing_map():
    rows = [(source, target, 50.0 + (source == target)) for source in ("", "a", "b") for target in ("a", "b")]
    ax = plots.source_by_target(pd.DataFrame(rows, columns=["source", "dataset", "lost"]), "lost")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "no map"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert ax.collections[0].get_array().ravel().tolist() == [51, 50, 50, 51, 50, 50]
    assert [patch.get_xy() for patch in ax.patches] == [(0, 0), (1, 1)]
    plt.close(ax.figure)


def test_other_translators_are_fitted_on_every_source(tiny_encoder, tiny_images, sources):
    settings = {"seeds": SEEDS, "head_lr": 1e-2, "head_min_steps": 40}
    folds = {"turned": collect_folds(tiny_encoder, replace(tiny_images.train, pixels=255 - tiny_images.train.pixels))}
    names = ["linear", "context"]
    both = transfer(tiny_encoder, tiny_images, PLANS, folds, names, **settings)
    assert list(both.variants["translator"].unique()) == ["original", "identity", *names]
    alone = predict(tiny_encoder, tiny_images, PLANS, names, heads="frozen", moments=folds["turned"], **settings)
    for name in names:
        ours, theirs = (p.predicted[p.variants["translator"] == name] for p in (both, alone))
        assert (ours == theirs).all()
    assert set(lost_by_source(both, translator="original")["translator"]) == {"identity", *names}


def test_a_translator_that_needs_folds_says_so(tiny_encoder, tiny_images, sources):
    with pytest.raises(InputError, match="'context' needs moments in folds"):
        transfer(tiny_encoder, tiny_images, PLANS, sources, ["context"])
