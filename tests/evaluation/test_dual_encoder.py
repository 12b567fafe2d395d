"""Text towers: a checkpoint's own against transformers' forward, and one that is trained here for a locked encoder."""

import shutil
from dataclasses import replace

import pytest
import torch

from toastlib.data.builtin import COLOURED_SHAPES
from toastlib.errors import InputError
from toastlib.evaluation import dual_encoder
from toastlib.evaluation.dual_encoder import (
    CAPTIONS,
    add_text_tower,
    caption,
    held_out_classes,
    load_text_tower,
    tune_text_tower,
)
from toastlib.models.loading import load_encoder

TEXTS = ["a photo of a cat", "dog", "oak tree"]


@pytest.fixture(scope="session")
def clip(two_tower_checkpoint):
    return two_tower_checkpoint()


def test_a_checkpoints_text_features_are_its_own(clip):
    from transformers import AutoTokenizer

    folder, model = clip
    towers = load_text_tower(load_encoder(folder, device="cpu"), folder)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    torch.testing.assert_close(towers.text_features(TEXTS), theirs)
    assert towers.held_out == ()


def test_both_towers_are_one_model_and_nothing_in_it_learns(clip):
    folder, _ = clip
    encoder = load_encoder(folder, device="cpu", dtype="bfloat16")
    towers = add_text_tower(encoder, folder, None)
    assert towers.model.vision_model is encoder.model
    assert encoder.dtype == torch.bfloat16
    assert towers.text_features(TEXTS).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in towers.model.parameters())


def test_captions_longer_than_the_text_tower_are_cut(clip):
    folder, _ = clip
    towers = load_text_tower(load_encoder(folder, device="cpu"), folder)
    assert towers.text_features(["a photo of " + "a cat " * 20]).shape == (1, 8)


def test_a_checkpoint_without_a_text_tower_is_refused(tiny_model, tmp_path):
    folder = str(tmp_path / "vision")
    tiny_model("clip").save_pretrained(folder)
    with pytest.warns(UserWarning, match="no usable preprocessor"):
        encoder = load_encoder(folder, device="cpu")
    with pytest.raises(InputError, match=r"vision' has no text tower of CLIP or SigLIP: take 'openclip-vit-b'"):
        add_text_tower(encoder, folder, None)


def test_a_text_tower_without_weights_is_refused(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = clip
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    weights = {k: v for k, v in load_file(f"{folder}/model.safetensors").items() if "text" not in k}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="has no text tower"):
        load_text_tower(load_encoder(str(tmp_path), device="cpu"), str(tmp_path))


def test_features_that_the_projection_does_not_know_are_refused(clip):
    folder, _ = clip
    with pytest.raises(InputError, match=r"compares texts with its pooled features: take features='cls'\.$"):
        load_text_tower(load_encoder(folder, device="cpu", features="mean"), folder)


def test_a_missing_tokenizer_is_named(two_tower_checkpoint):
    folder, _ = two_tower_checkpoint(tokenizer=False)
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        load_text_tower(load_encoder(folder, device="cpu"), folder)


def test_held_out_classes_leave_every_word_to_be_learned():
    held_out = held_out_classes(COLOURED_SHAPES)
    seen = set(COLOURED_SHAPES) - set(held_out)
    for word in {word for name in COLOURED_SHAPES for word in name.split()}:
        assert sum(word in name.split() for name in held_out) == 2
        assert sum(word in name.split() for name in seen) == 4


@pytest.mark.parametrize("names", [[str(k) for k in range(10)], ["oak_tree", "pine_tree", "fir_tree"], ["a b", "a c"]])
def test_names_that_share_too_little_hold_nothing_out(names):
    assert held_out_classes(names) == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("red circle", "one red circle"), ("oak_tree", "one oak tree"), ("tench, Tinca tinca", "one tench")],
)
def test_a_caption_reads_like_english(name, text):
    assert caption("one {}", name) == text


@pytest.fixture
def tuned(tiny_encoder, tiny_images):
    return tune_text_tower(tiny_encoder, tiny_images.train, steps=40)


def test_the_tuned_tower_tells_the_classes_and_leaves_the_encoder_alone(tiny_encoder, tiny_images):
    inputs, _ = next(tiny_images.test.batches(8))
    config, before = tiny_encoder.model.config, tiny_encoder(inputs)
    weights = {name: value.clone() for name, value in tiny_encoder.state_dict().items()}
    towers = tune_text_tower(tiny_encoder, tiny_images.train, steps=100)
    assert tiny_encoder.model.config is config
    assert all((weights[name] == value).all() for name, value in tiny_encoder.state_dict().items())
    assert (tiny_encoder(inputs) == before).all()
    texts = towers.text_features([CAPTIONS[0].format(name) for name in tiny_images.class_names])
    pixels, labels = next(tiny_images.train.batches(90))
    seen = towers.model.visual_projection(tiny_encoder(pixels))
    accuracy = ((seen @ texts.T).argmax(-1) == labels).float().mean()
    assert accuracy > 0.6  # chance is a third


def test_a_seed_makes_the_same_tower_whatever_was_drawn_before(tiny_encoder, tiny_images):
    first = tune_text_tower(tiny_encoder, tiny_images.train, steps=3, seed=1).text_features(TEXTS)
    torch.rand(7)
    state = torch.get_rng_state()
    again = tune_text_tower(tiny_encoder, tiny_images.train, steps=3, seed=1).text_features(TEXTS)
    other = tune_text_tower(tiny_encoder, tiny_images.train, steps=3, seed=2).text_features(TEXTS)
    assert (first == again).all()
    assert (first != other).any()
    assert (torch.get_rng_state() == state).all()  # nor does it disturb what is drawn after


def test_held_out_classes_are_neither_seen_nor_named(tiny_encoder, tiny_images, monkeypatch):

    met = {}
    monkeypatch.setattr(
        dual_encoder, "_train", lambda towers, features, targets, names, *_: met.update(n=targets, names=names)
    )
    towers = tune_text_tower(tiny_encoder, tiny_images.train, held_out=["two"])
    assert met["names"] == ["one", "three"]
    assert torch.bincount(met["n"]).tolist() == [30, 30]
    assert towers.held_out == ("two",)
    assert 1 not in towers.tokenizer("two")["input_ids"]  # its words may be in other names, so the tokenizer has them


@pytest.mark.slow
def test_the_embedded_encoder_gets_a_tuned_tower(tiny_encoder, tiny_images):
    tiny_encoder.name = "vit-mini"
    assert add_text_tower(tiny_encoder, "vit-mini", tiny_images.train).model.config.model_type == (
        "vision-text-dual-encoder"
    )


def test_the_caption_is_read_where_it_ends(tuned):
    # Read anywhere else, a causal tower would not know the words that follow.
    texts = tuned.text_features(["a one", "a three", "a one"])
    assert (texts[0] == texts[2]).all()
    assert (texts[0] - texts[1]).abs().max() > 0.01


def test_images_without_labels_teach_nothing(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="these images have no labels"):
        tune_text_tower(tiny_encoder, replace(tiny_images.train, labels=None))
