"""Fine-tuning trains what it is told to, as a plain loop of torch does, and nothing else."""

import os
import random
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import environment_without_toastlib
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForImageClassification

import toastlib as toast
from toastlib import errors
from toastlib.evaluation.heads import answers
from toastlib.export import finetune as module
from toastlib.export.finetune import BATCH, finetune, parameters_of

PLAN = "0->2 3->4"
NAMES = ("one", "two", "three")
COUNTED = {"maps": 2, "head": 2, "norms": 2 * 2 * 3 + 2}  # two matrices; 3 blocks are left, and the final norm


def make(encoder, images, translator="linear", head=True):
    torch.manual_seed(3)
    smaller = toast.approximate(encoder, PLAN, images.train, translator=translator)
    return toast.saved_form(smaller, torch.nn.Linear(32, 3), NAMES) if head else toast.saved_form(smaller)


@pytest.fixture
def model(tiny_encoder, tiny_images):
    return make(tiny_encoder, tiny_images)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


def kind_of(name):
    kinds = {"translation": "maps", "classifier.": "head", "layernorm": "norms"}
    return next((kind for part, kind in kinds.items() if part in name), "rest")


def test_no_step_changes_nothing(model, tiny_images):
    before = copied(model)
    for steps in (0, [0]):
        table = finetune(model, tiny_images.train, test=tiny_images.test, steps=steps)
        assert table["step"].tolist() == [0]
        assert table["seconds"].tolist() == [0]
    assert changed(before, model) == set()
    right = (answers(model, tiny_images.test).argmax(1) == tiny_images.test.labels).double().mean().item()
    assert table["accuracy"].tolist() == [pytest.approx(100 * right)]


@pytest.mark.parametrize("parts", ["maps", "head", "norms", "maps+norms", "head+maps"])
def test_the_parts_are_trained_and_nothing_else(model, tiny_images, parts):
    before = copied(model)
    finetune(model, tiny_images.train, parts=parts, steps=3, learning_rate=1e-3)
    names = changed(before, model)
    assert {kind_of(name) for name in names} == set(parts.split("+"))
    assert len(names) == sum(COUNTED[part] for part in parts.split("+"))


def test_all_trains_every_weight_that_the_answers_depend_on(model, tiny_images):
    before = copied(model)
    finetune(model, tiny_images.train, parts="all", steps=2)
    unchanged = before.keys() - changed(before, model)
    assert all("pooler" in name for name in unchanged), unchanged


def test_frozen_parts_get_no_gradient_and_all_are_frozen_afterwards(model, tiny_images, monkeypatch):
    seen = []

    class Watching(module._Finetuner):
        def training_step(self, watched, *args, **kwargs):
            loss = super().training_step(watched, *args, **kwargs)
            seen.append({name for name, p in watched.named_parameters() if p.grad is not None})
            return loss

    monkeypatch.setattr(module, "_Finetuner", Watching)
    finetune(model, tiny_images.train, parts="maps", steps=2)
    assert len(seen) == 2
    assert {kind_of(name) for name in set().union(*seen)} == {"maps"}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("distilled", [False, True], ids=["labels", "teacher"])
@pytest.mark.parametrize("parts", ["maps", "all"])
def test_a_plain_loop_gives_the_same_weights(tiny_encoder, tiny_images, monkeypatch, parts, distilled):
    orders, make_batch = [], module._batch
    monkeypatch.setattr(module, "_batch", lambda i, t, rows: (orders.append(rows), make_batch(i, t, rows))[1])
    ours, plain = make(tiny_encoder, tiny_images), make(tiny_encoder, tiny_images)
    teacher = tiny_encoder if distilled else None
    table = finetune(ours, tiny_images.train, parts=parts, teacher=teacher, steps=[1, 2], learning_rate=1e-3, seed=5)
    weights, losses = [p.requires_grad_() for p in parameters_of(plain, parts)], []
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0)
    for rows in orders[:2]:
        assert len(set(rows)) == BATCH
        part = tiny_images.train[rows]
        pixels, _ = next(part.batches(BATCH))
        if distilled:
            loss = mse_loss(plain.toast(pixels).pooler_output, tiny_encoder(pixels).detach())
        else:
            loss = cross_entropy(plain(pixels).logits, part.labels)
        optimiser.zero_grad(), loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step(), losses.append(loss.item())
    for name, tensor in plain.state_dict().items():
        if "k_proj.bias" not in name:  # its gradient is zero but for rounding, which Adam blows up: softmax ignores it
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert table["loss"].tolist() == pytest.approx(losses, rel=1e-4)


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(tiny_encoder, tiny_images):
    results = []
    for seed in (1, 1, 2):
        model = make(tiny_encoder, tiny_images)
        torch.rand(seed + len(results))  # whatever the caller has drawn
        table = finetune(model, tiny_images.train, test=tiny_images.test, parts="all", steps=5, seed=seed)
        results.append((copied(model), table.drop(columns="seconds")))
    (first, table), (again, table_again), (other, _) = results
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert table.equals(table_again)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_point_of_the_curve_is_what_a_shorter_run_gives(tiny_encoder, tiny_images):
    longer, shorter = (
        finetune(make(tiny_encoder, tiny_images), tiny_images.train, test=tiny_images.test, steps=steps)
        for steps in ([0, 3, 6], [0, 3])
    )
    assert longer.drop(columns="seconds").head(2).equals(shorter.drop(columns="seconds"))
    assert longer["seconds"].is_monotonic_increasing


def test_random_numbers_of_the_caller_go_on(model, tiny_images):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    finetune(model, tiny_images.train, steps=1)
    assert torch.equal(torch.rand(3), expected)
    for source in (random, np.random):
        source.seed(9)
        expected = source.random()
        source.seed(9)
        finetune(model, tiny_images.train, steps=1)
        assert source.random() == expected


def test_distilling_needs_no_label_and_brings_the_features_nearer(tiny_encoder, tiny_images):
    bare = replace(tiny_images.train, labels=None, class_names=())
    for head in (True, False):
        model = make(tiny_encoder, tiny_images, translator="identity" if head else "linear", head=head)
        table = finetune(model, bare, parts="all", teacher=tiny_encoder, steps=[1, 40])
        first, last = table["loss"]
        assert last < 0.9 * first
        assert table["accuracy"].isna().all()
    with pytest.raises(toast.InputError, match="no labels to train on"):
        finetune(model, bare)


def test_labels_lower_the_loss(model, tiny_images):
    table = finetune(model, tiny_images.train, test=tiny_images.test, parts="all", steps=[1, 40])
    assert table["loss"].iloc[1] < table["loss"].iloc[0]


def test_a_fine_tuned_model_opens_with_toastlib_and_without(model, tiny_images, tmp_path):
    finetune(model, tiny_images.train, steps=2)
    model.save_pretrained(tmp_path / "tuned")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
    assert changed(copied(model), again) == set()
    pixels, _ = next(tiny_images.test.batches(8))
    with torch.no_grad():
        save_file({"pixels": pixels, "logits": model(pixels).logits.contiguous()}, tmp_path / "expected.safetensors")
    program = (
        "import torch; from safetensors.torch import load_file\n"
        "from transformers import AutoModelForImageClassification\n"
        "model = AutoModelForImageClassification.from_pretrained('tuned', trust_remote_code=True).eval()\n"
        "expected = load_file('expected.safetensors')\n"
        "with torch.no_grad(): found = model(expected['pixels']).logits\n"
        "torch.testing.assert_close(found, expected['logits'])\n"
    )
    python = environment_without_toastlib(tmp_path / "venv")
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stderr


def test_the_encoder_changes_with_the_model(tiny_encoder, tiny_images):
    smaller = toast.approximate(tiny_encoder, PLAN, tiny_images.train, translator="linear")
    before, original = smaller.encode(tiny_images.test), tiny_encoder.encode(tiny_images.test)
    model = toast.saved_form(smaller, torch.nn.Linear(32, 3), NAMES)
    finetune(model, tiny_images.train, steps=2)
    assert not torch.equal(smaller.encode(tiny_images.test), before)
    assert torch.equal(tiny_encoder.encode(tiny_images.test), original)


def test_without_accelerate_it_says_what_to_install(model, tiny_images, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda package: None)
    with pytest.raises(toast.InputError, match=r"pip install 'toastlib\[train\]'"):
        finetune(model, tiny_images.train)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parts": "map"}, "Unknown part 'map': did you mean 'maps'"),
        ({"steps": -1}, "number of steps"),
        ({"steps": 2.5}, "number of steps"),
        ({"steps": []}, "number of steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_changes(model, tiny_images, wrong, message):
    before = copied(model)
    with pytest.raises(toast.InputError, match=message):
        finetune(model, tiny_images.train, **{"steps": 1} | wrong)
    assert changed(before, model) == set()


def test_parts_that_are_not_there_are_named(tiny_encoder, tiny_images):
    dropped = make(tiny_encoder, tiny_images, translator="identity")
    with pytest.raises(toast.InputError, match="no maps with weights"):
        finetune(dropped, tiny_images.train, parts="maps", steps=1)
    features = make(tiny_encoder, tiny_images, head=False)
    with pytest.raises(toast.InputError, match="no head with weights"):
        finetune(features, tiny_images.train, parts="maps+head", teacher=tiny_encoder, steps=1)
    with pytest.raises(toast.InputError, match="do not depend on the head"):
        finetune(dropped, tiny_images.train, parts="head", teacher=tiny_encoder, steps=1)
    with pytest.raises(toast.InputError, match="float32"):
        finetune(dropped.half(), tiny_images.train, steps=1)
