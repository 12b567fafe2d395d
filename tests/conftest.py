"""Tiny random-weight models and random images for every test, no network, and caches in a temporary folder."""

import socket
from pathlib import Path

import offline  # noqa: F401  before what imports the Hugging Face libraries
import pytest
import torch
from hypothesis import settings
from tiny import SIZES, WORDS, make_tiny_model, write_tokenizer

from toastlib.data import catalog
from toastlib.data.images import Images, ImageSet
from toastlib.data.tokens import Tokens
from toastlib.data.transforms import Preprocessing
from toastlib.models.encoder import Encoder

settings.register_profile("the same every time", derandomize=True, database=None, deadline=None)
settings.load_profile("the same every time")


def pytest_ignore_collect(collection_path, config):
    """Leave out what takes minutes and needs a Chromium, unless its folder is named: make test-browser."""
    folder = Path(__file__).parent / "browser"
    named = any(Path(name.split("::")[0]).resolve().is_relative_to(folder) for name in config.args)
    return True if collection_path == folder and not named else None


@pytest.fixture(autouse=True)
def nothing_read_from_the_hub(monkeypatch):
    """What one test reads from the Hub is not noted in the runs of another."""
    monkeypatch.setattr(catalog, "COMMITS", set())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail a test that looks up or calls another machine; no ``except Exception`` can hide it."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def check(host):
        if host not in ("localhost", "127.0.0.1", "::1", "", None):
            pytest.fail(f"a test reached for the network: {host}")

    def guarded_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect(self, address)

    def guarded_lookup(host, *args, **kwargs):
        check(host)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture(scope="session")
def tiny_model():
    """Factory: ``tiny_model("vit", num_hidden_layers=6)`` builds a new model with the same weights every time."""
    return make_tiny_model


@pytest.fixture
def tiny_encoder():
    """An encoder on the tiny ViT with 6 blocks; new for every test, the same weights every time."""
    model = make_tiny_model("vit", num_hidden_layers=6)
    return Encoder(model, preprocessing=Preprocessing(resize=(32, 32)), name="tiny")


@pytest.fixture(scope="session")
def tiny_images():
    """90 training and 60 test images of 3 classes: noise, with a faint pattern that tells the class."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, 3, 32, 32, generator=generator)

    def draw(n):
        labels = torch.arange(n) % 3
        noise = torch.randn(n, 3, 32, 32, generator=generator)
        pixels = (128 + 40 * noise + 20 * patterns[labels]).clamp(0, 255).to(torch.uint8)
        return Images(pixels, labels, ("one", "two", "three"), Preprocessing(resize=(32, 32)))

    return ImageSet("tiny", train=draw(90), test=draw(60))


@pytest.fixture
def pixel_values():
    """Inputs of the tiny models, shape (3, 3, 32, 32)."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def token_batch():
    """Factory: ``token_batch([7, 12], side="left")`` gives texts of these lengths for the tiny models, padded by 0."""

    def make(lengths, side="right", seed=2):
        generator = torch.Generator().manual_seed(seed)
        width = max(lengths)
        ids, mask = torch.zeros(2, len(lengths), width, dtype=torch.int64)
        for row, length in enumerate(lengths):
            part = slice(length) if side == "right" else slice(width - length, None)
            ids[row, part] = torch.randint(1, 50, (length,), generator=generator)
            mask[row, part] = 1
        return Tokens(ids, mask)

    return make


@pytest.fixture
def image_folder(tmp_path):
    """Factory: ``image_folder({"train/cat/0.png": image})`` writes PIL images or bytes, and returns the folder."""

    def write(files, name="pictures"):
        for path, content in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                content.save(file)
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def two_tower_checkpoint(tmp_path_factory):
    """Factory: a folder with a tiny random CLIPModel or SiglipModel, its tokenizer and its processor."""
    import transformers

    def make(family="CLIP", tokenizer=True):
        text = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 2, "max_position_embeddings": 12, "pad_token_id": 0}
        text |= {"bos_token_id": 2, "eos_token_id": 3}
        extra = {"projection_dim": 8} if family == "CLIP" else {}
        text |= {} if family == "CLIP" else {"projection_size": SIZES["hidden_size"]}
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=SIZES, **extra)
        model = getattr(transformers, f"{family}Model")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        if tokenizer:
            write_tokenizer(folder)
        return str(folder), model

    return make
