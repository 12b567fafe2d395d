"""Linear heads trained together are the heads that a plain loop trains one by one."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from toastlib.approximation.align import fit_alignment
from toastlib.data.images import load_images
from toastlib.errors import InputError
from toastlib.evaluation.probe import HeadConfig, Probe, absorb_alignment
from toastlib.models.hooks import collect_activations
from toastlib.models.loading import load_encoder

SEEDS = [3, 5]
SMALL = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 16, "min_steps": 0}


@pytest.fixture
def features() -> Tensor:
    """Three sets of features of 50 images, shape (3, 50, 6)."""
    return torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(50) % 4


def plain_head(features: Tensor, labels: Tensor, seed: int, epochs, learning_rate, batch_size, min_steps):
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
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    assert probe.weight_.shape == (3, 2, 6, 4)
    assert probe.bias_.shape == (3, 2, 1, 4)
    for row, values in enumerate(features):
        for column, seed in enumerate(SEEDS):
            head = plain_head(values, labels, seed, **SMALL)
            # Equal to float32 rounding (default tolerances): a batched product sums in another order.
            torch.testing.assert_close(probe.weight_[row, column], head.weight.mT)
            torch.testing.assert_close(probe.bias_[row, column, 0], head.bias)


def test_training_together_is_training_one_by_one(features, labels):
    together = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    for row in range(3):
        for column, seed in enumerate(SEEDS):
            alone = Probe(4, HeadConfig(seeds=[seed], **SMALL)).fit(features[row : row + 1], labels)
            torch.testing.assert_close(together.weight_[row, column], alone.weight_[0, 0])


def test_equal_features_get_equal_heads(features, labels):
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features[[0, 0]], labels)
    torch.testing.assert_close(probe.weight_[0], probe.weight_[1])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(features, labels):
    first, again, other = (
        Probe(4, HeadConfig(seeds=[seed], **SMALL)).fit(features, labels).weight_ for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


@pytest.mark.parametrize(("min_steps", "epochs"), [(0, 3), (12, 3), (13, 4), (40, 10)])
def test_whole_epochs_are_added_until_there_are_enough_steps(features, labels, min_steps, epochs):
    assert math.ceil(50 / SMALL["batch_size"]) == 4  # steps in an epoch
    asked = Probe(4, HeadConfig(seeds=[0], **SMALL | {"min_steps": min_steps})).fit(features, labels)
    expected = Probe(4, HeadConfig(seeds=[0], **SMALL | {"epochs": epochs})).fit(features, labels)
    assert torch.equal(asked.weight_, expected.weight_)


def test_predictions_are_the_largest_logits(features, labels):
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    predicted = probe.predict(features)
    assert predicted.shape == (3, 2, 50)
    logits = features[1] @ probe.weight_[1, 0] + probe.bias_[1, 0]
    assert torch.equal(predicted[1, 0], logits.argmax(1))


def test_heads_of_one_set_are_applied_to_every_set(features, labels):
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    frozen = probe.first().predict(features)
    assert torch.equal(frozen[0], probe.predict(features)[0])
    logits = features[2] @ probe.weight_[0, 1] + probe.bias_[0, 1]
    assert torch.equal(frozen[2, 1], logits.argmax(1))
    assert probe.weight_.shape[0] == 3


def test_separable_classes_are_learned(labels):
    features = nn.functional.one_hot(labels, 6).float()[None]
    probe = Probe(4, HeadConfig(seeds=SEEDS, learning_rate=0.1, min_steps=100)).fit(features, labels)
    assert (probe.predict(features) == labels).all()
    assert probe.score(features, labels) == 1


def test_no_gradient_is_left_on_the_heads(features, labels):
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    assert not probe.weight_.requires_grad
    assert not probe.bias_.requires_grad


def test_the_score_is_the_mean_accuracy_of_all_heads(features, labels):
    probe = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features, labels)
    accuracies = (probe.predict(features) == labels).double().mean(-1)
    assert accuracies.shape == (3, 2)
    assert probe.score(features, labels) == pytest.approx(accuracies.mean().item())
    assert probe.score(features.numpy(), labels.tolist()) == probe.score(features, labels)
    assert probe.first().score(features[1], labels) == pytest.approx(
        (probe.first().predict(features)[1] == labels).double().mean().item()
    )


def test_one_set_of_features_needs_no_dimension_for_sets(features, labels):
    one, sets = (Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(x, labels) for x in (features[0], features[:1]))
    assert torch.equal(one.weight_, sets.weight_)
    assert one.predict(features[0]).shape == (2, 50)
    assert torch.equal(one.predict(features[0]), sets.predict(features[:1])[0])
    assert torch.equal(one.predict(features), sets.predict(features))
    assert one.score(features[0], labels) == sets.score(features[:1], labels)
    arrays = Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features[0].numpy(), labels.numpy())
    assert torch.equal(arrays.weight_, one.weight_)
    assert arrays.predict(features[0].numpy()).shape == (2, 50)


def test_the_only_head_is_a_linear_layer(features, labels):
    probe = Probe(4, HeadConfig(seeds=[3], **SMALL)).fit(features[0], labels)
    torch.testing.assert_close(probe.to_linear()(features[1]), features[1] @ probe.weight_[0, 0] + probe.bias_[0, 0])
    for several in (Probe(4, HeadConfig(seeds=SEEDS, **SMALL)).fit(features[0], labels), None):
        several = several or Probe(4, HeadConfig(seeds=[3], **SMALL)).fit(features[:2], labels)
        with pytest.raises(InputError, match="The probe holds 2 heads: fit one on one set of features with one seed"):
            several.to_linear()


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_that_absorbed_an_alignment_sees_aligned_features(bias):
    features, target = torch.randn(50, 8), torch.randn(50, 8)
    fit = fit_alignment(features, target)
    linear = nn.Linear(8, 3, bias=bias)
    before = linear.weight.clone()
    aligned = fit.module()(features)
    torch.testing.assert_close(absorb_alignment(linear, fit)(features), linear(aligned), rtol=1e-4, atol=1e-4)
    assert torch.equal(linear.weight, before)
    probe = Probe(3, HeadConfig(seeds=[0, 1])).fit(torch.randn(2, 50, 8), torch.arange(50) % 3)
    weight, absorbed = probe.weight_.clone(), probe.absorb(fit)
    torch.testing.assert_close(
        features @ absorbed.weight_ + absorbed.bias_, aligned @ probe.weight_ + probe.bias_, rtol=1e-4, atol=1e-4
    )
    assert absorbed.bias_.shape == probe.bias_.shape
    assert torch.equal(probe.weight_, weight)


class TestHeadConfig:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"protocol": "frosen"}, r"^Unknown head 'frosen': did you mean 'frozen'"),
            ({"protocol": ("frozen", "retraned")}, r"^Unknown head 'retraned': did you mean 'retrained'"),
            ({"seeds": []}, r"^There is no seed: every head needs one, for example seeds=\[0, 1, 2\]\.$"),
            ({"seeds": 0}, "^seeds is a whole number from 1 on, not 0"),
        ],
    )
    def test_heads_that_cannot_be_trained_are_refused(self, options, says):
        with pytest.raises(InputError, match=says):
            HeadConfig(**options)

    def test_one_protocol_and_a_number_of_seeds_stand_for_tuples(self):
        config = HeadConfig()
        assert (config.protocol, config.seeds) == (("frozen",), (0, 1, 2))
        assert (config.learning_rate, config.min_steps, config.epochs, config.batch_size) == (1e-3, 1000, 5, 256)
        assert HeadConfig(["retrained", "frozen"], seeds=range(2, 4)) == HeadConfig(
            ("retrained", "frozen"), seeds=[2, 3]
        )
        assert HeadConfig(seeds=2).seeds == (0, 1)


class TestMLP:
    SETTINGS = SMALL | {"kind": "mlp", "epochs": 4}

    @staticmethod
    def by_a_plain_loop(features, labels, seed):
        """The released head, trained by `nn.Module`s from the same first weights, with the same images and dropout."""
        draw, width = torch.Generator().manual_seed(seed), features.shape[1]
        hidden, norm, last = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 4)
        for layer in (last, hidden):  # in the order in which they are drawn
            first = (torch.rand(width + 1, layer.out_features, generator=draw) * 2 - 1) * width**-0.5
            layer.weight.data, layer.bias.data = first[:-1].T.clone(), first[-1].clone()
        parts = [*hidden.parameters(), *norm.parameters(), *last.parameters()]
        optimiser = torch.optim.Adam(parts, lr=1e-2, weight_decay=1e-5)
        for _ in range(4):
            for rows in torch.randperm(len(labels), generator=draw).split(16):
                kept = (torch.rand(len(rows), width, generator=draw) >= 0.5) / 0.5
                logits = last(nn.functional.silu(norm(hidden(features[rows]) * kept)))
                optimiser.zero_grad()
                nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimiser.step()
        return nn.Sequential(hidden, norm, nn.SiLU(), last).eval()

    def test_each_head_is_the_one_that_a_plain_loop_trains(self, features, labels):
        probe = Probe(4, HeadConfig(seeds=SEEDS, **self.SETTINGS)).fit(features, labels)
        for row in range(3):
            for column, seed in enumerate(SEEDS):
                head = self.by_a_plain_loop(features[row], labels, seed)
                torch.testing.assert_close(probe.logits(features)[row, column], head(features[row]).detach())

    def test_training_together_is_training_one_by_one(self, features, labels):
        config = HeadConfig(seeds=SEEDS, **self.SETTINGS)
        together = Probe(4, config).fit(features, labels).logits(features)
        alone = Probe(4, config).fit(features[1], labels).logits(features[1])
        torch.testing.assert_close(together[1], alone[0])

    def test_it_learns_what_no_linear_head_can(self):
        """The sign of a product: exclusive or."""
        features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        labels = (features[:, 0] * features[:, 1] > 0).long()
        settings = {"seeds": 2, "learning_rate": 1e-2, "min_steps": 600, "batch_size": 64}
        linear, mlp = (Probe(2, HeadConfig(kind=kind, **settings)).fit(features, labels) for kind in ("linear", "mlp"))
        assert linear.score(features, labels) < 0.65
        assert mlp.score(features, labels) > 0.85

    def test_an_alignment_is_absorbed_by_the_hidden_layer(self, features, labels):
        probe = Probe(4, HeadConfig(seeds=2, **self.SETTINGS)).fit(features[0], labels)
        fit = fit_alignment(features[1], features[0])
        aligned = features[1] @ fit.weight_.float() + fit.bias_.float()
        torch.testing.assert_close(probe.absorb(fit).logits(features[1]), probe.logits(aligned), rtol=1e-3, atol=1e-4)

    def test_it_is_no_linear_layer_and_other_kinds_are_unknown(self, features, labels):
        probe = Probe(4, HeadConfig(seeds=1, **self.SETTINGS)).fit(features[0], labels)
        with pytest.raises(InputError, match="An MLP is no linear layer"):
            probe.to_linear()
        with pytest.raises(InputError, match="Unknown kind of head 'mpl': did you mean 'mlp'"):
            HeadConfig(kind="mpl")


@pytest.mark.parametrize("block", [0, 5, 11])
def test_a_probe_of_a_real_block_is_as_good_as_a_logistic_regression(block):
    """On the embedded encoder's CLS tokens: scikit-learn solves the regression to its end."""
    encoder = load_encoder("vit-mini", device="cpu")
    images = load_images("mnist-mini", encoder, train_size=500, test_size=400)
    train, test = (collect_activations(encoder, part, [block])[block] for part in (images.train, images.test))
    mean, deviation = train.mean(0), train.std(0)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    regression = LogisticRegression(C=0.1, max_iter=5000).fit(train, images.train.labels)
    expected = regression.score(test, images.test.labels)
    ours = Probe(10, HeadConfig(seeds=3)).fit(train, images.train.labels).score(test, images.test.labels)
    assert abs(ours - expected) < 0.03  # 400 images: two standard errors of a paired difference
