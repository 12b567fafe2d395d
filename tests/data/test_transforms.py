"""Pixel values, held to what the checkpoints' own Hugging Face processors make of the same images."""

import numpy as np
import pytest
import torch
from PIL import Image

from toastlib.data.transforms import Preprocessing, stack_chunks
from toastlib.errors import InputError

BICUBIC, BILINEAR, NEAREST, LANCZOS = 3, 2, 0, 1
PROCESSORS = {
    "vit-mini": ("ViT", {"size": {"height": 32, "width": 32}}),
    "vit": ("ViT", {}),
    "deit": ("DeiT", {}),
    "clip": ("CLIP", {}),
    "dinov2": ("Bit", {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406]}),
    "siglip": ("Siglip", {}),
    "beit": ("Beit", {"do_center_crop": True}),
}
SIZES = [(8, 8), (28, 28), (32, 32), (300, 300), (201, 307), (97, 300)]
CASES = [(family, size) for family in PROCESSORS for size in SIZES]
CASES += [("clip", (307, 201)), ("dinov2", (307, 201))]  # for the others see the test of the order


def processor(family):
    """The processor of PIL, with the settings that the family's checkpoints have."""
    import transformers

    name, settings = PROCESSORS[family]
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


def noise(height, width):
    """The hardest image to resize, uint8 (height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_batch(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def levels_apart(preprocessing, ours, theirs):
    """Absolute difference of pixel values in grey levels, 0 to 255."""
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return (ours - theirs).abs() * std / preprocessing.scale


@pytest.mark.parametrize(("family", "size"), CASES)
def test_pixel_values_equal_those_of_the_checkpoints_processor(family, size):
    theirs = processor(family)
    preprocessing = Preprocessing.from_config(theirs.to_dict())
    image = noise(*size)
    expected = theirs(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    actual = preprocessing(as_batch(image))
    assert actual.shape == expected.shape
    # Torch and PIL round an interpolated value that lies between two levels now and then differently, and the
    # bicubic filter does so twice.
    apart = levels_apart(preprocessing, actual, expected)
    assert apart.max() < (1.01 if preprocessing.mode == "bilinear" else 2.01)
    assert apart.mean() < 0.03


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32)])
def test_small_images_reach_vit_mini_to_the_last_level(size):
    theirs = processor("vit-mini")
    image = noise(*size)
    expected = theirs(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    actual = Preprocessing.from_config(theirs.to_dict())(as_batch(image))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)  # float32 against float64 arithmetic


@pytest.mark.parametrize(("mode", "code"), [("bilinear", BILINEAR), ("bicubic", BICUBIC)])
def test_the_width_is_resized_before_the_height(mode, code):
    # The order matters, as there is a rounding in between. Before version 13 this was Pillow's order for all images,
    # and so the one that checkpoints were trained with; since then it begins with the height if that shrinks more.
    image = noise(300, 200)
    wide = Image.fromarray(image).resize((224, 300), code)
    expected = torch.from_numpy(np.array(wide.resize((224, 224), code))).permute(2, 0, 1)
    actual = Preprocessing(resize=(224, 224), mode=mode).resized(as_batch(image))[0]
    apart = (actual.int() - expected.int()).abs().float()
    assert apart.max() <= 2
    assert apart.mean() < 0.02


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (45, 101)])
def test_nearest_picks_the_pixels_that_pil_picks(size):
    image = noise(*size)
    expected = np.array(Image.fromarray(image).resize((32, 32), NEAREST))
    preprocessing = Preprocessing.from_config({"size": 32, "resample": NEAREST, "do_normalize": False})
    assert np.array_equal(preprocessing.resized(as_batch(image))[0].permute(1, 2, 0), expected)


def test_a_resampling_that_is_not_available_is_replaced_with_a_warning():
    with pytest.warns(UserWarning, match="Resampling code 1 is not available here; bicubic is used"):
        preprocessing = Preprocessing.from_config({"size": 32, "resample": LANCZOS, "do_normalize": False})
    assert preprocessing.mode == "bicubic"


def test_images_of_the_right_size_are_not_resampled():
    image = as_batch(noise(32, 32))
    assert torch.equal(Preprocessing(resize=(32, 32)).resized(image), image)


def test_what_the_configuration_switches_off_is_left_out():
    off = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    config = processor("deit").to_dict() | dict.fromkeys(off, False)
    image = as_batch(noise(20, 30))
    assert torch.equal(Preprocessing.from_config(config)(image), image.float())


def test_every_way_to_write_a_size_is_read():
    sizes = [32, {"height": 32, "width": 48}, {"shortest_edge": 32}]
    read = [Preprocessing.from_config({"size": size, "do_normalize": False}).resize for size in sizes]
    assert read == [(32, 32), (32, 48), 32]


def test_a_size_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"Image size \{'longest_edge': 980\} is not understood"):
        Preprocessing.from_config({"size": {"longest_edge": 980}, "do_normalize": False})


def test_images_that_a_resize_leaves_in_several_shapes_are_refused():
    images = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]
    with pytest.raises(InputError, match=r"32 x 48 and 48 x 32 pixels cannot be stacked: .* the shorter edge alone"):
        stack_chunks([(images, None)], 2, Preprocessing(resize=32))
    pixels, _, _ = stack_chunks([(images, None)], 2, Preprocessing(resize=32, crop=(32, 32)))
    assert pixels.shape == (2, 3, 32, 32)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match=r"Cannot crop 40 x 40 from images of \(32, 32\) pixels"):
        Preprocessing(crop=(40, 40))(as_batch(noise(32, 32)))


def test_each_image_of_a_batch_is_treated_alone():
    preprocessing = Preprocessing.from_config(processor("clip").to_dict())
    images = torch.cat([as_batch(noise(50, 70)), 255 - as_batch(noise(50, 70))])
    alone = torch.cat([preprocessing(image[None]) for image in images])
    assert torch.equal(preprocessing(images), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_arithmetic_is_float32_and_the_result_of_the_type_asked_for(dtype):
    image = as_batch(noise(32, 32))
    preprocessing = Preprocessing(resize=(32, 32))
    assert torch.equal(preprocessing(image, dtype), preprocessing(image).to(dtype))
    assert preprocessing(image, dtype).dtype == dtype
