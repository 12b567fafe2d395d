"""A saved model is a model of transformers like any other: what its common tests ask of a model class."""

import copy
import io

import pytest
import torch
from tiny import FAMILIES, make_tiny_model
from torch.nn import functional

from toastlib.approximation.replace import approximate
from toastlib.data.transforms import Preprocessing
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs

CLASSES = 3
LABELS = {
    "regression": (1, torch.tensor([[0.5], [-1.0]]), functional.mse_loss),
    "single_label_classification": (3, torch.tensor([0, 2]), functional.cross_entropy),
    "multi_label_classification": (
        3,
        torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
        functional.binary_cross_entropy_with_logits,
    ),
}
"""Kind of problem -> number of outputs, labels, and the loss that transformers documents for it."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_images):
    """Family -> the folder of a smaller encoder with maps in context."""
    made = {}
    for family in FAMILIES:
        features = "mean" if family in ("siglip", "beit") else "cls"
        model = make_tiny_model(family)
        encoder = Encoder(model, features=features, preprocessing=Preprocessing(resize=(32, 32)), name=family)
        made[family] = tmp_path_factory.mktemp("saved") / family
        smaller = approximate(encoder, "1->3", tiny_images.train[:40], translator="context")
        smaller.save_pretrained(made[family])
    return made


def open_with_classifier(folder, classes=CLASSES, **settings):
    """The model with a new classifier, the same every time."""
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    settings |= {"num_labels": classes, "ignore_mismatched_sizes": True}
    return AutoModelForImageClassification.from_pretrained(folder, **settings)


@pytest.fixture
def model(folders):
    return open_with_classifier(folders["vit"])


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_that_features_depend_on_is_trained(folders, pixels, family):
    model = open_with_classifier(folders[family]).train()
    model(pixels, labels=torch.tensor([0, 2])).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all("pooler" in name or "mask_token" in name or "head." in name for name in idle), idle


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_with_checkpointing(folders, pixels, family):
    gradients = []
    for checkpointing in (False, True):
        model = open_with_classifier(folders[family]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        model(pixels, labels=torch.tensor([0, 2])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("span", "position"), [("-1->1", 0), ("1->3", 2)])
def test_gradients_of_a_context_map_are_finite_for_a_black_image(tiny_images, family, span, position):
    """All patches of such an image are alike before block 0, and the root of their variance has no slope there."""
    features = "mean" if family in ("siglip", "beit") else "cls"
    encoder = Encoder(make_tiny_model(family), features=features, preprocessing=Preprocessing(resize=(32, 32)))
    smaller = approximate(encoder, span, tiny_images.train[:40], translator="context").requires_grad_(True)
    for hidden in (torch.zeros(2, 17, 32), torch.ones(2, 17, 32)):
        hidden.requires_grad_(True)
        smaller.blocks[position].translation(hidden).sum().backward()
        assert hidden.grad.isfinite().all()
    smaller(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(p.grad.isfinite().all() for p in smaller.parameters() if p.grad is not None)


@pytest.mark.parametrize("problem", LABELS)
def test_the_loss_is_that_of_the_kind_of_problem(folders, pixels, problem):
    outputs, labels, loss = LABELS[problem]
    model = open_with_classifier(folders["vit"], outputs, problem_type=problem).eval()
    output = model(pixels, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_hidden_states_keep_gradients(model, pixels):
    output = model(pixels, output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.logits.sum().backward()
    assert all(state.grad is not None for state in output.hidden_states)


def test_outputs_are_the_same_as_tuple_and_by_the_configuration(model, pixels):
    model.eval()
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
        as_tuple = model(pixels, output_hidden_states=True, return_dict=False)
        model.config.return_dict, model.config.output_hidden_states = False, True
        configured = model(pixels)
        encoder = model.toast(pixels)
    assert isinstance(configured, tuple)
    assert isinstance(encoder, tuple)
    for other in (as_tuple, configured):
        assert torch.equal(other[0], output.logits)
        assert all(map(torch.equal, other[1], output.hidden_states))


def test_a_capture_leaves_nothing_behind(model, pixels, tiny_encoder):
    with capture_outputs(tiny_encoder, [-1, 0, 3]):
        before = tiny_encoder.features(pixels)
    for part in (tiny_encoder, model):
        torch.save(part, io.BytesIO())  # fails on a hook that is a closure
        copy.deepcopy(part)
    assert torch.equal(tiny_encoder.features(pixels), before)
    model(pixels, output_hidden_states=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_saved_and_opened_again_it_computes_the_same(model, pixels, tmp_path):
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(open_with_classifier(tmp_path).eval()(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_opens_in_half_precision(folders, pixels, dtype):
    model = open_with_classifier(folders["vit"], dtype=dtype).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(pixels.to(dtype)).logits.isfinite().all()


def test_a_batch_has_no_say_in_the_answer_for_an_image(model, pixels):
    with torch.no_grad():
        model.eval()
        alone = torch.cat([model(image[None]).logits for image in pixels])
        torch.testing.assert_close(model(pixels).logits, alone)


@pytest.mark.parametrize("task", ["image-feature-extraction", "image-classification"])
def test_a_pipeline_takes_a_device_and_a_batch_size(folders, model, tmp_path, task):
    import numpy as np
    from PIL import Image
    from transformers import pipeline

    folder = folders["vit"]
    if task == "image-classification":
        folder = tmp_path
        model.save_pretrained(folder)
    images = [Image.fromarray(np.full((40, 30, 3), shade, np.uint8)) for shade in (0, 100, 255)]
    alone, batched = (pipeline(task, model=str(folder), device="cpu", batch_size=size)(images) for size in (1, 2))
    if task == "image-classification":
        alone, batched = ([[answer["score"] for answer in image] for image in run] for run in (alone, batched))
    assert len(batched) == 3
    np.testing.assert_allclose(np.array(batched), np.array(alone), rtol=1e-4, atol=1e-5)


def test_the_trainer_trains_it(folders, tmp_path):
    from transformers import Trainer, TrainingArguments

    draw = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.randn(3, 32, 32, generator=draw) + k % 3, "labels": k % 3} for k in range(24)]
    model = open_with_classifier(folders["vit"])
    with torch.no_grad():
        before = evaluate(model, data)
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3, "seed": 0}
    settings |= {"num_train_epochs": 4, "per_device_train_batch_size": 8, "gradient_checkpointing": True}
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path / "run"), save_strategy="no", **settings), train_dataset=data
    )
    trainer.train()
    assert evaluate(model, data) < before
    trainer.save_model(str(tmp_path / "tuned"))
    assert evaluate(open_with_classifier(tmp_path / "tuned"), data) == pytest.approx(evaluate(model, data), rel=1e-5)


@torch.no_grad()
def evaluate(model, data):
    pixels, labels = torch.stack([row["pixel_values"] for row in data]), torch.tensor([row["labels"] for row in data])
    return model.eval()(pixels, labels=labels).loss.item()
