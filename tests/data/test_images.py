"""Image sets: what is drawn, in which order, and how it reaches the encoder."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toastlib.data.builtin import ArrayTable, digits
from toastlib.data.images import Images, ImageSet, catalog, load_images, load_split, one_ahead
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError

HUB = Path(os.environ.get("TOASTLIB_HUB", "nowhere"))
SIZES = [(40, 60), (64, 64), (90, 50), (200, 120)]


def numbered(n):
    """Images that know their number: image k is of level k, and so is its label."""
    levels = torch.arange(n, dtype=torch.uint8)
    return Images(levels.view(-1, 1, 1, 1).expand(n, 3, 32, 32), levels.long(), tuple(map(str, range(n))))


def pictures_of_several_sizes():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


class TestBatches:
    def test_they_come_in_order_and_the_last_may_be_smaller(self):
        labels = [labels.tolist() for _, labels in numbered(7).batches(3)]
        assert labels == [[0, 1, 2], [3, 4, 5], [6]]

    def test_pixel_values_are_the_preprocessed_pixels(self):
        images = replace(numbered(7), preprocessing=Preprocessing(mean=(0, 0.5, 1), std=(1, 0.5, 2)))
        pixel_values = torch.cat([pixel_values for pixel_values, _ in images.batches(3)])
        level = torch.arange(7) / 255
        expected = torch.stack([level, 2 * level - 1, (level - 1) / 2], dim=1)
        torch.testing.assert_close(pixel_values, expected[..., None, None].expand(7, 3, 32, 32))

    def test_pixel_values_are_resized_as_the_encoder_expects(self):
        images = replace(numbered(2), preprocessing=Preprocessing(resize=(16, 24)))
        assert next(images.batches(2))[0].shape == (2, 3, 16, 24)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_pixel_values_are_of_the_encoders_type_and_labels_whole_numbers(self, dtype):
        pixel_values, labels = next(replace(numbered(3), dtype=dtype).batches(2))
        assert (pixel_values.dtype, labels.dtype) == (dtype, torch.int64)

    def test_without_labels_there_are_none(self):
        assert [labels for _, labels in replace(numbered(3), labels=None).batches(2)] == [None, None]


class TestOneAhead:
    def test_all_come_in_order(self):
        assert list(one_ahead(lambda item: item**2, range(5))) == [0, 1, 4, 9, 16]

    def test_of_nothing_there_is_nothing(self):
        assert list(one_ahead(str, [])) == []

    def test_the_next_is_made_while_one_is_used(self):
        made = {item: threading.Event() for item in range(3)}
        for item in one_ahead(lambda item: made[item].set() or item, range(3)):
            assert made[min(item + 1, 2)].wait(10)

    def test_an_error_comes_where_its_item_would(self):
        found = one_ahead(lambda item: 1 / item, [1, 2, 0, 4])
        assert [next(found), next(found)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(found)

    def test_one_who_stops_early_waits_for_no_more_than_one(self):
        made = []
        next(batches := one_ahead(lambda item: made.append(item) or item, range(100)))
        batches.close()
        assert made == [0, 1]


class TestSample:
    def test_it_draws_without_replacement(self):
        labels = numbered(50).sample(50, seed=0).labels
        assert sorted(labels.tolist()) == list(range(50))

    def test_images_keep_their_labels(self):
        sample = numbered(50).sample(20, seed=3)
        assert sample.pixels[:, 0, 0, 0].tolist() == sample.labels.tolist()
        assert sample.class_names == numbered(50).class_names

    def test_the_same_seed_draws_the_same_and_another_does_not(self):
        first, second, other = (numbered(50).sample(10, seed).labels.tolist() for seed in (0, 0, 1))
        assert first == second != other

    def test_a_larger_draw_begins_with_the_smaller(self):
        assert torch.equal(numbered(50).sample(30, 0).labels[:10], numbered(50).sample(10, 0).labels)

    def test_more_than_there_are_is_refused(self):
        with pytest.raises(InputError, match="51 images were asked for, and there are 50"):
            numbered(50).sample(51, seed=0)

    def test_without_labels_images_are_drawn_alone(self):
        assert replace(numbered(5), labels=None).sample(2, seed=0).labels is None


def test_another_count_of_labels_is_refused():
    with pytest.raises(InputError, match="There are 2 labels for 3 images"):
        Images(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))


@pytest.mark.parametrize(
    ("pixels", "labels", "says"),
    [
        (torch.rand(4, 3, 8, 8), None, "Pixels are uint8 .* not float32 of shape"),
        (
            torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
            None,
            r"\(images, 3, height, width\), not uint8 of shape \(4, 8, 8, 3\)",
        ),
        (np.zeros((4, 3, 8, 8), np.uint8), None, "not a ndarray"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0]), "Label 2 is none of the 2 classes"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, -1, 0]), "Label -1 is none of the 2 classes"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4), "Labels are int64, .* not float32"),
        (
            torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
            torch.zeros(4, dtype=torch.int32),
            "Labels are int64, .* not int32",
        ),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1], "not a list"),
    ],
)
def test_tensors_that_are_no_images_are_refused_when_they_are_made(pixels, labels, says):
    with pytest.raises(InputError, match=says):
        Images(pixels, labels, ("a", "b"))


class TestLoadImages:
    def test_digits_come_whole_and_as_the_encoder_expects_them(self, tiny_encoder):
        images = load_images("digits", tiny_encoder)
        assert (images.name, len(images.train), len(images.test)) == ("digits", 1197, 600)
        assert images.class_names == tuple("0123456789")
        assert tiny_encoder(next(images.test.batches(5))[0]).shape == (5, 32)

    def test_sizes_draw_from_each_split(self, tiny_encoder):
        whole = load_images("digits", tiny_encoder)
        small = load_images("digits", tiny_encoder, train_size=30, test_size=20, seed=5)
        for part, all_of_it, n in ((small.train, whole.train, 30), (small.test, whole.test, 20)):
            assert len({image.numpy().tobytes() for image in part.pixels}) == len(part) == n
            assert torch.equal(part.pixels, all_of_it.sample(n, seed=5).pixels)
            assert torch.equal(part.labels, all_of_it.sample(n, seed=5).labels)

    def test_size_zero_takes_all(self, tiny_encoder):
        assert len(load_images("digits", tiny_encoder, train_size=0, test_size=5).train) == 1197

    def test_too_few_rows_name_the_split_and_the_counts(self, tiny_encoder):
        with pytest.raises(InputError, match=r"The test split of 'digits' is too small: 601 images .* there are 600"):
            load_images("digits", tiny_encoder, train_size=10, test_size=601)

    def test_type_and_device_are_the_encoders(self, tiny_encoder):
        images = load_images("digits", tiny_encoder.to(torch.bfloat16), train_size=5, test_size=5)
        assert images.train.dtype == torch.bfloat16
        assert images.train.device == tiny_encoder.device

    def test_an_encoder_without_preprocessing_is_refused(self, tiny_encoder):
        tiny_encoder.preprocessing = None
        with pytest.raises(InputError, match=r"tiny does not say how its images are preprocessed"):
            load_images("digits", tiny_encoder)

    def test_an_unknown_set_is_refused_with_the_nearest_name(self, tiny_encoder):
        with pytest.raises(InputError, match="Unknown data set 'digit': did you mean 'digits'"):
            load_images("digit", tiny_encoder)

    def test_a_folder_that_is_not_there_is_refused(self, tiny_encoder, tmp_path):
        with pytest.raises(InputError, match=r"There is no data set folder .+nowhere"):
            load_images(str(tmp_path / "nowhere"), tiny_encoder)

    def test_an_image_folder_carries_its_own_name(self, tiny_encoder, image_folder):
        pictures = {
            f"{split}/{k}/0.png": image for split in ("train", "test") for k, image in enumerate(digit_images())
        }
        images = load_images(image_folder(pictures, "handwriting"), tiny_encoder)
        assert (images.name, images.class_names) == ("handwriting", ("0", "1"))
        assert images.train.pixels.shape == (2, 3, 8, 8)  # kept small until a batch is asked for

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_pictures_that_lie_in_splits_alone_have_no_labels(self, tiny_encoder, image_folder):
        pictures = {f"{split}/{k}.png": digit_images()[0] for split in ("train", "test") for k in range(3)}
        images = load_images(image_folder(pictures), tiny_encoder)
        assert (images.train.labels, images.test.labels, images.class_names) == (None, None, ())
        assert (len(images.train), len(images.test)) == (3, 3)

    def test_a_set_is_called_by_its_label_column_too(self, tiny_encoder, monkeypatch):
        monkeypatch.setattr("toastlib.data.images.open_table", lambda *args: digits())
        assert load_images("uoft-cs/cifar100:fine_label", tiny_encoder).name == "cifar100-fine"


def digit_images():
    return [Image.new("RGB", (8, 8), color) for color in ("black", "white")]


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"size": {"height": 48, "width": 48}, "crop_size": 32},
        {"size": {"shortest_edge": 48}, "crop_size": 32},
    ],
    ids=["resize", "resize and crop", "shortest edge and crop"],
)
def test_images_of_several_sizes_are_prepared_as_each_alone_would_be(tiny_encoder, image_folder, settings):
    from transformers import DeiTImageProcessorPil

    theirs = DeiTImageProcessorPil(resample=2, **settings)
    tiny_encoder.preprocessing = Preprocessing.from_config(theirs.to_dict())
    pictures = pictures_of_several_sizes()
    paths = {f"{split}/a/{k}.png": image for split in ("train", "test") for k, image in enumerate(pictures)}
    (actual, _), *_ = load_images(image_folder(paths), tiny_encoder).train.batches(8)
    expected = torch.cat([theirs(image, return_tensors="pt")["pixel_values"] for image in pictures])
    # Torch and PIL round by a grey level of 255 differently; divided by the standard deviation that is 0.00784.
    assert (actual - expected).abs().max() < 0.008


PREPARE = {
    "resize": Preprocessing(resize=(32, 32)),
    "resize and crop": Preprocessing(resize=(48, 48), crop=(32, 32)),
    "shortest edge and crop": Preprocessing(resize=48, crop=(32, 32), mode="bicubic"),
    "shortest edge": Preprocessing(resize=48),
}


class TestPhotographs:
    """Images larger than the encoder's input are resized as they are read."""

    def folder(self, image_folder, sizes):
        draw = np.random.default_rng(0)
        images = [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        names = [f"{split}/a/{k:02d}.png" for split in ("train", "test") for k in range(len(images))]
        return image_folder(dict(zip(names, images * 2))), images

    def full_size(self, image, preprocessing):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        (pixel_values, _), *_ = Images(pixels, None, (), preprocessing).batches()
        return pixel_values

    @pytest.mark.parametrize("preprocessing", PREPARE.values(), ids=PREPARE)
    @pytest.mark.parametrize("chunk", [2, 64])
    @pytest.mark.parametrize(
        "sizes",
        [
            [(60, 80)] * 5,
            [(24, 20)] * 5,
            [(60, 80), (60, 80), (90, 60), (60, 80), (90, 60)],
            [(24, 20)] * 3 + [(60, 50)] * 2,
        ],
        ids=["large", "small", "several", "small and large"],
    )
    def test_pixel_values_equal_those_of_the_full_size(
        self, tiny_encoder, image_folder, monkeypatch, sizes, chunk, preprocessing
    ):
        if preprocessing.resize == 48 and preprocessing.crop is None:
            sizes = sizes[:1] * 5  # a shorter edge alone leaves several shapes as they are
        monkeypatch.setattr("toastlib.data.images.CHUNK", chunk)
        tiny_encoder.preprocessing = preprocessing
        folder, images = self.folder(image_folder, sizes)
        (actual, _), *_ = load_images(folder, tiny_encoder).train.batches(8)
        assert torch.equal(actual, torch.cat([self.full_size(image, preprocessing) for image in images]))

    def test_large_ones_are_kept_at_the_encoders_size_and_small_ones_at_their_own(self, tiny_encoder, image_folder):
        folder, _ = self.folder(image_folder, [(60, 80)] * 5)
        assert load_images(folder, tiny_encoder).train.pixels.shape == (5, 3, 32, 32)
        assert load_images("digits", tiny_encoder, train_size=5, test_size=5).train.pixels.shape == (5, 3, 8, 8)

    @pytest.mark.parametrize("chunk", [2, 64])
    def test_many_lie_in_a_file_that_nobody_sees(self, tiny_encoder, image_folder, monkeypatch, tmp_path, chunk):
        folder, _ = self.folder(image_folder, [(24, 20)] * 3 + [(60, 50)] * 2)
        monkeypatch.setattr("toastlib.data.images.CHUNK", chunk)
        expected = load_images(folder, tiny_encoder).train.pixels
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        made, from_file = [], torch.from_file
        monkeypatch.setattr(torch, "from_file", lambda *args, **kwargs: made.append(args) or from_file(*args, **kwargs))
        monkeypatch.setattr("toastlib.data.transforms.IN_MEMORY", 0)
        assert torch.equal(load_images(folder, tiny_encoder).train.pixels, expected)
        assert made
        assert not any(tmp_path.glob("toastlib-*"))

    def test_no_more_than_a_chunk_is_read_at_a_time(self, tiny_encoder, monkeypatch):
        read = []
        monkeypatch.setattr("toastlib.data.images.CHUNK", 40)
        whole = ArrayTable.read
        monkeypatch.setattr(ArrayTable, "read", lambda table, rows: read.append(len(rows)) or whole(table, rows))
        load_images("digits", tiny_encoder, train_size=100, test_size=10)
        assert read == [40, 40, 20, 10]


def test_broken_images_are_left_out_and_counted_where_that_is_asked_for(tiny_encoder, image_folder):
    picture = Image.fromarray(np.full((8, 8, 3), 9, np.uint8))
    files = {f"{split}/{name}/{k}.png": picture for split in ("train", "test") for name in "ab" for k in range(5)}
    folder = image_folder(files | {"train/a/3.png": b"no picture", "train/b/0.png": b"none"})
    with pytest.raises(InputError, match=r"3\.png\) does not decode"):
        load_images(folder, tiny_encoder)
    with pytest.warns(UserWarning, match="The train split of .* 2 of 10 images do not decode and are left out"):
        images = load_images(folder, tiny_encoder, skip_broken=True)
    assert (len(images.train), len(images.test)) == (8, 10)
    assert images.train.labels.tolist() == [0] * 4 + [1] * 4
    assert (images.train.pixels == 9).all()


class TestStreamedSets:
    @pytest.fixture(autouse=True)
    def no_rest(self, monkeypatch):
        """`datasets` sleeps for five seconds when a stream of several files is closed."""
        monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)

    @pytest.fixture
    def stream(self, image_folder, monkeypatch):
        draw = np.random.default_rng(0)
        images = {
            f"{split}/{name}/{k:02d}.png": Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            for split, n in (("train", 10), ("validation", 5))
            for name in ("cat", "dog")
            for k in range(n)
        }
        folder = image_folder(images)
        monkeypatch.setitem(catalog.DATASETS, "big", catalog.DatasetEntry(folder, test="validation", streamed=True))
        monkeypatch.setitem(
            catalog.DATASETS,
            "big-val",
            catalog.DatasetEntry(folder, test="validation", train="validation", streamed=True),
        )

    @pytest.mark.usefixtures("stream")
    def test_a_draw_is_an_image_set_like_any_other(self, tiny_encoder):
        images = load_images("big", tiny_encoder, train_size=12, test_size=6)
        assert (images.name, len(images.train), len(images.test)) == ("big", 12, 6)
        assert images.class_names == ("cat", "dog")
        assert images.train.pixels.shape == (12, 3, 32, 32)
        assert len({image.numpy().tobytes() for image in images.train.pixels}) == 12

    @pytest.mark.usefixtures("stream")
    def test_one_split_can_give_training_and_test_images(self, tiny_encoder):
        images = load_images("big-val", tiny_encoder, train_size=8, test_size=2)
        assert len({image.numpy().tobytes() for part in (images.train, images.test) for image in part.pixels}) == 10

    @pytest.mark.usefixtures("stream")
    @pytest.mark.parametrize(
        ("sizes", "missing"), [({}, "train"), ({"train_size": 8}, "test"), ({"test_size": 8}, "train")]
    )
    def test_both_sizes_must_be_given(self, tiny_encoder, sizes, missing):
        message = f"'big' is streamed: say how many images to draw, for example {missing}_size=3000."
        with pytest.raises(InputError, match=f"^{message}$"):
            load_images("big", tiny_encoder, **sizes)

    @pytest.mark.usefixtures("stream")
    def test_shards_of_a_stream_are_its_images_dealt_out(self, tiny_encoder):
        images = load_images("big", tiny_encoder, train_size=13, test_size=1).train
        for k in range(2):
            part = load_split("big", tiny_encoder, "train", size=13, shard=(k, 2))
            assert torch.equal(part.pixels, images.pixels[k::2])
            assert torch.equal(part.labels, images.labels[k::2])

    @pytest.mark.usefixtures("stream")
    def test_a_stream_that_ends_early_is_told(self, tiny_encoder):
        with pytest.raises(InputError, match="The test split of 'big' is too small: it has 10 of 11 images"):
            load_images("big", tiny_encoder, train_size=5, test_size=11)


@pytest.mark.skipif(not HUB.is_dir(), reason="TOASTLIB_HUB does not name a folder of Hub data sets")
def test_real_rows_load_as_on_the_hub(tiny_encoder):
    images = load_images(
        str(HUB / "datasets/uoft-cs/cifar100:coarse_label"), tiny_encoder, train_size=300, test_size=100
    )
    assert (images.name, len(images.class_names)) == ("cifar100-coarse", 20)
    assert images.train.pixels.shape == (300, 3, 32, 32)
    assert len(images.train.labels.unique()) > 15
    assert 60 < images.train.pixels.float().mean() < 180  # photographs, not blanks


def test_a_set_numbers_its_classes_the_same_in_training_and_test():
    train, test = numbered(5), replace(numbered(5), class_names=numbered(5).class_names[::-1])
    with pytest.raises(InputError, match="The classes of mine are not the same, or in another order"):
        ImageSet("mine", train, test)
    ImageSet("mine", train, replace(test, labels=None))  # no accuracy is measured on these
