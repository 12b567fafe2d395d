"""Heads on features: one per set of features and seed, all trained together as one batched layer."""

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, silu

from toastlib.cache import cached
from toastlib.errors import InputError, real_number, unknown, whole_number
from toastlib.translators.linear import Ridge, linear_module

PROTOCOLS = ("retrained", "frozen", "own")
KINDS = ("linear", "mlp")
MLP_DROPOUT, MLP_DECAY = 0.5, 1e-5


@dataclass(frozen=True)
class HeadConfig:
    """How the heads of an evaluation are trained.

    Parameters
    ----------
    protocol
        ``"frozen"``: the head is trained on the original's features and kept for every plan. ``"retrained"``: a head is
        trained on the features of each plan (the paper's Table 1). ``"own"``: the checkpoint's classifier, which is not
        trained and has one answer for all seeds. Or several, as a tuple.
    seeds
        One head for each seed, which fixes first weights and the order of the images; n stands for seeds 0 to n-1.
    learning_rate, epochs, batch_size
        Of Adam, 1e-3 as in the paper's text (the authors' code has 1e-2); the paper's 5 epochs of batches of 256.
    min_steps
        Train for more epochs until Adam has taken this many steps. The paper's 5 epochs of 50,000 images are 980 steps;
        5 epochs of a thousand images are 20, which leave a head half trained. 0 trains the paper's epochs.
    kind
        ``"linear"``, or ``"mlp"``: one hidden layer as wide as the features, with dropout, a layer norm and SiLU, as
        in the authors' released code, which trains it for 50 epochs.

    Raises
    ------
    InputError
        If a name or number is none that heads can be trained with, or there is no protocol or seed.
    """

    protocol: str | Iterable[str] = "frozen"
    seeds: int | Iterable[int] = 3
    learning_rate: float = 1e-3
    min_steps: int = 1000
    epochs: int = 5
    batch_size: int = 256
    kind: str = "linear"

    def __post_init__(self) -> None:
        protocols = (self.protocol,) if isinstance(self.protocol, str) else tuple(self.protocol)
        if not isinstance(self.seeds, Iterable) or isinstance(self.seeds, str):
            whole_number("seeds", self.seeds, least=1)
        seeds = tuple(self.seeds if isinstance(self.seeds, Iterable) else range(self.seeds))
        for seed in seeds:
            whole_number("A seed", seed)
        for name, least in (("min_steps", 0), ("epochs", 0 if self.min_steps else 1), ("batch_size", 1)):
            whole_number(name, getattr(self, name), least)
        real_number("learning_rate", self.learning_rate, above=0)
        for protocol in protocols:
            if protocol not in PROTOCOLS:
                raise unknown("head", protocol, PROTOCOLS)
        if self.kind not in KINDS:
            raise unknown("kind of head", self.kind, KINDS)
        if not protocols:
            raise InputError(f"There is no head: choose from {', '.join(PROTOCOLS)}.")
        if not seeds:
            raise InputError("There is no seed: every head needs one, for example seeds=[0, 1, 2].")
        object.__setattr__(self, "protocol", protocols)
        object.__setattr__(self, "seeds", seeds)

    @classmethod
    def of(cls, head: "HeadConfig | str | None") -> Self:
        """The configuration itself, the one with all defaults for `None`, or with this protocol."""
        return head if isinstance(head, cls) else cls() if head is None else cls(head)


class Probe:
    """The paper's head: one linear layer, or the released code's MLP, trained with Adam on fixed features.

    Every set of features gets one head per seed. Training them together changes nothing but the time.

    Parameters
    ----------
    classes, config
        Number of classes; seeds and training, whose protocol is not used here.

    Attributes
    ----------
    weight_, bias_
        float32, shapes (sets, seeds, width, classes) and (sets, seeds, 1, classes); of an MLP, those of its last layer.
    """

    def __init__(self, classes: int, config: HeadConfig | None = None) -> None:
        whole_number("classes", classes, least=1)
        self.classes = classes
        self.config = HeadConfig.of(config)

    def fit(self, features: Tensor, labels: Tensor) -> Self:
        """Train the heads on labels (int64, shape (n,)), or read them from the cache.

        Features have shape (n, width); or (sets, n, width) for several sets of features of the same images. A warning
        if there are fewer images than the features' width: a linear head can then give them any labels.

        Raises
        ------
        InputError
            If there is no image, or not one label for each, or a label is none of the classes.
        """
        features = _as_sets(features)
        if labels is None:
            raise InputError("A head is trained on labels, and there are none.")
        labels, c = torch.as_tensor(labels).to(features.device), self.config
        if labels.dtype != torch.int64 or tuple(labels.shape) != (features.shape[1],) or not len(labels):
            kind = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
            raise InputError(f"Labels are int64, one for each of {features.shape[1]} images, not {kind}.")
        if (strange := labels[(labels < 0) | (labels >= self.classes)]).numel():
            raise InputError(f"Label {int(strange[0])} is none of the {self.classes} classes, which count from 0.")
        if len(labels) < (width := features.shape[2]):
            warnings.warn(
                f"{len(labels)} images train heads on features of width {width}: on so few a linear head can learn any "
                "labels, and its accuracy says little of the features.",
                stacklevel=2,
            )
        settings = (self.classes, list(c.seeds), c.epochs, c.learning_rate, c.batch_size, c.min_steps)
        settings += (c.kind,) * (c.kind != "linear")
        heads = cached(lambda: self._train(features, labels), "probe", features, labels, settings)
        self._heads = {name: part.to(features.device) for name, part in heads.items()}
        return self

    @property
    def weight_(self) -> Tensor:
        """See `Probe`."""
        return self._trained["weight"]

    @property
    def bias_(self) -> Tensor:
        """See `Probe`."""
        return self._trained["bias"]

    @property
    def _trained(self) -> dict[str, Tensor]:
        if not hasattr(self, "_heads"):
            raise InputError("The heads are not trained: call fit first.")
        return self._heads

    def _with(self, **heads: Tensor) -> "Probe":
        """A copy with some of its weights replaced."""
        probe = copy.copy(self)
        probe._heads = self._trained | heads
        return probe

    def _train(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        c = self.config
        generators = [torch.Generator().manual_seed(seed) for seed in c.seeds]
        width = features.shape[2]

        def layer(outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
            first = torch.stack([torch.rand(width + 1, outputs, generator=generator) for generator in generators])
            first = (first * 2 - 1) * width**-0.5  # uniform in +-1/sqrt(width), as `nn.Linear` starts
            first = first.to(features.device).expand(len(features), -1, -1, -1)
            return nn.Parameter(first[:, :, :-1].clone()), nn.Parameter(first[:, :, -1:].clone())

        heads, is_mlp = dict(zip(("weight", "bias"), layer(self.classes))), c.kind == "mlp"
        if is_mlp:
            heads |= dict(zip(("hidden", "hidden_bias"), layer(width)))
            heads |= {"scale": nn.Parameter(torch.ones_like(heads["hidden_bias"]))}
            heads |= {"shift": nn.Parameter(torch.zeros_like(heads["hidden_bias"]))}
        optimiser = torch.optim.Adam(heads.values(), lr=c.learning_rate, weight_decay=MLP_DECAY * is_mlp)
        epochs = max(c.epochs, math.ceil(c.min_steps / math.ceil(len(labels) / c.batch_size)))
        for _ in range(epochs):
            orders = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
            for rows in orders.to(features.device).split(c.batch_size, dim=1):  # (seeds, batch)
                batch = features.index_select(1, rows.flatten()).unflatten(1, rows.shape)
                if is_mlp:
                    kept = [torch.rand(rows.shape[1], width, generator=one) >= MLP_DROPOUT for one in generators]
                    batch = _hidden(heads, batch, torch.stack(kept).to(features.device) / (1 - MLP_DROPOUT))
                # (sets, seeds, classes, batch): few classes as the last dimension make a softmax several times slower.
                logits = heads["weight"].mT @ batch.mT + heads["bias"].mT
                targets = labels[rows].expand(len(features), -1, -1)
                loss = cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="sum") / rows.shape[1]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return {name: part.detach() for name, part in heads.items()}

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Logits of every head, float32, shape (sets, seeds, n, classes), from features as for `predict`."""
        heads, features = self._trained, _as_sets(features)[:, None]
        if "hidden" in heads:
            features = _hidden(heads, features)
        return features @ heads["weight"] + heads["bias"]

    @torch.inference_mode()
    def predict(self, features: Tensor) -> Tensor:
        """Predict classes, int64, shape (sets, seeds, n), or (seeds, n) from features of shape (n, width).

        Heads fitted on one set apply to every set: the paper's frozen head. An `InputError` if there are none yet.
        """
        predicted = self.logits(features).argmax(-1)
        return predicted if np.ndim(features) == 3 else predicted[0]

    def score(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy in [0, 1], mean over all heads."""
        predicted = self.predict(features)
        return (predicted == torch.as_tensor(labels).to(predicted.device)).double().mean().item()

    def first(self) -> "Probe":
        """The heads of the first set alone, to be applied to others."""
        return self._with(**{name: part[:1] for name, part in self._trained.items()})

    def to_linear(self) -> nn.Linear:
        """The only head as a layer, from (images, width) to (images, classes).

        Raises
        ------
        InputError
            If there are several heads, or it is an MLP.
        """
        if self.config.kind == "mlp":
            raise InputError("An MLP is no linear layer: train a head of kind 'linear'.")
        weight, bias = self.weight_.flatten(0, 1), self.bias_.flatten(0, 2)  # (heads, width, classes), (heads, classes)
        if len(weight) != 1:
            raise InputError(f"The probe holds {len(weight)} heads: fit one on one set of features with one seed.")
        return linear_module(weight[0], bias[0])

    def absorb(self, alignment: Ridge) -> "Probe":
        """A probe that gives for features what this one gives for aligned features; `alignment` is a fitted `Ridge`."""
        weight, bias = ("hidden", "hidden_bias") if self.config.kind == "mlp" else ("weight", "bias")
        absorbed, shift = _absorbed(self._trained[weight], alignment)
        return self._with(**{weight: absorbed, bias: self._trained[bias] + shift[..., None, :]})


def _hidden(heads: dict[str, Tensor], features: Tensor, kept: Tensor | float = 1) -> Tensor:
    """The hidden layer of MLPs, shape (sets, seeds, n, width); `kept` scales what dropout leaves."""
    hidden = layer_norm((features @ heads["hidden"] + heads["hidden_bias"]) * kept, features.shape[-1:])
    return silu(hidden * heads["scale"] + heads["shift"])


def absorb_alignment(layer: nn.Linear, alignment: Ridge) -> nn.Linear:
    """A linear layer that gives for features what the given one gives for aligned features."""
    absorbed = copy.deepcopy(layer)
    weight, shift = _absorbed(layer.weight.detach().mT, alignment)
    absorbed.weight.data = weight.mT.contiguous()
    absorbed.bias = nn.Parameter(shift if layer.bias is None else layer.bias.detach() + shift, requires_grad=False)
    return absorbed


def _absorbed(weight: Tensor, alignment: Ridge) -> tuple[Tensor, Tensor]:
    """Weights (..., width, classes) behind the alignment, and what its bias adds to the logits."""
    into, bias = (part.to(weight.device, torch.float64) for part in (alignment.weight_, alignment.bias_))
    return (into @ weight.double()).to(weight.dtype), (bias @ weight.double()).to(weight.dtype)


def _as_sets(features: Tensor) -> Tensor:
    features = torch.as_tensor(features).float()
    return features if features.ndim == 3 else features[None]
