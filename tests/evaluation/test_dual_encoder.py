"""Text encoders: a checkpoint's own against transformers' forward, and the embedded one."""

import shutil

import pytest
import torch

from toastlib.errors import InputError
from toastlib.evaluation.zero_shot import caption, load_dual_encoder
from toastlib.models.loading import load_encoder

TEXTS = ["a photo of a cat", "dog", "oak tree"]


@pytest.fixture(scope="session")
def clip(two_tower_checkpoint):
    return two_tower_checkpoint()


def test_a_checkpoints_text_features_are_its_own(clip):
    from transformers import AutoTokenizer

    folder, model = clip
    dual = load_dual_encoder(load_encoder(folder, device="cpu"), folder)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32)).text_embeds
    torch.testing.assert_close(dual.text_features(TEXTS), theirs)
    assert dual.held_out == ()


def test_both_towers_are_one_model_and_nothing_in_it_learns(clip):
    folder, _ = clip
    encoder = load_encoder(folder, device="cpu", dtype="bfloat16")
    dual = load_dual_encoder(encoder, folder)
    assert dual.model.vision_model is encoder.model
    assert encoder.dtype == torch.bfloat16
    assert dual.text_features(TEXTS).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in dual.model.parameters())


def test_captions_longer_than_the_text_tower_are_cut(clip):
    folder, _ = clip
    dual = load_dual_encoder(load_encoder(folder, device="cpu"), folder)
    assert dual.text_features(["a photo of " + "a cat " * 20]).shape == (1, 8)


def test_a_checkpoint_without_a_text_tower_is_refused(tiny_model, tmp_path):
    folder = str(tmp_path / "vision")
    tiny_model("clip").save_pretrained(folder)
    with pytest.warns(UserWarning, match="no usable preprocessor"):
        encoder = load_encoder(folder, device="cpu")
    with pytest.raises(InputError, match=r"vision' has no text encoder of CLIP or SigLIP: take 'openclip-vit-b'"):
        load_dual_encoder(encoder, folder)


def test_a_text_tower_without_weights_is_refused(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = clip
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    weights = {k: v for k, v in load_file(f"{folder}/model.safetensors").items() if "text" not in k}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="has no text encoder"):
        load_dual_encoder(load_encoder(str(tmp_path), device="cpu"), str(tmp_path))


def test_features_that_the_projection_does_not_know_are_refused(clip):
    folder, _ = clip
    with pytest.raises(InputError, match=r"compares texts with its pooled features: take features='cls'\.$"):
        load_dual_encoder(load_encoder(folder, device="cpu", features="mean"), folder)


def test_a_missing_tokenizer_is_named(two_tower_checkpoint):
    folder, _ = two_tower_checkpoint(tokenizer=False)
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        load_dual_encoder(load_encoder(folder, device="cpu"), folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [("red circle", "one red circle"), ("oak_tree", "one oak tree"), ("tench, Tinca tinca", "one tench")],
)
def test_a_caption_reads_like_english(name, text):
    assert caption("one {}", name) == text


def test_the_embedded_encoder_has_a_text_encoder_that_was_trained_for_it():
    encoder = load_encoder("vit-mini", device="cpu")
    dual = load_dual_encoder(encoder, "vit-mini")
    assert dual.model.vision_model is encoder.model
    assert len(dual.held_out) == 12
    texts = dual.text_features(["a red circle", "a blue square", "a red circle"])
    assert torch.equal(texts[0], texts[2])
    assert (texts[0] - texts[1]).abs().max() > 0.01
