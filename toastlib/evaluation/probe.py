"""Linear heads: one per plan and seed, all trained together as one batched layer."""

import copy
import math
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toastlib.cache import cached
from toastlib.errors import InputError
from toastlib.translators.base import linear_module
from toastlib.translators.linear import Ridge


class Probe:
    """The paper's head: one linear layer trained with Adam on fixed features.

    Every set of features gets one head per seed. A seed fixes the head's first weights and the order of the images,
    alike for every set; the heads do not see each other, so training them together changes nothing but the time.

    Parameters
    ----------
    classes
        Number of classes.
    seeds
        One head for each.
    epochs, batch_size
        5 epochs of batches of 256 (the paper's).
    min_steps
        Go on for more epochs until there were this many steps of Adam: the paper's 5 epochs of 50,000 images are 980
        steps, but those of a thousand images 20, which leave a head half trained. 0 trains `epochs` and no more.
    learning_rate
        Of Adam: 1e-3 as in the paper's text; the authors' code has 1e-2.

    Attributes
    ----------
    weight_
        float32, shape (sets, seeds, width, classes).
    bias_
        float32, shape (sets, seeds, 1, classes).
    """

    def __init__(
        self,
        classes: int,
        seeds: list[int],
        epochs: int = 5,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        min_steps: int = 0,
    ) -> None:
        self.classes = classes
        self.seeds = list(seeds)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.min_steps = min_steps

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Train the heads, or read them where the same ones were trained before, see `toastlib.cache`.

        Parameters
        ----------
        features
            Shape (sets, n, width): one set per plan and translator, the images in the same order.
        labels
            int64, shape (n,).
        """
        features, labels = features.float(), labels.to(features.device)
        settings = (self.classes, self.seeds, self.epochs, self.learning_rate, self.batch_size, self.min_steps)
        heads = cached(lambda: self._train(features, labels), "probe", features, labels, settings)
        self.weight_, self.bias_ = heads["weight"].to(features.device), heads["bias"].to(features.device)
        return self

    def _train(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        draws = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        weight, bias = self._first_weights(features.shape[0], features.shape[2], draws, features.device)
        optimiser = torch.optim.Adam([weight, bias], lr=self.learning_rate)
        epochs = max(self.epochs, math.ceil(self.min_steps / math.ceil(len(labels) / self.batch_size)))
        for _ in range(epochs):
            orders = torch.stack([torch.randperm(len(labels), generator=draw) for draw in draws])
            for rows in orders.to(features.device).split(self.batch_size, dim=1):  # (seeds, batch)
                batch = features.index_select(1, rows.flatten()).unflatten(1, rows.shape)
                # (sets, seeds, classes, batch): few classes as the last dimension make a softmax several times slower.
                logits = weight.mT @ batch.mT + bias.mT
                targets = labels[rows].expand(len(features), -1, -1)
                loss = cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="sum") / rows.shape[1]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return {"weight": weight.detach(), "bias": bias.detach()}

    @torch.inference_mode()
    def predict(self, features: Tensor) -> Tensor:
        """Predicted classes, int64, shape (sets, seeds, n), from features of shape (sets, n, width).

        Heads fitted on one set are applied to every set: the paper's frozen head.
        """
        return (features.float()[:, None] @ self.weight_ + self.bias_).argmax(-1)

    def first(self) -> "Probe":
        """The heads of the first set alone, to be applied to others."""
        probe = copy.copy(self)
        probe.weight_, probe.bias_ = self.weight_[:1], self.bias_[:1]
        return probe

    def to_linear(self) -> nn.Linear:
        """The only head as a layer, from (images, width) to (images, classes).

        Raises
        ------
        InputError
            If there are several heads.
        """
        weight, bias = self.weight_.flatten(0, 1), self.bias_.flatten(0, 2)  # (heads, width, classes), (heads, classes)
        if len(weight) != 1:
            raise InputError(f"The probe holds {len(weight)} heads: fit one on one set of features with one seed.")
        return linear_module(weight[0], bias[0])

    def _first_weights(
        self, sets: int, width: int, draws: list[torch.Generator], device: torch.device
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """Uniform in +-1/sqrt(width), as `nn.Linear` starts."""
        bound = width**-0.5
        first = torch.stack([torch.rand(width + 1, self.classes, generator=draw) for draw in draws])
        first = ((first * 2 - 1) * bound).to(device).expand(sets, -1, -1, -1)
        return nn.Parameter(first[:, :, :-1].clone()), nn.Parameter(first[:, :, -1:].clone())


Head = TypeVar("Head", Probe, nn.Linear)


def fold_into(head: Head, alignment: Ridge) -> Head:
    """A head that gives for features what the given one gives for aligned features.

    Parameters
    ----------
    head
        A fitted `Probe`, or an `nn.Linear`.
    alignment
        From `align_features` or `fit_alignment`.

    Returns
    -------
    Probe or Linear
        A new head of the same kind, device and dtype.
    """
    folded = copy.deepcopy(head)
    probe = isinstance(head, Probe)
    old = head.weight_ if probe else head.weight.detach().mT  # (..., width, classes)
    weight, bias = (part.to(old.device, torch.float64) for part in (alignment.weight_, alignment.bias_))
    new, shift = (weight @ old.double()).to(old.dtype), (bias @ old.double()).to(old.dtype)
    if probe:
        folded.weight_, folded.bias_ = new, head.bias_ + shift[..., None, :]
    else:
        folded.weight.data = new.mT.contiguous()
        folded.bias = nn.Parameter(shift if head.bias is None else head.bias.detach() + shift, requires_grad=False)
    return folded
