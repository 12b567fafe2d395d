"""Maps in sequence are fits on what the maps before them hand on."""

import pytest
import torch
from tiny import FAMILIES, TEXT_FAMILIES

from toastlib.approximation.replace import approximate
from toastlib.approximation.sequential import approximate_in_sequence
from toastlib.data.texts import Texts
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.sublayers import split_blocks
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_folds
from toastlib.translators.base import Linear


def states(encoder, inputs, block):
    with capture_outputs(encoder, [block]) as h, torch.inference_mode():
        encoder(inputs)
    return h[block]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_map_is_least_squares_on_the_states_that_it_will_see(tiny_model, tiny_images, family):
    encoder, images = Encoder(tiny_model(family), features="mean"), tiny_images.train[:40]
    smaller = approximate_in_sequence(encoder, "0->2 3->4", images, "linear", batch_size=16)
    inputs, _ = next(images.batches(40))
    seen = states(smaller, inputs, 2)  # block 3, behind block 0 and the first map
    wanted = states(encoder, inputs, 4)
    oracle = torch.linalg.lstsq(seen.double().flatten(0, 1), wanted.double().flatten(0, 1)).solution
    fitted = smaller.blocks[3].translation.weight.mT.double()
    # Normal equations of float32 states: the products of a few hundred rows, not the solution, are what agrees.
    torch.testing.assert_close(seen.double() @ fitted, seen.double() @ oracle, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("translator", ["identity", "linear", "separate", "context"])
def test_one_span_is_fitted_as_it_is_at_once(tiny_encoder, tiny_images, translator):
    folds = collect_folds(tiny_encoder, tiny_images.train, [(1, 1), (1, 3)])
    at_once = approximate(tiny_encoder, "1->3", translator, folds)
    in_sequence = approximate_in_sequence(tiny_encoder, "1->3", tiny_images.train, translator)
    for first, second in zip(at_once.parameters(), in_sequence.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", ["-1->0 1->3", "0->1 1->2 3->5", "-1->1 1->2 2->4"])
def test_what_the_last_map_gives_comes_nearer_to_the_original(tiny_encoder, tiny_images, plan):
    plan = Plan.parse(plan)
    folds = collect_folds(tiny_encoder, tiny_images.train)
    inputs, _ = next(tiny_images.train.batches(90))
    end = plan.spans[-1].end
    wanted, left = states(tiny_encoder, inputs, end), {}
    for name, smaller in (
        ("at once", approximate(tiny_encoder, plan, "linear", folds)),
        ("in sequence", approximate_in_sequence(tiny_encoder, plan, tiny_images.train, Linear())),
    ):
        place = end - (len(tiny_encoder.blocks) - len(smaller.blocks))
        left[name] = (states(smaller, inputs, place) - wanted).square().sum().item()
    assert left["in sequence"] < left["at once"]  # on these images it is the least there is


def test_sublayers_and_texts_are_fitted_in_sequence(tiny_encoder, tiny_images, tiny_model, token_batch):
    smaller = approximate_in_sequence(split_blocks(tiny_encoder), "2->3 4->5", tiny_images.train[:20], "context")
    assert len(smaller.blocks) == 12
    texts = Texts(token_batch([3 + k % 9 for k in range(24)]))
    for family in TEXT_FAMILIES:
        encoder = Encoder(tiny_model(family), features="mean")
        smaller = approximate_in_sequence(encoder, "0->1 2->3", texts, "separate")
        features = torch.cat([smaller(tokens) for tokens, _ in texts.batches(8)])
        assert features.shape == (24, 32)
        assert torch.isfinite(features).all()


def test_what_cannot_be_fitted_is_refused(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="'mlp' is trained: in sequence only closed forms are fitted"):
        approximate_in_sequence(tiny_encoder, "1->2", tiny_images.train, "mlp")
    with pytest.raises(InputError, match="Span 4->9 leaves the model"):
        approximate_in_sequence(tiny_encoder, "4->9", tiny_images.train)
    with pytest.raises(InputError, match="3 images cannot be parted into 5 folds"):
        approximate_in_sequence(tiny_encoder, "1->2", tiny_images.train[:3])
