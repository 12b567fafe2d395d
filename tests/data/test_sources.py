"""Tables of rows: image folders, parquet files and streams, and the errors in them."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from toastlib.data.catalog import DatasetEntry, dataset_entry
from toastlib.data.sources import CHUNK, DatasetTable, StreamedTable, decode, open_table
from toastlib.errors import InputError

GENERATOR = np.random.default_rng(0)
TWO_LABELS = {"fine": [0, 1, 2, 3], "coarse": [0, 0, 1, 1]}


def picture(mode="RGB", height=12, width=10):
    pixels = GENERATOR.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image):
    """The image as a data set keeps it: bytes of a PNG, and no path."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pictures(n):
    return [encoded(picture()) for _ in range(n)]


def rgb(image):
    return np.array(image.convert("RGB"))


def classes_in(folder, **counts):
    """Paths of an image folder: ``classes_in("train", cat=2)`` has train/cat/0.png and train/cat/1.png."""
    return {f"{folder}/{name}/{k}.png": picture() for name, n in counts.items() for k in range(n)}


def open_folder(folder, image=None, seed=0):
    return open_table(dataset_entry(folder), image, seed)


def read_all(table):
    return table.read(list(range(len(table))))


@pytest.fixture
def parquet(tmp_path):
    """Factory: ``parquet({"image": ..., "label": ...}, test={...})`` writes the splits as the Hub lays them out."""

    def write(columns, types=None, **others):
        import datasets

        features = types and datasets.Features({name: type_ for name, type_ in types.items() if name in columns})
        for split, content in {"train": columns, **others}.items():
            rows = datasets.Dataset.from_dict(content, features)
            rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        return str(tmp_path)

    return write


@pytest.fixture(scope="module")
def of():
    """Column types: an image, class labels of those names, or a plain value."""
    import datasets

    return {"image": datasets.Image(), "classes": lambda *names: datasets.ClassLabel(names=list(names))} | {
        kind: datasets.Value(kind) for kind in ("int64", "string", "bool", "float32")
    }


class TestImageFolders:
    def test_train_and_test_folders_are_the_splits(self, image_folder):
        files = classes_in("train", cat=3, dog=2) | classes_in("test", cat=1, dog=2)
        train, test = open_folder(image_folder(files))
        assert train.class_names == test.class_names == ("cat", "dog")
        assert read_all(train)[1].tolist() == [0, 0, 0, 1, 1]
        assert read_all(test)[1].tolist() == [0, 1, 1]
        expected = [rgb(image) for path, image in files.items() if path.startswith("test")]
        assert all(np.array_equal(image, other) for image, other in zip(read_all(test)[0], expected))

    def test_without_a_test_split_a_fifth_by_class_is_lent(self, image_folder):
        train, test = open_folder(image_folder(classes_in(".", cat=10, dog=20)))
        assert Counter(read_all(train)[1].tolist()) == {0: 8, 1: 16}
        assert Counter(read_all(test)[1].tolist()) == {0: 2, 1: 4}

    def test_the_lent_fifth_is_disjoint_and_follows_the_seed(self, image_folder):
        folder = image_folder(classes_in(".", cat=10, dog=20))

        def drawn(seed):
            return [{image.tobytes() for image in read_all(table)[0]} for table in open_folder(folder, seed=seed)]

        train, test = drawn(0)
        assert len(train | test) == 30
        assert drawn(0) == [train, test]
        assert drawn(1) != [train, test]

    def test_validation_stands_in_for_test(self, image_folder):
        files = classes_in("train", cat=2, dog=2) | classes_in("validation", cat=3, dog=3)
        assert [len(table) for table in open_folder(image_folder(files))] == [4, 6]

    def test_a_folder_without_classes_has_no_labels(self, image_folder):
        train, test = open_folder(image_folder({f"{k}.png": picture() for k in range(10)}))
        assert (train.class_names, read_all(train)[1]) == ((), None)
        assert (len(train), len(test)) == (8, 2)

    def test_a_class_with_one_image_cannot_lend_any(self, image_folder):
        with pytest.raises(InputError, match=r"has no split 'test', and its 21 rows, or those of a class, are too few"):
            open_folder(image_folder(classes_in(".", cat=20, dog=1)))

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"Data set '.*' cannot be loaded: .*any data files"):
            open_folder(str(tmp_path))

    def test_without_a_train_split_the_splits_are_named(self, parquet, tmp_path):
        folder = parquet({"label": [0]}, test={"label": [0]})
        (tmp_path / "train-00000-of-00001.parquet").unlink()
        with pytest.raises(InputError, match="has no split 'train', only test"):
            open_folder(folder)


class TestDecoding:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
    def test_images_of_every_mode_become_rgb(self, image_folder, mode):
        image = picture(mode)
        suffix = "jpg" if mode == "CMYK" else "png"
        folder = image_folder({f"train/a/0.{suffix}": image, f"test/a/0.{suffix}": image})
        (decoded,), _ = read_all(open_folder(folder)[0])
        with Image.open(f"{folder}/train/a/0.{suffix}") as written:
            assert np.array_equal(decoded, rgb(written.convert("RGBA") if mode == "P" else written))
        assert (decoded.shape, decoded.dtype) == ((12, 10, 3), np.uint8)

    def test_16_bit_grey_keeps_its_scale(self, image_folder):
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
        deep = Image.fromarray(levels * 257)
        (decoded,), _ = read_all(open_folder(image_folder({"train/a/0.png": deep, "test/a/0.png": deep}))[0])
        assert np.array_equal(decoded, np.repeat(levels[..., None], 3, axis=-1))

    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
    )
    @pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "gif", "webp", "jpg", "ppm", "jp2", "tga", "ico", "avif"])
    def test_a_picture_of_any_mode_and_format_is_what_pillow_shows_or_refused(self, tmp_path, mode, suffix):
        """Pillow clips numbers of more than 8 bits when it makes them RGB; all else it converts as people expect."""
        file, numbers = tmp_path / f"one.{suffix}", GENERATOR.integers(0, 60000, (32, 32)).astype(np.int32)
        try:
            image = Image.fromarray(numbers).convert(mode) if mode in "IF" else picture("RGBA", 32, 32).convert(mode)
            image.save(file)
            Image.open(file).load()  # Pillow before 13 cuts a TIFF of YCbCr short
        except (OSError, ValueError, KeyError) as error:
            pytest.skip(f"Pillow cannot write it: {error}")
        with Image.open(file) as written:
            deep = written.mode.startswith("I;16") or (written.mode, suffix) == ("I", "ppm")
            if written.mode in ("I", "F") and not deep:
                with pytest.raises(InputError, match=r"one\.\w+\) does not decode: "):
                    decode({"path": str(file), "bytes": None}, 0)
                return
            expected = written if deep else rgb(written.convert("RGBA") if written.mode == "P" else written)
            expected = np.array(expected)[..., None] / 257 if deep else expected
        decoded = decode({"path": str(file), "bytes": None}, 0)
        assert np.abs(decoded.astype(float) - expected).max() <= 1

    @pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_16_bits_keep_their_scale_in_either_order_of_bytes(self, tmp_path, suffix, order):
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
        file = tmp_path / f"one.{suffix}"
        if suffix == "pgm":
            file.write_bytes(b"P5 16 16 65535\n" + levels.astype(">u2").tobytes())
        elif order == ">":
            Image.frombytes("I;16B", (16, 16), levels.astype(">u2").tobytes()).save(tmp_path / "one.tiff")
            file = tmp_path / "one.tiff"
        else:
            Image.fromarray(levels).save(file)
        decoded = decode({"path": str(file), "bytes": None}, 0)
        assert np.array_equal(decoded[..., 0], levels // 257)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photographs_stand_upright(self, image_folder, orientation):
        import datasets

        photo = picture()
        buffer = io.BytesIO()
        exif = photo.getexif()
        exif[0x0112] = orientation
        photo.save(buffer, "PNG", exif=exif)
        folder = image_folder({"train/a/0.png": buffer.getvalue(), "test/a/0.png": buffer.getvalue()})
        (decoded,), _ = read_all(open_folder(folder)[0])
        theirs = datasets.Image().decode_example({"bytes": buffer.getvalue(), "path": None})
        assert np.array_equal(decoded, rgb(theirs))

    def test_only_the_rows_asked_for_are_decoded(self, parquet, of):
        images = pictures(4)
        images[1] = {"bytes": b"no image", "path": None}
        folder = parquet({"image": images}, {"image": of["image"]}, test={"image": images})
        assert len(open_folder(folder)[0].read([3, 0])[0]) == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"bytes": b"no image", "path": "cat.png"}, r"Image 2 \(cat\.png\) does not decode: no known image format"),
            ({"bytes": encoded(picture())["bytes"][:-40], "path": None}, r"Image 2 \(embedded\) does not decode: .+"),
            (None, "Image 2 is missing"),
        ],
        ids=["no image", "truncated", "missing"],
    )
    def test_an_image_that_does_not_decode_is_named(self, parquet, of, content, message):
        images = [*pictures(2), content, *pictures(2)]
        folder = parquet({"image": images}, {"image": of["image"]}, test={"image": pictures(1)})
        with pytest.raises(InputError, match=message):
            read_all(open_folder(folder)[0])


class TestColumns:
    @pytest.fixture
    def two_labels(self, parquet, of):
        columns = {"img": pictures(4), **TWO_LABELS}
        types = {"img": of["image"], "fine": of["classes"]("a", "b", "c", "d"), "coarse": of["classes"]("x", "y")}
        return parquet(columns, types, test=columns)

    @pytest.mark.parametrize(("column", "names"), [("fine", ("a", "b", "c", "d")), ("coarse", ("x", "y"))])
    def test_the_name_may_say_which_label_column(self, two_labels, column, names):
        train, _ = open_folder(f"{two_labels}:{column}")
        assert train.class_names == names
        assert read_all(train)[1].tolist() == TWO_LABELS[column]

    def test_several_label_columns_ask_for_one(self, two_labels):
        with pytest.raises(InputError, match=r"has the label columns fine, coarse: name one, for example '.+:coarse'"):
            open_folder(two_labels)

    def test_an_unknown_label_column_is_refused_with_the_nearest_name(self, two_labels):
        with pytest.raises(InputError, match="Unknown label column 'corse': did you mean 'coarse'"):
            open_folder(f"{two_labels}:corse")

    def test_an_unknown_image_column_is_refused_with_the_nearest_name(self, two_labels):
        with pytest.raises(InputError, match="Unknown image column 'imgs': did you mean 'img'"):
            open_folder(f"{two_labels}:fine", image="imgs")

    def test_a_column_that_holds_no_images_is_refused(self, two_labels):
        with pytest.raises(InputError, match="The column 'fine' holds no images"):
            open_folder(f"{two_labels}:coarse", image="fine")

    def test_several_image_columns_ask_for_one(self, parquet, of):
        columns = {"left": pictures(2), "right": pictures(2)}
        with pytest.raises(InputError, match="has the image columns left, right: name one by image_column"):
            open_folder(parquet(columns, {"left": of["image"], "right": of["image"]}, test=columns))

    def test_no_image_column_is_refused_with_the_columns_there_are(self, parquet):
        columns = {"text": ["a", "b"], "target": [0, 1]}
        with pytest.raises(InputError, match="has no image column, only text, target"):
            open_folder(parquet(columns, test=columns))

    @pytest.mark.parametrize("name", ["image", "img"])
    def test_images_kept_as_plain_bytes_are_found_by_name(self, parquet, name):
        columns = {name: [image["bytes"] for image in pictures(3)], "label": [0, 1, 0]}
        train, _ = open_folder(parquet(columns, test=columns))
        images, labels = read_all(train)
        assert images[0].shape == (12, 10, 3)
        assert labels.tolist() == [0, 1, 0]


class TestLabels:
    @pytest.fixture
    def labelled(self, parquet, of):
        """Factory: a set with those labels of that type, and others in its test split."""

        def write(kind, train, test):
            types = {"img": of["image"], "label": of[kind]}
            first, second = ({"img": pictures(len(labels)), "label": labels} for labels in (train, test))
            return parquet(first, types, test=second)

        return write

    def test_strings_become_numbers_in_the_order_of_the_alphabet(self, labelled):
        train, test = open_folder(labelled("string", ["dog", "cat", "emu"], ["emu", "cat"]))
        assert train.class_names == test.class_names == ("cat", "dog", "emu")
        assert read_all(train)[1].tolist() == [1, 0, 2]
        assert read_all(test)[1].tolist() == [2, 0]

    def test_whole_numbers_stay_and_name_themselves(self, labelled):
        train, _ = open_folder(labelled("int64", [3, 0, 11], [0]))
        assert train.class_names == tuple(map(str, range(12)))
        assert read_all(train)[1].tolist() == [3, 0, 11]

    def test_yes_and_no_become_one_and_zero(self, labelled):
        train, _ = open_folder(labelled("bool", [True, False], [True]))
        assert read_all(train)[1].tolist() == [1, 0]

    def test_fractions_are_refused(self, labelled):
        with pytest.raises(InputError, match="The label column 'label' holds float32 values"):
            open_folder(labelled("float32", [0.5, 1.5], [0.5]))

    def test_lists_are_refused(self, parquet):
        columns = {"image": pictures(2), "labels": [[0, 1], [1]]}
        with pytest.raises(InputError, match="The label column 'labels' holds List values"):
            open_folder(parquet(columns, test=columns))

    @pytest.mark.parametrize(
        ("kind", "labels"),
        [("string", ["cat", None, "dog", None]), ("int64", [0, None, 1, -1]), ("int64", [0, -1, 1, None])],
    )
    def test_missing_labels_are_counted_and_the_first_is_named(self, labelled, kind, labels):
        train, _ = open_folder(labelled(kind, labels, labels))
        with pytest.raises(InputError, match="2 images have no label, row 1 among them"):
            read_all(train)

    def test_rows_with_labels_can_be_read_beside_rows_without(self, labelled):
        train, _ = open_folder(labelled("string", ["cat", None, "dog"], ["cat"]))
        assert train.read([2, 0])[1].tolist() == [1, 0]

    @pytest.mark.parametrize(("kind", "new"), [("string", "cow"), ("int64", 7), ("int64", -3)])
    def test_a_label_that_training_does_not_know_is_refused(self, labelled, kind, new):
        known = ["cat", "dog"] if kind == "string" else [0, 1]
        _, test = open_folder(labelled(kind, known, [*known, new]))
        with pytest.raises(InputError, match=f"The label {new!r} is none of the 2 classes of the training images"):
            read_all(test)

    def test_missing_labels_are_told_before_a_fifth_is_lent(self, parquet, of):
        columns = {"img": pictures(5), "label": [0, 1, None, 1, 0]}
        with pytest.raises(InputError, match="1 images have no label, row 2 among them"):
            open_folder(parquet(columns, {"img": of["image"], "label": of["int64"]}))


def numbered(first, last):
    """Rows whose images know their number."""
    images = [encoded(Image.new("RGB", (4, 4), (k, 0, 0))) for k in range(first, last)]
    return {"image": images, "label": [k % 3 for k in range(first, last)], "text": ["about"] * (last - first)}


class TestStreams:
    @pytest.fixture(autouse=True)
    def no_rest(self, monkeypatch):
        """`datasets` sleeps for five seconds when a stream of several files is closed."""
        monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)

    @pytest.fixture
    def folder(self, tmp_path, of):
        """Three files of 30 training rows each, numbered 0 to 89, and 20 rows for validation, 200 to 219."""
        import datasets

        types = datasets.Features({"image": of["image"], "label": of["classes"]("a", "b", "c"), "text": of["string"]})
        files = {f"train-{k:05d}-of-00003": numbered(30 * k, 30 * k + 30) for k in range(3)}
        for name, rows in (files | {"validation-00000-of-00001": numbered(200, 220)}).items():
            datasets.Dataset.from_dict(rows, types).to_parquet(tmp_path / f"{name}.parquet")
        return str(tmp_path)

    def open_stream(self, folder, **settings):
        return open_table(DatasetEntry(folder, streamed=True, **settings), None, 0)

    def draw(self, table, n, seed=0):
        chunks = list(table.draw(n, seed))
        labels = [label for _, labels in chunks for label in labels.tolist()]
        return [int(image[0, 0, 0]) for images, _ in chunks for image in images], labels

    def test_a_draw_is_random_without_replacement_and_over_all_files(self, folder):
        train, _ = self.open_stream(folder)
        rows, _ = self.draw(train, 30)
        assert len(set(rows)) == 30
        assert rows != sorted(rows)
        assert {row // 30 for row in rows} == {0, 1, 2}

    def test_all_rows_are_in_the_longest_draw(self, folder):
        train, test = self.open_stream(folder)
        assert sorted(self.draw(train, 1000)[0]) == list(range(90))
        assert sorted(self.draw(test, 20)[0]) == list(range(200, 220))

    def test_labels_and_class_names_come_from_the_columns(self, folder):
        for table in self.open_stream(folder):
            rows, labels = self.draw(table, 20)
            assert labels == [row % 3 for row in rows]
            assert table.class_names == ("a", "b", "c")

    def test_the_seed_decides_and_a_larger_draw_begins_with_the_smaller(self, folder):
        train, _ = self.open_stream(folder)
        assert self.draw(train, 40)[0][:10] == self.draw(train, 10)[0] != self.draw(train, 10, seed=1)[0]

    @pytest.mark.parametrize("seed", range(3))
    def test_one_split_for_both_lends_a_fifth_that_never_overlaps(self, folder, seed):
        train, test = self.open_stream(folder, train="train", test="train")
        kept, lent = set(self.draw(train, 1000, seed)[0]), set(self.draw(test, 1000, seed)[0])
        assert (len(kept), len(lent), len(kept | lent)) == (72, 18, 90)

    def test_images_are_decoded_a_chunk_at_a_time_and_only_those_drawn(self, folder, monkeypatch):
        import toastlib.data.sources

        decoded = []
        monkeypatch.setattr(
            toastlib.data.sources, "decode", lambda cell, row: decoded.append(row) or np.zeros((4, 4, 3))
        )
        monkeypatch.setattr(toastlib.data.sources, "CHUNK", 8)
        train, _ = self.open_stream(folder)
        chunks = train.draw(20, 0)
        assert [len(next(chunks)[0]), len(decoded)] == [8, 8]
        assert [len(images) for images, _ in chunks] == [8, 4]
        assert len(decoded) == 20

    def test_other_columns_are_left_behind(self, folder):
        assert list(next(iter(self.open_stream(folder)[0].rows))) == ["image", "label"]

    def test_an_image_that_does_not_decode_is_named(self, parquet, of):
        images = [{"bytes": b"no image", "path": "cat.png"}]
        folder = parquet({"image": images}, {"image": of["image"]}, test={"image": images})
        with pytest.raises(InputError, match=r"Image 0 \(cat\.png\) does not decode: no known image format"):
            list(self.open_stream(folder)[0].draw(1, 0))

    def test_single_files_stream_too(self, image_folder):
        folder = image_folder(classes_in("train", cat=4, dog=5) | classes_in("test", cat=1, dog=1))
        train, _ = self.open_stream(folder)
        ((images, labels),) = train.draw(9, 0)
        assert {image.shape for image in images} == {(12, 10, 3)}
        assert Counter(labels.tolist()) == {0: 4, 1: 5}

    def test_classes_without_names_are_refused(self, parquet, of):
        columns = {"image": pictures(2), "label": [0, 1]}
        folder = parquet(columns, {"image": of["image"], "label": of["int64"]}, test=columns)
        with pytest.raises(InputError, match="The label column 'label' of a streamed set must say its class names"):
            self.open_stream(folder)

    @pytest.mark.parametrize(("gigabytes", "kind"), [(147, StreamedTable), (0.2, DatasetTable)])
    def test_hub_sets_are_streamed_where_the_hub_says_that_they_are_large(self, folder, monkeypatch, gigabytes, kind):
        import datasets

        asked, builder = [], datasets.load_dataset_builder(folder)
        builder.info.download_size = int(gigabytes * 1e9)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, **_: asked.append(path) or builder)
        assert {type(table) for table in open_table(DatasetEntry("owner/photographs"), None, 0)} == {kind}
        assert asked == ["owner/photographs"]

    def test_the_hub_failing_half_way_is_told(self, folder):
        class Failing:
            def shuffle(self, seed, buffer_size):
                yield {"image": encoded(picture()), "label": 0}
                raise ConnectionError("reset by peer")

        table = StreamedTable(Failing(), "image", "label", ("a",), "owner/photographs")
        with pytest.raises(
            InputError, match="'owner/photographs' is not on this machine and the Hub cannot be reached"
        ):
            list(table.draw(CHUNK, 0))


@pytest.mark.parametrize("name", ["cifar10", "uoft-cs/cifar10"])
def test_without_network_a_hub_set_names_the_embedded_one(name):
    with pytest.raises(
        InputError, match=r"'uoft-cs/cifar10' is not on this machine .* 'digits' is embedded and needs no"
    ):
        open_folder(name)


def test_opening_and_reading_prints_nothing(image_folder, capfd):
    train, _ = open_folder(image_folder(classes_in(".", cat=5, dog=5)))
    read_all(train)
    assert capfd.readouterr() == ("", "")
