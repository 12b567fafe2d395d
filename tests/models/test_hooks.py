"""Block outputs: the ones that the model computed, and nothing left behind."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES

from toastlib.data.tokens import TOKENS, select_tokens
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs, collect_activations
from toastlib.statistics.collect import collect_moments

EVERY_BLOCK = list(range(-1, 6))


def hook_count(encoder):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules())


@torch.no_grad()
def test_the_hidden_states_of_the_plain_model_are_recorded(tiny_model, tiny_encoder, pixel_values):
    plain = tiny_model("vit", num_hidden_layers=6)
    output = plain(pixel_values, output_hidden_states=True)
    with capture_outputs(tiny_encoder, EVERY_BLOCK) as h:
        tiny_encoder(pixel_values)
    assert sorted(h) == EVERY_BLOCK
    for block in EVERY_BLOCK[:-1]:
        assert torch.equal(h[block], output.hidden_states[block + 1])
    assert torch.equal(plain.layernorm(h[5]), output.last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_block_takes_the_output_of_the_one_before(tiny_model, pixel_values, family):
    encoder = Encoder(tiny_model(family), features="mean")
    with capture_outputs(encoder, range(-1, 5)) as h:
        encoder(pixel_values)
    shared = encoder.embed(pixel_values)
    assert torch.equal(h[-1], shared.hidden)
    for block in range(5):
        assert torch.equal(h[block], encoder.run_block(block, h[block - 1], shared))


@torch.no_grad()
def test_a_second_run_replaces_the_first(tiny_encoder, pixel_values):
    with capture_outputs(tiny_encoder, [2]) as h:
        tiny_encoder(pixel_values)
        first = h[2]
        tiny_encoder(pixel_values[:1])
    torch.testing.assert_close(h[2], first[:1])


def test_only_the_blocks_asked_for_are_recorded(tiny_encoder, pixel_values):
    with capture_outputs(tiny_encoder, [4, 1]) as h:
        tiny_encoder(pixel_values)
    assert set(h) == {1, 4}


@torch.no_grad()
def test_recording_changes_no_feature(tiny_encoder, pixel_values):
    before = tiny_encoder(pixel_values)
    with capture_outputs(tiny_encoder, EVERY_BLOCK):
        during = tiny_encoder(pixel_values)
    assert torch.equal(before, during)


def test_no_hook_stays_after_the_context(tiny_encoder):
    with capture_outputs(tiny_encoder, EVERY_BLOCK):
        assert hook_count(tiny_encoder) == 7
    assert hook_count(tiny_encoder) == 0


def test_no_hook_stays_after_an_error(tiny_encoder):
    with pytest.raises(RuntimeError, match="half way"), capture_outputs(tiny_encoder, EVERY_BLOCK):
        raise RuntimeError("half way")
    assert hook_count(tiny_encoder) == 0


@pytest.mark.parametrize("block", [-2, 6])
def test_a_block_outside_the_model_is_refused_and_leaves_no_hook(tiny_encoder, block):
    message = f"There is no block {block}: blocks count from 0 to 5"
    with pytest.raises(InputError, match=message), capture_outputs(tiny_encoder, [0, block]):
        pass
    assert hook_count(tiny_encoder) == 0


class TestSelectTokens:
    HIDDEN = torch.arange(2 * 5 * 3).view(2, 5, 3).float()  # 2 special tokens, then 3 patches

    def test_all_makes_a_row_of_every_token(self):
        assert torch.equal(select_tokens(self.HIDDEN, "all", 2), self.HIDDEN.reshape(10, 3))

    def test_cls_is_the_first_token_of_each_image(self):
        assert torch.equal(select_tokens(self.HIDDEN, "cls", 2), torch.tensor([[0.0, 1, 2], [15, 16, 17]]))

    def test_patch_leaves_the_special_tokens_out(self):
        patches = torch.cat([self.HIDDEN[0, 2:], self.HIDDEN[1, 2:]])
        assert torch.equal(select_tokens(self.HIDDEN, "patch", 2), patches)

    def test_mean_is_over_the_patches_of_each_image(self):
        assert torch.equal(select_tokens(self.HIDDEN, "mean", 2), self.HIDDEN[:, 3])  # the middle one of three

    def test_an_unknown_choice_is_refused_with_the_nearest_name(self):
        with pytest.raises(InputError, match="Unknown tokens 'patches': did you mean 'patch'"):
            select_tokens(self.HIDDEN, "patches", 2)


@pytest.mark.parametrize("collect", [collect_activations, collect_moments])
def test_the_cls_tokens_of_a_model_without_any_are_refused(tiny_model, tiny_images, collect):
    encoder = Encoder(tiny_model("siglip"), features="mean")
    with pytest.raises(InputError, match="This encoder has no CLS token: take tokens='mean', 'patch' or 'all'"):
        collect(encoder, tiny_images.test[:2], tokens="cls")


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_activations_of_a_set_are_those_of_its_batches(tiny_encoder, tiny_images, tokens):
    images = tiny_images.test[:20]
    kept = collect_activations(tiny_encoder, images, [-1, 3], tokens=tokens, batch_size=8)
    with capture_outputs(tiny_encoder, [-1, 3]) as h:
        tiny_encoder(next(images.batches(20))[0])
    rows = 20 * {"all": 17, "patch": 16}.get(tokens, 1)  # one special token
    shape = (20, 17, 32) if tokens == "positions" else (rows, 32)
    for block in (-1, 3):
        assert kept[block].shape == shape
        torch.testing.assert_close(kept[block], select_tokens(h[block], tokens, 1))


def test_without_a_choice_every_block_is_kept_in_float32(tiny_encoder, tiny_images):
    images = replace(tiny_images.test[:4], dtype=torch.bfloat16)
    kept = collect_activations(tiny_encoder.to(torch.bfloat16), images)
    assert list(kept) == EVERY_BLOCK
    assert {rows.dtype for rows in kept.values()} == {torch.float32}
