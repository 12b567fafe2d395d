"""Shards: merged they are one worker's result; a killed job goes on; nothing of another job is taken in."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from toastlib.cli import main
from toastlib.data.images import load_images, load_split
from toastlib.errors import InputError
from toastlib.models.loading import load_encoder
from toastlib.runs.shards import ShardedJob, collect_shards, load_moments, write_shard
from toastlib.statistics.collect import collect_moments

SIZE = 23  # so that shards differ in length
JOB = ShardedJob("vit-mini", "digits", size=SIZE, seed=3, features=True)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("vit-mini", device="cpu")


@pytest.fixture(scope="module")
def images(encoder):
    return load_images("digits", encoder, train_size=SIZE, test_size=5, seed=3).train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    collect_shards(JOB, 3, folder)
    return folder


def test_shards_are_the_images_dealt_out(encoder, images):
    parts = [load_split("digits", encoder, "train", size=SIZE, seed=3, shard=(k, 3)) for k in range(3)]
    assert [len(part) for part in parts] == [8, 8, 7]
    for k, part in enumerate(parts):
        assert torch.equal(part.pixels, images.pixels[k::3])
        assert torch.equal(part.labels, images.labels[k::3])


def test_merged_shards_are_one_workers_result(encoder, images, folder):
    file = collect_shards(JOB, 3, folder)
    moments, tensors = load_moments(file), load_file(file)
    whole = collect_moments(encoder, images, folds=0)
    assert (moments.count, moments.blocks) == (whole.count, whole.blocks)
    for pair, product in whole.products.items():  # float64 sums in another order
        torch.testing.assert_close(moments.products[pair], product, rtol=1e-6, atol=1e-6 * product.abs().max())
    with torch.inference_mode():
        expected = torch.cat([encoder(x) for x, _ in images.batches()])
    torch.testing.assert_close(tensors["features"], expected, rtol=1e-4, atol=1e-4)  # float32 in batches of other sizes
    assert torch.equal(tensors["labels"], images.labels)


def test_what_is_there_is_read_and_what_is_missing_or_damaged_is_made(folder, monkeypatch):
    first = load_moments(collect_shards(JOB, 3, folder))
    (folder / "shard-1-of-3.safetensors").unlink()
    (folder / "shard-2-of-3.safetensors").write_bytes(b"damaged")
    made = []
    monkeypatch.setattr("toastlib.runs.shards.write_shard", lambda *args: made.append(args[1][0]) or write_shard(*args))
    again = load_moments(collect_shards(JOB, 3, folder))
    assert made == [1, 2]
    assert all(torch.equal(again.products[pair], product) for pair, product in first.products.items())


def test_another_jobs_shards_are_refused(folder):
    with pytest.raises(InputError, match="of another job or another version"):
        collect_shards(ShardedJob("vit-mini", "digits", size=SIZE, seed=4), 3, folder)


def test_a_shard_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr("toastlib.runs.shards.Path.replace", fail)
    with pytest.raises(OSError, match="full"):
        collect_shards(ShardedJob("vit-mini", "digits", size=4), 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("dear")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="is no file that toast moments wrote"):
        load_moments(tmp_path / "text")
    with pytest.raises(InputError, match="holds no moments"):
        load_moments(tmp_path / "other")


def test_the_command_says_where_the_moments_lie(tmp_path, capsys):
    settings = ["--shards", "2", "--size", "6", "--jobs", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["moments", "vit-mini", "digits", *settings]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip() == str(tmp_path / "moments.safetensors")
    assert load_moments(tmp_path / "moments.safetensors").count == 6 * 65
    assert main(["moments", "vit-mini", "digits", *settings, "--seed", "1"]) == 2
    assert "of another job" in capsys.readouterr().err


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="take one or more"):
        collect_shards(JOB, 0, tmp_path)
    with pytest.raises(InputError, match="no images"):
        collect_shards(ShardedJob("vit-mini", "digits", size=1), 2, tmp_path)


@pytest.mark.slow
def test_workers_of_their_own_give_the_same(folder, tmp_path):
    from joblib import Parallel

    job = ShardedJob("vit-mini", "digits", size=6)
    apart = load_moments(collect_shards(job, 2, tmp_path / "apart", run=Parallel(n_jobs=2)))
    here = load_moments(collect_shards(job, 2, tmp_path / "here"))
    files = [load_file(tmp_path / where / "shard-0-of-2.safetensors") for where in ("apart", "here")]
    for pair, product in here.products.items():  # workers may have another number of threads
        torch.testing.assert_close(apart.products[pair], product, rtol=1e-6, atol=1e-6 * product.abs().max())
    assert files[0].keys() == files[1].keys()
