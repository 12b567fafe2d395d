"""The script that trains the embedded text encoder: it learns the classes, and leaves the vision encoder alone."""

import importlib.util
from pathlib import Path

import pytest
import torch

from toastlib.data.builtin import COLOURED_SHAPES
from toastlib.evaluation.zero_shot import read_text_encoder

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_text_encoder.py"
TEXTS = ["a photo of a cat", "dog", "oak tree"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_text_encoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_classes_leave_every_word_to_be_learned(script):
    held_out = script.held_out_classes(COLOURED_SHAPES)
    seen = set(COLOURED_SHAPES) - set(held_out)
    for word in {word for name in COLOURED_SHAPES for word in name.split()}:
        assert sum(word in name.split() for name in held_out) == 2
        assert sum(word in name.split() for name in seen) == 4


@pytest.mark.parametrize("names", [[str(k) for k in range(10)], ["oak_tree", "pine_tree", "fir_tree"], ["a b", "a c"]])
def test_names_that_share_too_little_hold_nothing_out(script, names):
    assert script.held_out_classes(names) == ()


@pytest.fixture
def tuned(script, tiny_encoder, tiny_images):
    return script.train_text_encoder(tiny_encoder, tiny_images.train, steps=40)


def test_the_tuned_tower_tells_the_classes_and_leaves_the_encoder_alone(script, tiny_encoder, tiny_images):
    inputs, _ = next(tiny_images.test.batches(8))
    config, before = tiny_encoder.model.config, tiny_encoder(inputs)
    weights = {name: value.clone() for name, value in tiny_encoder.state_dict().items()}
    dual = script.train_text_encoder(tiny_encoder, tiny_images.train, steps=100)
    assert tiny_encoder.model.config is config
    assert all((weights[name] == value).all() for name, value in tiny_encoder.state_dict().items())
    assert (tiny_encoder(inputs) == before).all()
    texts = dual.text_features([script.CAPTIONS[0].format(name) for name in tiny_images.class_names])
    pixels, labels = next(tiny_images.train.batches(90))
    seen = dual.model.visual_projection(tiny_encoder(pixels))
    accuracy = ((seen @ texts.T).argmax(-1) == labels).float().mean()
    assert accuracy > 0.6  # chance is a third


def test_a_seed_makes_the_same_tower_whatever_was_drawn_before(script, tiny_encoder, tiny_images):
    first = script.train_text_encoder(tiny_encoder, tiny_images.train, steps=3, seed=1).text_features(TEXTS)
    torch.rand(7)
    state = torch.get_rng_state()
    again = script.train_text_encoder(tiny_encoder, tiny_images.train, steps=3, seed=1).text_features(TEXTS)
    other = script.train_text_encoder(tiny_encoder, tiny_images.train, steps=3, seed=2).text_features(TEXTS)
    assert (first == again).all()
    assert (first != other).any()
    assert (torch.get_rng_state() == state).all()  # nor does it disturb what is drawn after


def test_held_out_classes_are_neither_seen_nor_named(script, tiny_encoder, tiny_images, monkeypatch):

    met = {}
    monkeypatch.setattr(script, "train", lambda dual, features, targets, names, *_: met.update(n=targets, names=names))
    dual = script.train_text_encoder(tiny_encoder, tiny_images.train, held_out=["two"])
    assert met["names"] == ["one", "three"]
    assert torch.bincount(met["n"]).tolist() == [30, 30]
    assert dual.held_out == ("two",)
    assert 1 not in dual.tokenizer("two")["input_ids"]  # its words may be in other names, so the tokenizer has them


def test_the_caption_is_read_where_it_ends(tuned):
    # Read anywhere else, a causal tower would not know the words that follow.
    texts = tuned.text_features(["a one", "a three", "a one"])
    assert (texts[0] == texts[2]).all()
    assert (texts[0] - texts[1]).abs().max() > 0.01


def test_what_is_written_is_read(script, tuned, tiny_encoder, tmp_path):
    script.save_text_encoder(tuned, tmp_path)
    opened = read_text_encoder(tiny_encoder, tmp_path)
    assert torch.equal(opened.text_features(TEXTS), tuned.text_features(TEXTS))
    assert opened.held_out == tuned.held_out
    assert torch.equal(opened.model.visual_projection.weight, tuned.model.visual_projection.weight)
