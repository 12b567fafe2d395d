"""Maps trained by gradient descent on rows: the paper's two rivals of the closed form, and a stronger one.

The same rows and the same seed give the same map.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from toastlib.models.layers import Parallel
from toastlib.translators.base import Rows, Translator, check_rows
from toastlib.translators.least_squares import share
from toastlib.translators.linear import Linear

HELD_OUT, PATIENCE, TOLERANCE = 0.1, 3, 1e-3
"""Of `WarmStartMLP`: share of the rows held out, the last ones; a learning rate ends after so many epochs in a row that
each lower the least held-out error by less than the tolerance, as a share of it."""


class MLP(Translator):
    """The paper's MLP (Table 5): half as wide inside, trained from scratch on all rows at once.

    Full-batch steps of Adam, their number and size the paper's by default. `seed` fixes first weights and dropout.

    `map_` is the trained module, float32, and `losses_` the mean squared error before each step, shape (steps,).
    """

    name = "mlp"
    needs_activations = True

    def __init__(self, seed: int = 0, steps: int = 300, learning_rate: float = 1e-3) -> None:
        self.seed = seed
        self.steps = steps
        self.learning_rate = learning_rate

    def build(self, width: int) -> nn.Module:
        """Linear, GELU, Linear with ``width // 2`` units inside."""
        return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def fit(self, X: Rows, Y: Rows, special_tokens: int = 0) -> Self:
        """Train the map from X to Y, which are as for `Translator.fit`."""
        source, target = (rows.float().flatten(0, -2) for rows in check_rows(X, Y))
        with training(self.seed, source.device):
            source, target = source.clone(), target.clone()  # inference tensors cannot be trained on
            network = self.build(source.shape[1]).to(source.device)
            self.losses_ = torch.stack(self._train(network, source, target)).cpu()
        self.map_ = network.eval().requires_grad_(False)
        self.residual_ = share((target - self.map_(source)).square().sum(), target.square().sum())
        return self

    def module(self) -> nn.Module:
        """A copy of the trained network, without dropout."""
        return copy.deepcopy(self.map_)

    def _train(self, network: nn.Module, source: Tensor, target: Tensor) -> list[Tensor]:
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        return [_step(optimiser, network, source, target) for _ in range(self.steps)]


class ResMLP(MLP):
    """The paper's Res-MLP (Table 5): two layers added to their normed input, and normed again.

    Width inside and `dropout`, the share of inner units left out of each step, are those of the authors' code, which
    leaves dropout on when the map is used; here it is off. The scale of the last norm starts at 1 and moves by about
    `learning_rate` in a step: 300 steps cannot reach block outputs much longer or shorter than ``sqrt(width)``.
    """

    name = "res-mlp"

    def __init__(self, seed: int = 0, steps: int = 300, learning_rate: float = 1e-3, *, dropout: float = 0.2) -> None:
        super().__init__(seed, steps, learning_rate)
        self.dropout = dropout

    def build(self, width: int) -> nn.Module:
        """LayerNorm; Linear, SiLU, Dropout, Linear added to the normed input; LayerNorm."""
        layers = (nn.Linear(width, width), nn.SiLU(), nn.Dropout(self.dropout), nn.Linear(width, width))
        return nn.Sequential(nn.LayerNorm(width), Parallel(nn.Identity(), nn.Sequential(*layers)), nn.LayerNorm(width))


class WarmStartMLP(MLP):
    """A trained map that starts from the closed form: ``f(h) = h W + b + MLP(h)``, with the paper's MLP.

    W starts at the least-squares map and the MLP at zero; inputs are standardised while training. Mini-batches of Adam
    go on until the held-out error stops falling, `max_epochs` at most; the learning rate then falls to a tenth, twice.
    The state of least held-out error is kept. `seed` is that of the initial weights and of the order of the rows.

    `losses_` is the mean squared error on the held-out rows, of the least-squares map and after each epoch.
    """

    name = "warm-start-mlp"

    def __init__(
        self, seed: int = 0, learning_rate: float = 1e-3, batch_size: int = 256, *, max_epochs: int = 50
    ) -> None:
        self.seed = seed
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs

    def build(self, width: int) -> nn.Module:
        """The sum of a linear layer and the paper's MLP, with one bias for both."""
        mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width, bias=False))
        return Parallel(nn.Linear(width, width), mlp)

    def _train(self, network: nn.Module, source: Tensor, target: Tensor) -> list[Tensor]:
        kept = len(source) - max(1, round(HELD_OUT * len(source)))
        scale = target[:kept].square().mean().sqrt()
        mean, deviation = source[:kept].mean(0), source[:kept].std(0)
        deviation = torch.where(deviation > 0, deviation, 1)
        weight = Linear().fit(source[:kept], target[:kept]).weight_.float() / scale
        with torch.no_grad():  # computes (rows * deviation + mean) @ weight, to which the MLP adds nothing yet
            network.straight.weight.copy_((deviation[:, None] * weight).mT)
            network.straight.bias.copy_(mean @ weight)
            network.bent[-1].weight.zero_()
        losses = self._descend(network, (source - mean) / deviation, target / scale, kept)
        with torch.no_grad():  # reads the rows themselves from here on, no standardised ones
            for layer in (network.straight, network.bent[0]):
                layer.weight /= deviation
                layer.bias -= layer.weight @ mean
            for last in (network.straight.weight, network.straight.bias, network.bent[-1].weight):
                last *= scale
        return [loss * scale.square() for loss in losses]

    def _descend(self, network: nn.Module, source: Tensor, target: Tensor, kept: int) -> list[Tensor]:
        """Three learning rates, each from the best state so far; leaves the network in the best one."""

        @torch.no_grad()
        def held_out_loss() -> Tensor:
            return mse_loss(network(source[kept:]), target[kept:])

        losses = [held_out_loss()]
        best = copy.deepcopy(network.state_dict())
        for fall in (1, 10, 100):
            optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate / fall)
            stale = 0
            for _ in range(self.max_epochs):
                for chosen in torch.randperm(kept).to(source.device).split(self.batch_size):
                    _step(optimiser, network, source[chosen], target[chosen])
                loss, lowest = held_out_loss(), min(losses)
                losses.append(loss)
                stale = 0 if loss < (1 - TOLERANCE) * lowest else stale + 1
                if loss < lowest:
                    best = copy.deepcopy(network.state_dict())
                if stale == PATIENCE:
                    break
            network.load_state_dict(best)
        return losses


@contextlib.contextmanager
def training(seed: int, device: torch.device) -> Iterator[None]:
    """Gradients on, whatever the caller has; random numbers from the seed, and the caller's as they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _step(optimiser: torch.optim.Optimizer, network: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """One step of descent; the loss before it."""
    loss = mse_loss(network(source), target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()
