"""How many images go through an encoder at once."""

from types import SimpleNamespace

import pytest
import torch

from toastlib.errors import InputError
from toastlib.models import batch
from toastlib.models.batch import batch_of


@pytest.fixture
def on_a_gpu(monkeypatch):
    """An encoder of some size, as if it were on a GPU of so many GiB."""

    def made(width, blocks, gib):
        memory = SimpleNamespace(total_memory=gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
        model = SimpleNamespace(config=SimpleNamespace(image_size=224, patch_size=16))
        return SimpleNamespace(
            device=torch.device("cuda"),
            width=width,
            blocks=range(blocks),
            model=model,
            preprocessing=None,
            reads_text=False,
            special_tokens=1,
        )

    return made


def test_a_number_is_taken_as_it_is(tiny_encoder):
    assert batch_of(tiny_encoder, 7) == 7


def test_on_a_cpu_it_is_32(tiny_encoder):
    assert batch_of(tiny_encoder) == 32


def test_another_word_is_refused(tiny_encoder):
    with pytest.raises(InputError, match="a number of images or \"auto\", not 'large'"):
        batch_of(tiny_encoder, "large")


def test_a_large_gpu_gets_the_largest_batch(on_a_gpu):
    assert batch_of(on_a_gpu(384, 12, 80)) == batch.AT_MOST


@pytest.mark.parametrize("gib", [2, 8, 24])
def test_all_block_outputs_of_a_batch_fit_in_an_eighth_of_the_memory_and_twice_as_many_do_not(on_a_gpu, gib):
    size = batch_of(on_a_gpu(1024, 24, gib))
    taken = size * 25 * 197 * 1024 * 8
    assert taken <= gib * 2**30 / 8 < 2 * taken


def test_an_image_at_a_time_is_the_least(on_a_gpu):
    assert batch_of(on_a_gpu(4096, 80, 1)) == 1


def test_texts_count_by_the_longest(on_a_gpu):
    encoder = on_a_gpu(1024, 24, 8)
    encoder.reads_text, encoder.longest_text = True, 512
    assert 8 <= 2**30 / (512 * 1024 * 8 * 25) < 16
    assert batch_of(encoder) == 8
