"""FLOPs and parameters against formulas."""

import torch
from tiny import PATCHES

from toastlib.models.costs import flops
from toastlib.models.encoder import Encoder


def test_flops_are_those_of_the_formula(tiny_encoder, pixel_values):
    config, tokens = tiny_encoder.model.config, PATCHES + 1
    width, inner = config.hidden_size, config.intermediate_size
    projections, attention, mlp = 4 * tokens * width**2, 2 * tokens**2 * width, 2 * tokens * width * inner
    embedding = PATCHES * width * 3 * config.patch_size**2
    blocks, pooler = len(tiny_encoder.blocks) * (projections + attention + mlp), width**2
    per_image = 2 * (embedding + blocks + pooler)
    assert flops(tiny_encoder, pixel_values) == len(pixel_values) * per_image
    assert next(tiny_encoder.parameters()).device.type == "cpu"  # counting leaves the weights where they are


def test_flops_grow_with_the_batch(tiny_encoder, pixel_values):
    assert flops(tiny_encoder, pixel_values) == 3 * flops(tiny_encoder, pixel_values[:1])


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](hidden))


def test_a_multiplication_and_its_addition_are_two_flops():
    assert flops(Encoder(TwoLayers(), blocks="layers"), torch.randn(5, 8)) == 2 * (2 * 5 * 8 * 8)
