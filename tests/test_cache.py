"""What the disk keeps: found again for the same things only, bounded, and never in the way."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from toastlib.approximation import engine
from toastlib.approximation.engine import collect_features, variants_of
from toastlib.approximation.prepare import fit_maps
from toastlib.cache import Cache, default_cache, fingerprint
from toastlib.errors import InputError
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.models.encoder import Encoder
from toastlib.plan import parse_plans
from toastlib.statistics.collect import collect_moments

TRAINED = {"weight": torch.zeros(2, 2, 4, 3), "bias": torch.zeros(2, 2, 1, 3)}
LINEAR = {"identity": "identity", "linear": "linear"}
TENSORS = {"features": torch.arange(12.0).view(3, 4)}


@pytest.fixture
def kept(tmp_path) -> Cache:
    return Cache(tmp_path / "kept")


@pytest.fixture
def on_disk(tmp_path, monkeypatch) -> Path:
    """The default cache in a folder of this test."""
    monkeypatch.setenv("TOAST_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def walked(monkeypatch) -> list[int]:
    """How many variants each batch was walked with."""
    numbers, forward_plans = [], engine.forward_plans

    def counted(encoder, inputs, variants, maps):
        numbers.append(len(variants))
        return forward_plans(encoder, inputs, variants, maps)

    monkeypatch.setattr(engine, "forward_plans", counted)
    return numbers


def test_what_is_put_is_got(kept):
    assert kept.get("a") is None
    kept.put("a", TENSORS)
    assert torch.equal(kept.get("a")["features"], TENSORS["features"])
    assert kept.get("b") is None


def test_no_folder_and_no_key_keep_nothing(kept):
    Cache(None).put("a", TENSORS)
    kept.put(None, TENSORS)
    assert Cache(None).get("a") is None
    assert kept.get(None) is None
    assert Cache(None).entries() == kept.entries() == []


@pytest.mark.parametrize("content", [b"", b"damaged", b"\xff" * 64])
def test_a_damaged_entry_is_computed_anew(kept, content):
    kept.put("a", TENSORS)
    (path, _) = kept.entries()[0]
    path.write_bytes(content)
    assert kept.get("a") is None
    kept.put("a", TENSORS)
    assert kept.get("a") is not None


def test_the_least_recently_used_goes_first(tmp_path):
    kept = Cache(tmp_path)
    for name in "abc":
        kept.put(name, TENSORS)
    for age, name in enumerate("abc"):
        os.utime(tmp_path / f"{name}.safetensors", (age, age))
    kept.get("a")
    size = kept.entries()[0][1].st_size
    kept.trim(2 * size)
    assert {path.stem for path, _ in kept.entries()} == {"a", "c"}


def test_what_is_too_large_is_not_kept(tmp_path):
    kept = Cache(tmp_path, limit=100)
    kept.put("a", TENSORS)
    assert kept.entries() == []


def test_a_folder_that_cannot_be_written_costs_the_entry_only(tmp_path):
    (tmp_path / "file").touch()
    kept = Cache(tmp_path / "file" / "kept")
    kept.put("a", TENSORS)
    assert kept.get("a") is None


def test_the_environment_names_folder_and_limit(tmp_path, monkeypatch):
    monkeypatch.delenv("TOAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == Cache(tmp_path / "toastlib", 10 * 2**30)
    monkeypatch.setenv("TOAST_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("TOAST_CACHE_GIB", "0.5")
    assert default_cache() == Cache(tmp_path / "mine", 2**29)
    monkeypatch.setenv("TOAST_CACHE_GIB", "much")
    with pytest.raises(InputError, match="TOAST_CACHE_GIB"):
        default_cache()
    monkeypatch.setenv("TOAST_CACHE", "off")
    monkeypatch.delenv("TOAST_CACHE_GIB")
    assert default_cache().folder is None


def test_a_fingerprint_tells_everything_apart(tiny_encoder, tiny_model):
    other_weights = copy.deepcopy(tiny_encoder)
    next(other_weights.parameters()).data.flatten()[0] += 1e-6
    settings = Encoder(tiny_model("vit", num_hidden_layers=6, layer_norm_eps=1e-5))
    parts = [
        *(tiny_encoder, other_weights, settings, copy.deepcopy(tiny_encoder).double()),
        *(torch.ones(2), torch.ones(1, 2), torch.ones(2).double(), torch.ones(2).int(), "ones", 2, (2,)),
    ]
    keys = [fingerprint(part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert fingerprint(copy.deepcopy(tiny_encoder)) == keys[0]
    assert fingerprint(1, 2) != fingerprint(2, 1)


def test_code_that_may_change_has_no_fingerprint():
    class Mine(nn.Linear):
        pass

    assert fingerprint(Encoder(nn.Sequential(nn.ModuleList([Mine(2, 2)])), blocks="0")) is None


def test_the_number_of_threads_is_part_of_the_key():
    threads = torch.get_num_threads()
    first = fingerprint(torch.ones(1))
    try:
        torch.set_num_threads(threads + 1)
        assert fingerprint(torch.ones(1)) != first
    finally:
        torch.set_num_threads(threads)


def test_features_are_computed_once(tiny_encoder, tiny_images, on_disk, walked):
    plans = parse_plans(["1->3", "2->4"])
    variants = variants_of(plans, ["identity", "linear"])
    maps = fit_maps(tiny_encoder, variants, LINEAR, collect_moments(tiny_encoder, tiny_images.train, folds=0))
    first = collect_features(tiny_encoder, tiny_images.test, variants[:3], maps)
    assert set(walked) == {3}
    walked.clear()
    both = collect_features(tiny_encoder, tiny_images.test, variants[::-1], maps)  # in another order, and two more
    assert set(walked) == {2}
    assert torch.equal(both.flip(0)[:3], first)
    walked.clear()
    again = collect_features(tiny_encoder, tiny_images.test, variants[::-1], maps)
    assert walked == []
    assert torch.equal(again, both)


@pytest.mark.parametrize("change", ["images", "map", "batch size", "features", "preprocessing"])
def test_anything_else_is_computed(tiny_encoder, tiny_images, on_disk, walked, change):
    variants = variants_of(parse_plans(["1->3"]), ["linear"])[1:]
    images, batch_size = tiny_images.test, 32
    maps = fit_maps(tiny_encoder, variants, LINEAR, collect_moments(tiny_encoder, tiny_images.train, folds=0))
    collect_features(tiny_encoder, images, variants, maps, batch_size)
    walked.clear()
    if change == "images":
        images = images[torch.arange(len(images)).flip(0)]
    elif change == "map":
        maps = fit_maps(tiny_encoder, variants, LINEAR, collect_moments(tiny_encoder, tiny_images.train[:40], folds=0))
    elif change == "batch size":
        batch_size = 30
    elif change == "features":
        tiny_encoder.feature_kind = "mean"
    else:
        images = type(images)(images.pixels, images.labels, images.class_names)
    collect_features(tiny_encoder, images, variants, maps, batch_size)
    assert walked


def test_features_that_are_not_finite_are_not_kept(tiny_encoder, tiny_images, on_disk):
    variants = variants_of(parse_plans(["1->3"]), ["linear"])
    maps = fit_maps(tiny_encoder, variants, LINEAR, collect_moments(tiny_encoder, tiny_images.train, folds=0))
    for module in maps.values():
        next(module.parameters()).data.fill_(float("nan"))
    before = default_cache().entries()
    with pytest.raises(InputError, match="NaN"):
        collect_features(tiny_encoder, tiny_images.test, variants, maps)
    assert default_cache().entries() == before


def test_moments_are_collected_once(tiny_encoder, tiny_images, on_disk, monkeypatch):
    first = collect_moments(tiny_encoder, tiny_images.train[:20], folds=5)
    monkeypatch.setattr("toastlib.statistics.collect.capture_outputs", None)  # a second pass would call it
    again = collect_moments(tiny_encoder, tiny_images.train[:20], folds=5)
    assert again.parts.keys() == first.parts.keys()
    for kind, folds in first.parts.items():
        for ours, theirs in zip(again.parts[kind], folds, strict=True):
            assert ours.products.keys() == theirs.products.keys()
            assert all(torch.equal(ours.products[pair], product) for pair, product in theirs.products.items())
    with pytest.raises(TypeError):
        collect_moments(tiny_encoder, tiny_images.train[:20], folds=0)
    with pytest.raises(TypeError):
        collect_moments(tiny_encoder, tiny_images.train[:20], batch_size=5, folds=5)


def test_heads_are_trained_once(on_disk, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2, 30, 4, generator=draw), torch.arange(30) % 3
    first = Probe(3, HeadConfig(seeds=[0, 1])).fit(features, labels)
    trained = []
    monkeypatch.setattr(Probe, "_train", lambda self, *args: trained.append(self) or TRAINED)
    again = Probe(3, HeadConfig(seeds=[0, 1])).fit(features, labels)
    assert trained == []
    assert torch.equal(again.weight_, first.weight_)
    assert torch.equal(again.bias_, first.bias_)
    changes = [{"seeds": [0, 2]}, {"epochs": 6}, {"learning_rate": 1e-2}, {"batch_size": 8}, {"min_steps": 9}]
    for change in changes:
        Probe(3, HeadConfig(**{"seeds": [0, 1]} | change)).fit(features, labels)
    Probe(3, HeadConfig(seeds=[0, 1])).fit(features + 1e-6, labels)
    Probe(3, HeadConfig(seeds=[0, 1])).fit(features, labels.flip(0))
    assert len(trained) == len(changes) + 2
