"""Zero-shot heads: logits against transformers' own forward, with the original tower and with one cut by hand."""

import copy
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from toastlib import paper, plots
from toastlib.approximation.replace import fit_spans
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.dual_encoder import add_text_tower
from toastlib.evaluation.metrics import accuracy_lost, accuracy_table
from toastlib.evaluation.sweep import tabulate
from toastlib.evaluation.zero_shot import HEAD, check_templates, predict_zero_shot, select_classes, zero_shot_head
from toastlib.models.loading import load_encoder
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments

mpl.use("Agg")

NAMES = ("cat", "oak_tree", "dog")
TEMPLATES = ["a photo of a {}"]
FEATURES = {"CLIP": "cls", "Siglip": "pooler"}


class Mapped(nn.Module):
    """What a person would write who cuts a block list by hand: one block's map in place of the next."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, hidden, *args, **kwargs):
        return hidden @ self.weight


@pytest.fixture(scope="module", params=FEATURES)
def family(request, two_tower_checkpoint):
    """(towers, transformers' own model, its tokens for `NAMES` in the template)."""
    from transformers import AutoTokenizer

    folder, model = two_tower_checkpoint(request.param)
    encoder = load_encoder(folder, device="cpu", features=FEATURES[request.param])
    texts = [TEMPLATES[0].format(name.replace("_", " ")) for name in NAMES]
    padding = {"padding": True} if request.param == "CLIP" else {"padding": "max_length", "max_length": 12}
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **padding)
    return add_text_tower(encoder, folder, None), model, tokens


@pytest.fixture
def images(tiny_images):
    return ImageSet("tiny", *(replace(part, class_names=NAMES) for part in (tiny_images.train, tiny_images.test)))


def test_the_originals_logits_are_the_models_own(family, pixel_values):
    towers, model, tokens = family
    logits = zero_shot_head(towers, NAMES, TEMPLATES).logits(towers.encoder(pixel_values))
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=pixel_values).logits_per_image
    torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-4)


def test_predictions_are_those_of_a_tower_cut_by_hand(family, images):
    towers, model, tokens = family
    predictions = predict_zero_shot(towers, images, "1->2", templates=TEMPLATES, calibration_size=60)
    moments = collect_moments(towers.encoder, images.train.sample(60, 0))
    span = Plan.parse("1->2").spans[0]
    weight = next(iter(fit_spans([span], "linear", moments)[span].module().parameters()))
    weight = weight.T if weight.ndim == 2 else weight
    pixels = torch.cat([batch for batch, _ in images.test.batches(30)])
    for row, middle in enumerate([None, nn.Identity(), Mapped(weight)]):
        cut = copy.deepcopy(model)
        if row == 1:
            del cut.vision_model.encoder.layers[2]
        elif row == 2:
            cut.vision_model.encoder.layers[2] = middle
        with torch.no_grad():
            theirs = cut(**tokens, pixel_values=pixels).logits_per_image.argmax(-1)
        assert (predictions.predicted[row] == theirs.numpy()).mean() > 0.98  # a tie may fall either way
    assert predictions.variants["translator"].tolist() == ["original", "identity", "linear"]


def test_the_head_is_the_mean_over_templates_brought_back_to_length_one(family):
    towers, _, _ = family
    templates = ["a photo of a {}", "{}", "a {}"]
    singles = torch.stack([zero_shot_head(towers, NAMES, [template]).texts for template in templates])
    mean = singles.mean(0)
    torch.testing.assert_close(zero_shot_head(towers, NAMES, templates).texts, mean / mean.norm(dim=-1, keepdim=True))


def test_the_tables_of_the_study_take_zero_shot_predictions(family, images):
    towers, _, _ = family
    towers.encoder.name = "openclip-vit-b"
    images = replace(images, name="imagenet-1k")
    predictions = predict_zero_shot(towers, images, ["0->1", "1->2"], templates=TEMPLATES, calibration_size=60)
    table = tabulate(predictions, towers.encoder, images)
    assert table["head"].unique().tolist() == [HEAD]
    assert len(accuracy_lost(predictions)) == 4
    beside = paper.compare_with_paper(table).set_index(["translator", "plan"])
    assert beside.loc[("original", "original"), "theirs"] == 70.21
    assert beside.loc[("linear", "0->1"), "theirs"] == 57.93
    assert np.isnan(beside.loc[("identity", "0->1"), "theirs"])


def test_classes_are_picked_by_label_and_keep_every_prediction(family, images):
    towers, _, _ = family
    predictions = predict_zero_shot(towers, images, "0->1", templates=TEMPLATES, calibration_size=60)
    parts = [select_classes(predictions, classes) for classes in ([0], [1, 2])]
    assert [len(part.labels) for part in parts] == [20, 40]
    whole = accuracy_table(predictions)["correct"]
    assert (sum(accuracy_table(part)["correct"] for part in parts) == whole).all()


@pytest.mark.parametrize("templates", [["a photo"], ["{} and {}"], ["a {name}"], ["a {"], ["a {0}"]])
def test_a_template_has_one_place_for_the_name(templates):
    with pytest.raises(InputError, match=r"needs one \{\} where the class name goes"):
        check_templates(templates)


def test_there_must_be_a_template():
    with pytest.raises(InputError, match="There is no template"):
        check_templates([])


def test_images_without_labels_are_refused(family, images):
    towers, _, _ = family
    bare = replace(images, test=replace(images.test, labels=None))
    with pytest.raises(InputError, match="tiny has no labels"):
        predict_zero_shot(towers, bare, "0->1")


def test_a_plan_must_fit(family, images):
    with pytest.raises(InputError, match="4->5 leaves the model"):
        predict_zero_shot(family[0], images, "4->5")


def test_the_profile_has_one_point_for_each_single_block():
    rows = [("original", "original", 70.0), ("linear", "0->1", 60.0), ("linear", "3->4", 65.0), ("linear", "1->3", 1.0)]
    ax = plots.accuracy_by_block(pd.DataFrame(rows, columns=["translator", "plan", "accuracy"]))
    assert ax.lines[0].get_xydata().tolist() == [[1, 60], [4, 65]]
    assert ax.lines[-1].get_ydata() == [70, 70]
    assert "original, 70.0 %" in [text.get_text() for text in ax.get_legend().get_texts()]
    mpl.pyplot.close(ax.figure)
