"""Encoders at another image size: equal to what transformers interpolates at every call."""

import json

import pytest
import torch
import transformers
from tiny import SIZES, make_tiny_model
from transformers import AutoModel

from toastlib.approximation.replace import approximate
from toastlib.data.images import load_images
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.models.base_architecture import own_classifier
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder
from toastlib.models.structure import set_image_size

SIZE = 48  # the tiny models read 32
PIXELS = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def own_interpolation(family, model):
    """Hidden states of the model when transformers interpolates its positions in the call."""
    arguments = {} if family.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        return model(PIXELS, **arguments).last_hidden_state


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2-registers", "dinov3", "clip", "siglip"])
def test_another_size_is_what_transformers_interpolates(family):
    model = make_tiny_model(family)
    expected = own_interpolation(family, model)
    tower = getattr(model, "vision_model", model)
    set_image_size(tower, SIZE)
    with torch.inference_mode():
        found = tower(PIXELS).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_a_saved_model_opens_at_its_size(family, tmp_path):
    model = make_tiny_model(family)
    set_image_size(model, SIZE)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(PIXELS)[0], model(PIXELS)[0], rtol=0, atol=0)


def test_its_own_size_changes_nothing():
    model = make_tiny_model("vit")
    embeddings = model.embeddings
    set_image_size(model, 32)
    assert model.embeddings is embeddings


def test_a_size_without_whole_patches_names_the_nearest():
    with pytest.raises(InputError, match="take 32"):
        set_image_size(make_tiny_model("vit"), 33)


def test_other_types_are_refused():
    with pytest.raises(InputError, match="type beit read images of one size only"):
        set_image_size(make_tiny_model("beit"), SIZE)


def test_features_at_another_size_are_pooled_from_the_new_patches():
    model = make_tiny_model("vit")
    set_image_size(model, SIZE)
    assert Encoder(model, features="mean").embed(PIXELS).hidden.shape == (2, 1 + (SIZE // 8) ** 2, 32)


def write_classifier(family, folder):
    """A tiny checkpoint with the classifier of its architecture, for images of 32 pixels."""
    if family in ("clip", "siglip"):
        prefix = family.capitalize() if family == "siglip" else "CLIP"
        vision = make_tiny_model(family).config.to_dict()
        text = SIZES | {"num_hidden_layers": 1, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
        config = getattr(transformers, f"{prefix}Config")(vision_config=vision, text_config=text)
        model = getattr(transformers, f"{prefix}ForImageClassification")(config)
    else:
        model = make_tiny_model(family, head="ForImageClassification")
    model.save_pretrained(folder)
    settings = Preprocessing(resize=(32, 32)).to_config()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "clip", "siglip"])
def test_a_smaller_model_keeps_its_own_classifier_and_its_size(family, tmp_path):
    write_classifier(family, tmp_path)
    features = "mean" if family == "siglip" else "cls"
    encoder = load_encoder(str(tmp_path), device="cpu", features=features, image_size=SIZE)
    smaller = approximate(encoder, "1->3", translator="identity", calibration=load_images("digits", encoder).train[:8])
    smaller.save_pretrained(tmp_path / "smaller", head=own_classifier(str(tmp_path), SIZE))
    opened = load_encoder(str(tmp_path / "smaller"), device="cpu")
    assert opened.preprocessing == Preprocessing(resize=(SIZE, SIZE))
    torch.testing.assert_close(opened(PIXELS), smaller(PIXELS), rtol=0, atol=1e-6)
    classifier = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "smaller")
    assert classifier(PIXELS).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (Preprocessing(resize=256, crop=(224, 224)), Preprocessing(resize=128, crop=(112, 112))),
        (Preprocessing(resize=(256, 256), crop=(224, 224)), Preprocessing(resize=(128, 128), crop=(112, 112))),
        (Preprocessing(resize=(224, 224)), Preprocessing(resize=(112, 112))),
        (Preprocessing(resize=224, crop=(224, 224)), Preprocessing(resize=112, crop=(112, 112))),
        (Preprocessing(), Preprocessing(resize=(112, 112))),
    ],
)
def test_resize_and_crop_keep_their_proportion(steps, expected):
    assert steps.at(112) == expected
