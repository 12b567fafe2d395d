"""Linear heads trained together are the heads that a plain loop trains one by one."""

import math

import pytest
import torch
from torch import Tensor, nn

from toastlib.evaluation.probe import Probe

SEEDS = [3, 5]
SMALL = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 16}


@pytest.fixture
def features() -> Tensor:
    """Three sets of features of 50 images, shape (3, 50, 6)."""
    return torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(50) % 4


def plain_head(features: Tensor, labels: Tensor, seed: int, epochs: int, learning_rate: float, batch_size: int):
    """`nn.Linear` and `torch.optim.Adam`, from the same first weights and with the same order of images."""
    draw = torch.Generator().manual_seed(seed)
    width, classes = features.shape[1], int(labels.max()) + 1
    first = (torch.rand(width + 1, classes, generator=draw) * 2 - 1) * width**-0.5
    head = nn.Linear(width, classes)
    head.weight.data, head.bias.data = first[:-1].mT.clone(), first[-1].clone()
    optimiser = torch.optim.Adam(head.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=draw).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimiser.step()
    return head


def test_each_head_is_the_one_that_a_plain_loop_trains(features, labels):
    probe = Probe(4, SEEDS, **SMALL).fit(features, labels)
    assert probe.weight_.shape == (3, 2, 6, 4)
    assert probe.bias_.shape == (3, 2, 1, 4)
    for row, values in enumerate(features):
        for column, seed in enumerate(SEEDS):
            head = plain_head(values, labels, seed, **SMALL)
            # Equal to float32 rounding (default tolerances): a batched product sums in another order.
            torch.testing.assert_close(probe.weight_[row, column], head.weight.mT)
            torch.testing.assert_close(probe.bias_[row, column, 0], head.bias)


def test_training_together_is_training_one_by_one(features, labels):
    together = Probe(4, SEEDS, **SMALL).fit(features, labels)
    for row in range(3):
        for column, seed in enumerate(SEEDS):
            alone = Probe(4, [seed], **SMALL).fit(features[row : row + 1], labels)
            torch.testing.assert_close(together.weight_[row, column], alone.weight_[0, 0])


def test_equal_features_get_equal_heads(features, labels):
    probe = Probe(4, SEEDS, **SMALL).fit(features[[0, 0]], labels)
    torch.testing.assert_close(probe.weight_[0], probe.weight_[1])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(features, labels):
    first, again, other = (Probe(4, [seed], **SMALL).fit(features, labels).weight_ for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


@pytest.mark.parametrize(("min_steps", "epochs"), [(0, 3), (12, 3), (13, 4), (40, 10)])
def test_whole_epochs_are_added_until_there_are_enough_steps(features, labels, min_steps, epochs):
    assert math.ceil(50 / SMALL["batch_size"]) == 4  # steps in an epoch
    asked = Probe(4, [0], **SMALL, min_steps=min_steps).fit(features, labels)
    expected = Probe(4, [0], **SMALL | {"epochs": epochs}).fit(features, labels)
    assert torch.equal(asked.weight_, expected.weight_)


def test_predictions_are_the_largest_logits(features, labels):
    probe = Probe(4, SEEDS, **SMALL).fit(features, labels)
    predicted = probe.predict(features)
    assert predicted.shape == (3, 2, 50)
    logits = features[1] @ probe.weight_[1, 0] + probe.bias_[1, 0]
    assert torch.equal(predicted[1, 0], logits.argmax(1))


def test_heads_of_one_set_are_applied_to_every_set(features, labels):
    probe = Probe(4, SEEDS, **SMALL).fit(features, labels)
    frozen = probe.first().predict(features)
    assert torch.equal(frozen[0], probe.predict(features)[0])
    logits = features[2] @ probe.weight_[0, 1] + probe.bias_[0, 1]
    assert torch.equal(frozen[2, 1], logits.argmax(1))
    assert probe.weight_.shape[0] == 3


def test_separable_classes_are_learned(labels):
    features = nn.functional.one_hot(labels, 6).float()[None]
    probe = Probe(4, SEEDS, learning_rate=0.1, min_steps=100).fit(features, labels)
    assert (probe.predict(features) == labels).all()


def test_no_gradient_is_left_on_the_heads(features, labels):
    probe = Probe(4, SEEDS, **SMALL).fit(features, labels)
    assert not probe.weight_.requires_grad
    assert not probe.bias_.requires_grad
