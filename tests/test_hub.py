"""Models and data sets from a Hub on this machine, by the libraries as they are, each process with its own cache."""

import io
import json
import os
import shutil
import subprocess
import sys

import hub_client as do
import numpy as np
import pandas as pd
import pytest
import transformers
from hub import Hub
from PIL import Image
from safetensors.numpy import load_file
from tiny import letter_tokenizer, make_tiny_model

from toastlib.errors import InputError

MODEL, CIFAR, SHARDS = "facebook/dinov2-small", "uoft-cs/cifar10", "me/shards"
SIZES = {"train_size": 12, "test_size": 6}


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def write_model(folder, seed):
    labels = {0: "cat", 1: "dog"}
    make_tiny_model("vit", seed=seed, head="ForImageClassification", id2label=labels).save_pretrained(folder)
    mean = [0.5, 0.4, 0.1 * (seed + 1)]
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=mean)
    processor.save_pretrained(folder)
    return folder


def write_writer(folder, seed):
    """A decoder with its head, and a tokenizer that knows one word more for each seed."""
    make_tiny_model("gpt2", seed=seed, head="LMHeadModel", tie_word_embeddings=False).save_pretrained(folder)
    words = letter_tokenizer()
    words.add_tokens(["toast"][:seed])
    words.save_pretrained(folder)
    return folder


def write_images(folder, seed, shards=1):
    """Parquet files of 32 training images each, and 8 test images: labels are the parity of the pictures' seeds."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})

    def write(name, numbers):
        rows = {"img": [Image.fromarray(picture(k)) for k in numbers], "label": [k % 2 for k in numbers]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / name)

    (folder / "data").mkdir(parents=True)
    for shard in range(shards):
        start = seed + 32 * shard
        write(f"train-{shard:05}-of-{shards:05}.parquet", range(start, start + 32))
    write("test-00000-of-00001.parquet", range(seed + 9000, seed + 9008))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    hub = Hub(root / "hub")
    hub.old = hub.add("model", MODEL, write_model(root / "old", 0), "main", "v1")
    hub.new = hub.add("model", MODEL, write_model(root / "new", 1))
    hub.old_images = hub.add("dataset", CIFAR, write_images(root / "old-images", 100), "main", "v1")
    hub.new_images = hub.add("dataset", CIFAR, write_images(root / "new-images", 200))
    hub.add("dataset", SHARDS, write_images(root / "shards", 1000, shards=24))
    for number, name in enumerate(("old-writer", "new-writer")):
        hub.add("model", "me/writer", write_writer(root / name, number), "main", *["v1"] * (number == 0))
    pickled = shutil.copytree(root / "old", root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hub.add("model", "me/pickled", pickled)
    (root / "empty").mkdir()
    (root / "empty" / "README.md").write_text("nothing yet")
    hub.add("model", "me/empty", root / "empty")
    for access in ("private", "gated"):
        hub.add("model", f"me/{access}", root / "old", access=access)
        hub.add("dataset", f"me/{access}-images", root / "old-images", access=access)
    hub.folders = root
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def clients(served, tmp_path_factory):
    """Two processes that reach the Hub, and one that is set offline."""
    home = tmp_path_factory.mktemp("home")
    reach = {"HF_ENDPOINT": served.url, "NO_PROXY": "127.0.0.1", "HF_TOKEN": "hf_token", "TOAST_CACHE": "off"}
    settings = {"online": {}, "second": {}, "offline": {"HF_HUB_OFFLINE": "1"}}
    made = {name: do.Client(**reach, HF_HOME=str(home / name), **more) for name, more in settings.items()}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def hub(served):
    served.reset()
    return served


@pytest.fixture
def client(clients):
    return clients["online"]


@pytest.fixture
def offline(clients):
    return clients["offline"]


def stored(hub, name):
    """The encoder's weights in a folder, read without toastlib."""
    model = transformers.ViTModel.from_pretrained(hub.folders / name, add_pooling_layer=False)
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


def assert_weights(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def assert_images(found, seed):
    """Each image that was drawn is one of the set, with its label."""
    for split, numbers in (("train", range(seed, seed + 32 * 24)), ("test", range(seed + 9000, seed + 9008))):
        numbered = {picture(k).tobytes(): k for k in numbers}
        pixels, labels = found[split]
        drawn = [numbered[image.transpose(1, 2, 0).tobytes()] for image in pixels]
        assert len(set(drawn)) == len(drawn) == SIZES[f"{split}_size"]
        assert [k % 2 for k in drawn] == labels.tolist()


def parts(folder):
    """Files that were begun and never finished."""
    return [path for path in folder.rglob("*incomplete*") if path.suffix != ".lock"]


def images(client, cache, name, **options):
    return client(do.images, cache, name, **SIZES | options)


def refused(call, *args, **kwargs):
    """The sentence of the `InputError`, and nothing else, that a client raises."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("name", "folder", "short"),
    [
        ("dinov2-s", "new", "dinov2-s"),
        (MODEL, "new", "dinov2-s"),
        (f"{MODEL}@main", "new", "dinov2-s@main"),
        (f"{MODEL}@v1", "old", "dinov2-s@v1"),
        ("dinov2-s@{old}", "old", "dinov2-s@{old:.7}"),
    ],
)
def test_a_model_its_preprocessing_and_its_classifier_are_of_one_revision(hub, client, tmp_path, name, folder, short):
    name, commit = name.format(old=hub.old), getattr(hub, folder)
    assert_weights(client(do.weights, tmp_path, name), stored(hub, folder))
    found = client(do.facts, tmp_path, name)
    assert found["name"] == short.format(old=hub.old)
    assert found["path"] == f"{MODEL}@{commit}"
    assert found["commits"] == [f"{MODEL}@{commit}"]
    assert found["mean"][2] == pytest.approx({"old": 0.1, "new": 0.2}[folder])
    expected = load_file(hub.folders / folder / "model.safetensors")["classifier.weight"]
    assert np.array_equal(found["classifier"], expected)


@pytest.mark.parametrize(
    ("name", "seed", "short"),
    [
        ("cifar10", 200, "cifar10"),
        (CIFAR, 200, "cifar10"),
        ("cifar10@v1", 100, "cifar10@v1"),
        (f"{CIFAR}@{{old_images}}", 100, "cifar10@{old_images:.7}"),
        (f"{CIFAR}@v1:label", 100, "cifar10@v1"),
    ],
)
def test_a_data_set_is_of_its_revision(hub, client, tmp_path, name, seed, short):
    found = images(client, tmp_path, name.format(**vars(hub)))
    assert_images(found, seed)
    assert found["name"] == short.format(**vars(hub))
    assert found["commits"] == [f"{CIFAR}@{hub.old_images if seed == 100 else hub.new_images}"]


@pytest.mark.parametrize(("name", "folder", "tokens"), [("me/writer", "new", 50), ("me/writer@v1", "old", 49)])
def test_a_language_model_and_its_tokenizer_are_of_one_revision(hub, client, tmp_path, name, folder, tokens):
    has_head, path, known, head = client(do.language, tmp_path, name)
    commit = hub.repositories["models", "me/writer"].refs["v1" if folder == "old" else "main"]
    assert (has_head, path, known) == (True, f"me/writer@{commit}", tokens)
    assert np.array_equal(head, load_file(hub.folders / f"{folder}-writer" / "model.safetensors")["lm_head.weight"])


def test_revisions_in_one_cache_are_kept_apart(hub, client, offline, tmp_path):
    """Where the Hub is not reached, `datasets` alone takes the newest revision that it has."""
    for name, seed in ((f"{CIFAR}@v1", 100), (CIFAR, 200), (f"{CIFAR}@v1", 100)):
        assert_images(images(client, tmp_path, name), seed)
    hub.reset()
    for name, seed, commit in ((f"{CIFAR}@v1", 100, hub.old_images), (CIFAR, 200, hub.new_images)):
        found = images(offline, tmp_path, name)
        assert_images(found, seed)
        assert found["commits"] == [f"{CIFAR}@{commit}"]
    assert "not on this machine" in refused(images, offline, tmp_path, f"{CIFAR}@{hub.old_images}")
    assert hub.requests == []
    hub.fail("", 500)
    for name, seed in ((f"{CIFAR}@v1", 100), (CIFAR, 200)):
        assert_images(images(client, tmp_path, name), seed)
    assert "answers 500" in refused(images, client, tmp_path, f"{CIFAR}@{hub.old_images}")


def test_keys_of_kept_features_tell_revisions_apart(hub, client, tmp_path):
    """They are made of weights and pixels: a name alone changes nothing."""
    names = (MODEL, CIFAR), (f"{MODEL}@main", f"{CIFAR}@main"), (f"{MODEL}@v1", CIFAR), (MODEL, f"{CIFAR}@v1")
    keys = [client(do.fingerprint_of, tmp_path, *pair) for pair in names]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


MODEL_CASES = {
    "@v9": f"The Hub has no revision 'v9' of model '{MODEL}': https://huggingface.co/{MODEL}/commits/main lists them.",
    "me/private": "The Hub shows no model 'me/private': check the name, or log in with `hf auth login` or set HF_TOKEN"
    " if it is private.",
    "me/gated": "Model 'me/gated' is gated: accept its conditions on https://huggingface.co/me/gated, then log in with"
    " `hf auth login` or set HF_TOKEN on this machine.",
    "me/missing": "The Hub shows no model 'me/missing': check the name, or log in with `hf auth login` or set HF_TOKEN"
    " if it is private.",
}


@pytest.mark.parametrize("name", MODEL_CASES)
def test_a_model_that_the_hub_does_not_give(hub, client, tmp_path, name):
    assert refused(client, do.weights, tmp_path, MODEL * name.startswith("@") + name) == MODEL_CASES[name]


def test_a_repository_without_a_model_that_can_be_read(hub, client, tmp_path):
    sentence = refused(client, do.weights, tmp_path, "me/empty")
    assert sentence == "Model 'me/empty' has no config.json on the Hub: it is no model that transformers opens."
    with pytest.raises(InputError, match=r"^Model 'me/pickled@\w+' cannot be loaded: .* model\.safetensors"):
        client(do.weights, tmp_path, "me/pickled")


@pytest.mark.parametrize("name", MODEL_CASES)
def test_a_data_set_that_the_hub_does_not_give(hub, client, tmp_path, name):
    expected = MODEL_CASES[name].replace("model", "data set").replace("Model", "Data set").replace(MODEL, CIFAR)
    expected = expected.replace("huggingface.co/", "huggingface.co/datasets/")
    given = CIFAR + name if name.startswith("@") else f"{name}-images"
    for access in ("private", "gated", "missing"):
        expected = expected.replace(f"me/{access}", f"me/{access}-images")
    assert refused(images, client, tmp_path, given) == expected


BUSY = {"Retry_After": "1"}
FAULTS = {
    "429": ({"status": 429, **BUSY}, "answers 429: it was asked too often; run this again in a while"),
    "500": ({"status": 500}, "answers 500: run this again in a while"),
    "401": ({"status": 401, "X_Error_Message": "Invalid credentials in Authorization header"}, "401: log in with"),
    "break": ({"cut": 500}, "the connection to the Hub breaks: run this again in a while"),
}
WHERE = {"weights": "model.safetensors", "small": "GET .*preprocessor_config.json", "first": ""}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_fetched_is_told_and_the_next_run_goes_on(hub, client, tmp_path, fault, where):
    settings, expected = FAULTS[fault]
    if where == "small" and fault == "break":
        settings = {"cut": 50}
    hub.fail(WHERE[where], **settings)
    sentence = refused(client, do.weights, tmp_path, MODEL)
    assert sentence.startswith(f"Model '{MODEL}")
    assert expected in sentence
    sent = len(hub.fetched("/config.json"))
    hub.faults.clear()
    assert_weights(client(do.weights, tmp_path, MODEL), stored(hub, "new"))
    assert parts(tmp_path) == []
    if where == "weights":
        assert len(hub.fetched("/config.json")) == sent == 1  # it was here already


@pytest.mark.parametrize("fault", FAULTS)
def test_a_data_set_that_cannot_be_fetched_is_told_and_the_next_run_goes_on(hub, client, tmp_path, fault):
    settings, expected = FAULTS[fault]
    hub.fail("train-00000", **settings)
    sentence = refused(images, client, tmp_path, CIFAR)
    assert sentence.startswith(f"Data set '{CIFAR}' cannot be fetched")
    assert expected in sentence
    hub.faults.clear()
    assert_images(images(client, tmp_path, CIFAR), 200)
    assert parts(tmp_path) == []


def test_a_connection_that_breaks_once_goes_on_where_it_broke(hub, client, tmp_path):
    hub.fail("GET .*model.safetensors", cut=5000, times=1)
    assert_weights(client(do.weights, tmp_path, MODEL), stored(hub, "new"))
    ranges = [span for verb, path, span in hub.requests if verb == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=5000-"]


def test_a_busy_hub_is_asked_again(hub, client, tmp_path):
    hub.fail("GET .*model.safetensors", 429, times=2, **BUSY)
    assert_weights(client(do.weights, tmp_path, MODEL), stored(hub, "new"))
    assert len(hub.fetched("model.safetensors")) == 3


@pytest.mark.parametrize("file", ["model.safetensors", "preprocessor_config.json"])
def test_a_full_disk_leaves_no_part_of_a_model(hub, client, tmp_path, file):
    sentence = refused(client, do.on_a_full_disk, tmp_path, do.weights, MODEL, file)
    assert "cannot be fetched, as the disk is full: free some space there, or let HF_HOME name" in sentence
    assert parts(tmp_path) == []
    assert_weights(client(do.weights, tmp_path, MODEL), stored(hub, "new"))


@pytest.mark.parametrize("file", ["train-00000-of-00001.parquet", "arrow"])
def test_a_full_disk_leaves_no_part_of_a_data_set(hub, client, tmp_path, file):
    assert "as the disk is full" in refused(client, do.on_a_full_disk, tmp_path, do.images, CIFAR, file)
    assert parts(tmp_path) == []
    assert_images(images(client, tmp_path, CIFAR), 200)


def test_a_manifest_names_what_was_read_at_its_commit(hub, client, tmp_path):
    found = client(do.manifest, tmp_path, "dinov2-s", "cifar10@v1", str(tmp_path / "run"))
    assert found["hub"] == [f"{MODEL}@{hub.new}", f"{CIFAR}@{hub.old_images}"]
    assert found["files"] == ["results.csv", "results.parquet"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", *found["files"]]


def test_without_a_network_the_cache_serves(hub, client, offline, tmp_path):
    for name in (MODEL, f"{MODEL}@v1"):
        client(do.weights, tmp_path, name)
    images(client, tmp_path, CIFAR)
    hub.reset()
    assert_weights(offline(do.weights, tmp_path, MODEL), stored(hub, "new"))
    assert_weights(offline(do.weights, tmp_path, f"{MODEL}@v1"), stored(hub, "old"))
    assert_weights(offline(do.weights, tmp_path, f"{MODEL}@{hub.old}"), stored(hub, "old"))
    assert_images(images(offline, tmp_path, CIFAR), 200)
    assert hub.requests == []


def test_without_a_network_what_is_not_in_the_cache_is_named(hub, offline, tmp_path):
    why = "is not on this machine and the Hub cannot be reached;"
    for name in (MODEL, f"{MODEL}@v1"):
        sentence = refused(offline, do.weights, tmp_path, name)
        assert sentence == f"Model '{name}' {why} 'vit-mini' is embedded and needs no network."
    sentence = refused(images, offline, tmp_path, CIFAR)
    assert sentence == f"Data set '{CIFAR}' {why} 'digits' is embedded and needs no network."
    assert hub.requests == []


def test_a_hub_that_moved_on_is_followed_unless_a_commit_is_named(hub, client, tmp_path):
    repository = hub.repositories["models", MODEL]
    repository.refs["moving"] = hub.old
    assert_weights(client(do.weights, tmp_path, f"{MODEL}@moving"), stored(hub, "old"))
    repository.refs["moving"] = hub.new
    assert_weights(client(do.weights, tmp_path, f"{MODEL}@moving"), stored(hub, "new"))
    assert_weights(client(do.weights, tmp_path, f"{MODEL}@{hub.old}"), stored(hub, "old"))


def test_a_main_that_moves_while_a_model_is_loaded_mixes_nothing(hub, client, tmp_path):
    """Its classifier is fetched later, and is of the same commit."""
    repository = hub.repositories["models", MODEL]
    path = client(do.facts, tmp_path, f"{MODEL}@v1")["path"]
    repository.refs["v1"] = hub.new
    try:
        found = client(do.facts, tmp_path, path)
    finally:
        repository.refs["v1"] = hub.old
    expected = load_file(hub.folders / "old" / "model.safetensors")["classifier.weight"]
    assert np.array_equal(found["classifier"], expected)


def test_two_processes_fetch_one_model_at_once(hub, clients, tmp_path):
    calls = [clients[name].start(do.weights, tmp_path, MODEL) for name in ("online", "second")]
    for call in calls:
        assert_weights(call.result(100), stored(hub, "new"))
    assert len(list(tmp_path.glob("hub/models--*/snapshots/*/model.safetensors"))) == 1
    assert parts(tmp_path) == []


def test_a_stream_fetches_the_files_that_it_draws_from(hub, client, tmp_path):
    found = images(client, tmp_path, SHARDS, stream_from=0)
    assert_images(found, 1000)
    read = set(hub.fetched("train-"))
    assert 1 <= len(read) < 24
    assert list(tmp_path.rglob("*.arrow")) == []


def test_a_stream_is_of_its_revision(hub, client, tmp_path):
    found = images(client, tmp_path, f"{CIFAR}@v1", stream_from=0)
    assert_images(found, 100)
    assert found["commits"] == [f"{CIFAR}@{hub.old_images}"]
    assert all(f"/resolve/{hub.old_images}/" in path for path in hub.fetched("parquet"))


def test_a_stream_that_breaks_is_told(hub, client, tmp_path):
    hub.fail("GET .*train-", 500)
    sentence = refused(images, client, tmp_path, SHARDS, stream_from=0)
    assert sentence.startswith(f"Data set '{SHARDS}' cannot be fetched, the Hub answers 500: run this again")


def test_a_revision_that_is_large_is_streamed_by_the_size_of_its_files(hub, client, tmp_path):
    """The Hub says the size of a set for its branch main alone."""
    size = sum(file.stat().st_size for file in (hub.folders / "old-images" / "data").iterdir())
    images(client, tmp_path / "streamed", f"{CIFAR}@v1", stream_from=size - 1)
    images(client, tmp_path / "whole", f"{CIFAR}@v1", stream_from=size)
    assert list((tmp_path / "streamed").rglob("*.arrow")) == []
    assert list((tmp_path / "whole").rglob("*.arrow")) != []


WITHOUT_TOASTLIB = """
import sys
sys.modules["toastlib"] = None  # what is not installed
import numpy, torch, transformers
name, file = sys.argv[1:]
pixels = torch.from_numpy(numpy.load(file))
model = transformers.AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
encoder = transformers.AutoModel.from_pretrained(name, trust_remote_code=True).eval()
with torch.inference_mode():
    numpy.savez(sys.stdout.buffer, logits=model(pixels).logits.numpy(), features=encoder(pixels).pooler_output.numpy())
"""


def test_a_smaller_model_is_pushed_and_opened_with_toastlib_and_without(hub, client, tmp_path, served, clients):
    pushed = client(do.push, tmp_path, f"{MODEL}@v1", "me/smaller", CIFAR)
    logits, features, blocks = clients["second"](do.answers, tmp_path / "second", "me/smaller", CIFAR)
    assert blocks == 5 - 2 + 1
    assert f"base_model: {MODEL}\n" in pushed["card"]
    assert f"The original is `{MODEL}@{hub.old}` of the Hub." in pushed["card"]
    np.testing.assert_allclose(logits, pushed["logits"], atol=1e-5)  # last bits depend on where weights lie in memory
    np.save(tmp_path / "pixels.npy", pushed["pixels"])
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "without"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", WITHOUT_TOASTLIB, "me/smaller", str(tmp_path / "pixels.npy")]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = np.load(io.BytesIO(done.stdout))
    np.testing.assert_allclose(found["logits"], pushed["logits"], atol=1e-5)
    np.testing.assert_allclose(found["features"], features, atol=1e-5)


@pytest.mark.slow
def test_a_run_through_the_hub_equals_the_run_from_folders(hub, tmp_path):
    """The same notebook, table by table: names are those of the paper's model and data set in both."""
    for kind, path in (("new", MODEL), ("new-images", CIFAR)):
        shutil.copytree(hub.folders / kind, tmp_path / path)
    settings = {"plans": "1->3, 0->2", "calibration_size": 20, "train_size": 32, "test_size": 8, "head.min_steps": 20}
    reach = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "TOAST_CACHE": "off"}
    reach["HF_DATASETS_CACHE"] = str(tmp_path / "home" / "datasets")
    sources = {
        "hub": ("dinov2-s", "cifar10", reach),
        "folders": (str(tmp_path / MODEL), str(tmp_path / CIFAR), {"TOAST_CACHE": "off"}),
    }
    manifests = {}
    for name, (model, dataset, environment) in sources.items():
        given = {"model": model, "dataset": dataset} | settings
        options = [option for key, value in given.items() for option in ("-p", f"{key}={value}")]
        command = [sys.executable, "-m", "toastlib.cli", "run", "02", *options, "--results-dir", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / name).glob("*/manifest.json")
        manifests[name] = json.loads(file.read_text())["hub"]
        sources[name] = file.parent
    assert manifests == {"hub": [f"{MODEL}@{hub.new}", f"{CIFAR}@{hub.new_images}"], "folders": []}
    for table in ("accuracy_lost", "results"):
        one, other = (pd.read_parquet(folder / f"{table}.parquet") for folder in sources.values())
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert set(one["model"]) == {"dinov2-s"}
    assert set(one["dataset"]) == {"cifar10"}
