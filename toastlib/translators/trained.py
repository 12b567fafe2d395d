"""Maps trained by gradient descent on the calibration rows: the paper's two rivals of the closed form, and a fair one.

They have the interface of `toastlib.translators.base` and read activations: block -> its outputs, shape (rows, width),
one row per token of the calibration images. The same rows and the same seed give the same map.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from toastlib.models.layers import Parallel
from toastlib.plan import Span
from toastlib.statistics.moments import Moments
from toastlib.translators.base import Activations, Linear


class MLP:
    """The paper's MLP (Table 5): half as wide inside, trained from scratch on all rows at once.

    Parameters
    ----------
    seed
        Of the first weights, and of the dropout where there is one.
    steps, learning_rate
        300 full-batch steps of Adam at 1e-3 on the mean squared error (the paper's).

    Attributes
    ----------
    map_
        The trained `nn.Module`, float32.
    losses_
        float32, shape (steps,): the mean squared error before each step.
    residual_
        ``|H[e] - f(H[s])|^2 / |H[e]|^2`` on the calibration rows, as for the closed forms.
    """

    name = "mlp"
    needs_activations = True

    def __init__(self, seed: int = 0, steps: int = 300, learning_rate: float = 1e-3) -> None:
        self.seed = seed
        self.steps = steps
        self.learning_rate = learning_rate

    def architecture(self, width: int) -> nn.Module:
        """Linear, GELU, Linear with ``width // 2`` units inside."""
        return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def fit(self, activations: Activations, span: Span) -> Self:
        """Train the map of `span` on its rows."""
        source, target = activations[span.start], activations[span.end]
        with _training(self.seed, source.device):
            source, target = source.clone(), target.clone()  # what was recorded in inference mode takes no part in it
            network = self.architecture(source.shape[1]).to(source.device)
            optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
            losses = []
            for _ in range(self.steps):
                losses.append(_step(optimiser, network, source, target))
        self.losses_ = torch.stack(losses).cpu()
        self.map_ = network.eval().requires_grad_(False)
        self.residual_ = relative_residual(self.map_, source, target)
        return self

    def module(self) -> nn.Module:
        """A copy of the trained network, without dropout."""
        return copy.deepcopy(self.map_)


class ResMLP(MLP):
    """The paper's Res-MLP (Table 5): two layers added to their normed input, and normed again.

    Width inside and dropout are those of the authors' code. That code leaves the dropout on when the map is used;
    here it is off once the map is trained.

    Parameters
    ----------
    seed, steps, learning_rate
        See `MLP`.
    dropout
        Share of the inner units left out of each training step.

    Notes
    -----
    The last layer is a norm whose scale starts at 1 and moves by about `learning_rate` in a step, so that 300 steps
    cannot bring the map's rows to the length of block outputs that are much longer or shorter than ``sqrt(width)``.
    """

    name = "res-mlp"

    def __init__(self, seed: int = 0, steps: int = 300, learning_rate: float = 1e-3, dropout: float = 0.2) -> None:
        super().__init__(seed, steps, learning_rate)
        self.dropout = dropout

    def architecture(self, width: int) -> nn.Module:
        """LayerNorm; Linear, SiLU, Dropout, Linear added to the normed input; LayerNorm."""
        layers = (nn.Linear(width, width), nn.SiLU(), nn.Dropout(self.dropout), nn.Linear(width, width))
        return nn.Sequential(nn.LayerNorm(width), Parallel(nn.Identity(), nn.Sequential(*layers)), nn.LayerNorm(width))


class WarmStartMLP:
    """A trained map that starts where the closed form ends: what gradient descent can add to it.

    ``f(h) = h W + b + MLP(h)``, with the paper's MLP beside a linear path. Both see standardised inputs while they
    are trained; afterwards that is folded into the weights. The linear path starts at the least-squares map and the
    MLP at zero, so that training starts at the closed form. Mini-batches of Adam go on until held-out rows stop
    getting better; the learning rate then falls to a tenth, twice. The best state on the held-out rows is kept.

    Parameters
    ----------
    seed
        Of the first weights and the order of the rows.
    learning_rate, batch_size
        The first learning rate of Adam, and rows per step.
    held_out
        Share of the rows that are held out: the last ones, which are whole images but for one.
    patience, tolerance
        So many epochs in a row that lower the held-out error by less than this share of it end a learning rate.
    max_epochs
        For each learning rate.

    Attributes
    ----------
    map_
        The trained `nn.Module`, float32.
    losses_
        float32, shape (1 + epochs,): mean squared error on the held-out rows, first that of the least-squares map.
    residual_
        ``|H[e] - f(H[s])|^2 / |H[e]|^2`` on all calibration rows, as for the closed forms.
    """

    name = "warm-start-mlp"
    needs_activations = True

    def __init__(
        self,
        seed: int = 0,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        held_out: float = 0.1,
        patience: int = 3,
        tolerance: float = 1e-3,
        max_epochs: int = 50,
    ) -> None:
        self.seed = seed
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.held_out = held_out
        self.patience = patience
        self.tolerance = tolerance
        self.max_epochs = max_epochs

    def architecture(self, width: int) -> nn.Module:
        """The sum of a linear layer and the paper's MLP, with one bias for both."""
        mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width, bias=False))
        return Parallel(nn.Linear(width, width), mlp)

    def fit(self, activations: Activations, span: Span) -> Self:
        """Train the map of `span` on its rows but for those held out."""
        source, target = activations[span.start], activations[span.end]
        kept = len(source) - max(1, round(self.held_out * len(source)))
        with _training(self.seed, source.device):
            source, target = source.clone(), target.clone()
            scale = target[:kept].square().mean().sqrt()
            mean, deviation = source[:kept].mean(0), source[:kept].std(0)
            deviation = torch.where(deviation > 0, deviation, 1)
            rows, goal = (source - mean) / deviation, target / scale
            network = self.architecture(source.shape[1]).to(source.device)
            weight = _least_squares(source[:kept], target[:kept])
            _warm_start(network, weight / scale, mean, deviation)
            self._train(network, rows, goal, kept)
            _fold(network, mean, deviation, scale)
        self.losses_ *= scale.square().cpu()
        self.map_ = network.eval().requires_grad_(False)
        self.residual_ = relative_residual(self.map_, source, target)
        return self

    def module(self) -> nn.Module:
        """A copy of the trained network."""
        return copy.deepcopy(self.map_)

    def _train(self, network: nn.Module, rows: Tensor, goal: Tensor, kept: int) -> None:
        """Three learning rates, each from the best state so far; leaves the network in the best one."""

        @torch.no_grad()
        def held_out_loss() -> Tensor:
            return mse_loss(network(rows[kept:]), goal[kept:])

        losses = [held_out_loss()]
        best = copy.deepcopy(network.state_dict())
        for fall in (1, 10, 100):
            optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate / fall)
            stale = 0
            for _ in range(self.max_epochs):
                for chosen in torch.randperm(kept).to(rows.device).split(self.batch_size):
                    _step(optimiser, network, rows[chosen], goal[chosen])
                loss, lowest = held_out_loss(), min(losses)
                losses.append(loss)
                stale = 0 if loss < (1 - self.tolerance) * lowest else stale + 1
                if loss < lowest:
                    best = copy.deepcopy(network.state_dict())
                if stale == self.patience:
                    break
            network.load_state_dict(best)
        self.losses_ = torch.stack(losses).cpu()


def relative_residual(function: Callable[[Tensor], Tensor], source: Tensor, target: Tensor) -> float:
    """``|target - function(source)|^2 / |target|^2`` over all rows: the share that the map leaves unexplained."""
    with torch.no_grad():
        return ((target - function(source)).square().sum() / target.square().sum()).item()


@contextlib.contextmanager
def _training(seed: int, device: torch.device) -> Iterator[None]:
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


def _least_squares(source: Tensor, target: Tensor) -> Tensor:
    """The closed form's matrix, float32, shape (width, width)."""
    moments = Moments.of({0: source, 1: target}, [(0, 0), (0, 1)])
    return Linear().fit(moments, Span(0, 1)).weight_.float()


@torch.no_grad()
def _warm_start(network: Parallel, weight: Tensor, mean: Tensor, deviation: Tensor) -> None:
    """Make the network compute ``(rows * deviation + mean) @ weight``, its MLP contributing nothing yet."""
    network.straight.weight.copy_((deviation[:, None] * weight).mT)
    network.straight.bias.copy_(mean @ weight)
    network.bent[-1].weight.zero_()


@torch.no_grad()
def _fold(network: Parallel, mean: Tensor, deviation: Tensor, scale: Tensor) -> None:
    """Make a network of standardised rows one of the rows themselves, its outputs multiplied by `scale`."""
    for layer in (network.straight, network.bent[0]):
        layer.weight /= deviation
        layer.bias -= layer.weight @ mean
    for last in (network.straight.weight, network.straight.bias, network.bent[-1].weight):
        last *= scale
