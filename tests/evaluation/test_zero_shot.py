"""Zero-shot heads: logits against transformers' own forward, with the original tower and with one cut by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from toastlib import paper
from toastlib.approximation.replace import fit_spans
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.zero_shot import (
    HEAD,
    caption,
    check_templates,
    evaluate_zero_shot,
    load_dual_encoder,
    zero_shot_head,
)
from toastlib.models.loading import load_encoder
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments

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
    """(dual, transformers' own model, its tokens for `NAMES` in the template)."""
    from transformers import AutoTokenizer

    folder, model = two_tower_checkpoint(request.param)
    encoder = load_encoder(folder, device="cpu", features=FEATURES[request.param])
    texts = [TEMPLATES[0].format(name.replace("_", " ")) for name in NAMES]
    padding = {"padding": True} if request.param == "CLIP" else {"padding": "max_length", "max_length": 12}
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **padding)
    return load_dual_encoder(encoder, folder), model, tokens


@pytest.fixture
def images(tiny_images):
    return ImageSet("tiny", *(replace(part, class_names=NAMES) for part in (tiny_images.train, tiny_images.test)))


def test_the_originals_logits_are_the_models_own(family, pixel_values):
    dual, model, tokens = family
    logits = zero_shot_head(dual, NAMES, TEMPLATES)(dual.encoder(pixel_values))
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=pixel_values).logits_per_image
    torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-4)


def test_predictions_are_those_of_a_tower_cut_by_hand(family, images):
    dual, model, tokens = family
    result = evaluate_zero_shot(dual, images, "1->2", templates=TEMPLATES, calibration=60)
    moments = collect_moments(dual.encoder, images.train.sample(60, 0))
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
        assert (result.predictions[row] == theirs.numpy()).mean() > 0.98  # a tie may fall either way
    assert result.variants["translator"].tolist() == ["original", "identity", "linear"]


def test_the_head_is_the_mean_over_templates_brought_back_to_length_one(family, pixel_values):
    dual, _, _ = family
    templates, features = ["a photo of a {}", "{}", "a {}"], dual.encoder(pixel_values)
    bias = getattr(dual.model, "logit_bias", 0)
    singles = torch.stack([zero_shot_head(dual, NAMES, [one])(features) - bias for one in templates])
    texts = torch.stack([dual.text_features([caption(one, name) for name in NAMES]) for one in templates]).mean(0)
    expected = singles.mean(0) / texts.norm(dim=-1) + bias  # logits are linear in the features of texts
    torch.testing.assert_close(zero_shot_head(dual, NAMES, templates)(features), expected, rtol=1e-4, atol=1e-4)


def test_the_tables_of_the_study_take_zero_shot_predictions(family, images):
    dual, _, _ = family
    dual.encoder.name = "openclip-vit-b"
    images = replace(images, name="imagenet-1k")
    result = evaluate_zero_shot(dual, images, ["0->1", "1->2"], templates=TEMPLATES, calibration=60)
    table = result.table
    assert table["head"].unique().tolist() == [HEAD]
    assert len(result.lost) == 4
    beside = paper.compare_with_paper(table).set_index(["translator", "plan"])
    assert beside.loc[("original", "original"), "theirs"] == 70.21
    assert beside.loc[("linear", "0->1"), "theirs"] == 57.93
    assert ("identity", "0->1") not in beside.index  # the paper prints none


def test_classes_are_picked_by_label_and_keep_every_prediction(family, images):
    dual, _, _ = family
    result = evaluate_zero_shot(dual, images, "0->1", templates=TEMPLATES, calibration=60)
    parts = [result.select_classes(classes) for classes in ([0], [1, 2])]
    assert [len(part.labels) for part in parts] == [20, 40]
    whole = result.table["correct"]
    assert (sum(part.table["correct"] for part in parts) == whole).all()


@pytest.mark.parametrize("templates", [["a photo"], ["{} and {}"], ["a {name}"], ["a {"], ["a {0}"]])
def test_a_template_has_one_place_for_the_name(templates):
    with pytest.raises(InputError, match=r"needs one \{\} where the class name goes"):
        check_templates(templates)


def test_there_must_be_a_template():
    with pytest.raises(InputError, match="There is no template"):
        check_templates([])


def test_images_without_labels_are_refused(family, images):
    dual, _, _ = family
    bare = replace(images, test=replace(images.test, labels=None))
    with pytest.raises(InputError, match="tiny has no labels"):
        evaluate_zero_shot(dual, bare, "0->1")


def test_a_plan_must_fit(family, images):
    with pytest.raises(InputError, match="4->5 leaves the model"):
        evaluate_zero_shot(family[0], images, "4->5")
