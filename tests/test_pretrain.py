"""The pretraining script on tiny random data, and the checkpoint of its kind in data/models/vit-mini."""

import importlib.util
import io
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTModel

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "pretrain_vit_mini.py"
VIT_MINI = ROOT / "data" / "models" / "vit-mini"
SHAPE = ["--blocks", "2", "--width", "16", "--heads", "2", "--patch", "8"]
TINY = ["--steps", "6", "--save-every", "3", "--batch", "12", "--warmup", "2", *SHAPE]
ROWS = 20


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def encode(pixels: np.ndarray) -> dict[str, bytes | None]:
    """A cell of an image column, as the Hub's parquet files have them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Random images, 28 px gray or 32 px RGB, in the Hub's layout."""
    folder, random = tmp_path_factory.mktemp("hub"), np.random.default_rng(0)
    for name, source in script.SOURCES.items():
        shape = (28, 28) if "MNIST" in name else (32, 32, 3)
        (folder / source.hub_id).mkdir(parents=True)
        for split in ("train", "test"):
            images = [encode(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(ROWS)]
            table = pa.table({source.image: images, source.label: random.integers(0, source.classes, ROWS)})
            pq.write_table(table, folder / source.hub_id / f"{split}-00000-of-00001.parquet")
    return folder


def run(hub: Path, out: Path, *options: str) -> Path:
    script.main(["--hub", str(hub), "--out", str(out), "--device", "cpu", *TINY, *options])
    return out


@pytest.fixture(scope="module")
def finished(hub, tmp_path_factory) -> Path:
    """The output folder of a run without interruption."""
    return run(hub, tmp_path_factory.mktemp("run"))


def options(out: Path, *more: str) -> Namespace:
    return script.read_options(["--out", str(out), *TINY, *more])


def assert_same(one: Path, other: Path) -> None:
    """Two runs' checkpoints are equal to the bit, and so are the encoders."""
    ours, theirs = load_file(one / "checkpoint.safetensors"), load_file(other / "checkpoint.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (one / "encoder" / name).read_bytes() == (other / "encoder" / name).read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one(hub, finished, tmp_path, monkeypatch):
    loss_at, seen = script.loss_at, []

    def interrupted(step: int, *rest: object) -> Tensor:
        seen.append(step)
        if seen == [0, 1, 2, 3, 4]:  # in the fifth step, two after the checkpoint
            raise KeyboardInterrupt
        return loss_at(step, *rest)

    monkeypatch.setattr(script, "loss_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(hub, tmp_path)
    assert not (tmp_path / "encoder").exists()
    run(hub, tmp_path)
    assert seen == [0, 1, 2, 3, 4, 3, 4, 5]
    assert_same(tmp_path, finished)


def test_a_finished_run_only_exports_again(hub, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "again")
    monkeypatch.setattr(script, "loss_at", lambda *_: pytest.fail("there was nothing left to train"))
    assert_same(run(hub, tmp_path / "again"), finished)


def test_the_seed_decides(hub, finished, tmp_path):
    run(hub, tmp_path, "--seed", "1")
    losses = [load_file(out / "checkpoint.safetensors")["losses"] for out in (finished, tmp_path)]
    assert not torch.equal(*losses)


def test_an_interrupted_save_leaves_the_checkpoint_whole(finished, tmp_path, monkeypatch):
    shutil.copy(finished / "checkpoint.safetensors", tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def cut(tensors: dict, path: Path, header: dict) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        script.save_checkpoint(script.build(options(tmp_path)), 3, options(tmp_path))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_the_encoder_loads_with_transformers(finished):
    folder = finished / "encoder"
    encoder, report = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    assert encoder.dtype == torch.float16
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 17, 16)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    ours, theirs = (json.loads((f / "preprocessor_config.json").read_text()) for f in (folder, VIT_MINI))
    assert ours == theirs


def test_the_card_tells_the_accuracies(hub, finished):
    """Measured once more, through ViTModel's own forward on the saved weights."""
    card = (finished / "encoder" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    encoder = ViTModel.from_pretrained(finished / "encoder", add_pooling_layer=False).float()
    tensors = load_file(finished / "checkpoint.safetensors")
    for name, (images, labels) in script.load_data("test", options(finished, "--hub", str(hub))).items():
        weight, bias = (tensors[f"model:heads.{name}.{kind}"] for kind in ("weight", "bias"))
        features = encoder(images / 127.5 - 1).last_hidden_state[:, 0]
        right = (torch.nn.functional.linear(features, weight, bias).argmax(1) == labels).double().mean()
        assert f"{name} {100 * right:.1f} % of {ROWS}" in card


def test_images_are_read_as_they_are(hub, tmp_path):
    data = script.load_data("train", options(tmp_path, "--hub", str(hub), "--limit", "3"))
    for name, (images, labels) in data.items():
        source = script.SOURCES[name]
        table = pq.read_table(hub / source.hub_id / "train-00000-of-00001.parquet")
        assert labels.tolist() == table[source.label].to_pylist()[:3]
        assert images.dtype == torch.uint8
        for image, cell in zip(images, table[source.image].to_pylist()):
            pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
            if "MNIST" in name:
                pixels = np.pad(pixels, 2)[..., None].repeat(3, axis=2)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_the_hub_gives_what_a_mirror_gives(hub, tmp_path, monkeypatch):
    def load_dataset(hub_id: str, split: str) -> datasets.Dataset:
        source = next(source for source in script.SOURCES.values() if source.hub_id == hub_id)
        table = datasets.Dataset(pq.read_table(hub / hub_id / f"{split}-00000-of-00001.parquet"))
        return table.cast_column(source.image, datasets.Image())

    monkeypatch.setattr(script, "load_dataset", load_dataset)
    ours, theirs = (script.load_data("test", options(tmp_path, *more)) for more in ([], ["--hub", str(hub)]))
    for name in script.SOURCES:
        assert all(map(torch.equal, ours[name], theirs[name]))


def test_batches_hold_the_shares_of_the_sets(hub, tmp_path):
    chosen = options(tmp_path, "--hub", str(hub), "--batch", "160")
    images, mirror, labels = script.draw(script.load_data("train", chosen), chosen.counts, torch.Generator())
    assert [len(part) for part in labels] == [16, 40, 56, 48]
    assert images.shape == (160, 3, 32, 32)
    assert (images.min(), images.max()) == (0, 1)
    assert mirror.flatten().tolist() == 16 * [False] + 144 * [True]


@pytest.mark.parametrize("mirror", [False, True])
def test_augmentation_only_shifts_and_mirrors_without_jitter(mirror):
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 32, 32), generator=random, dtype=torch.uint8)
    batch, allowed = image.expand(200, -1, -1, -1) / 255, torch.full((200, 1), mirror)
    expected = set()
    for flipped in range(1 + mirror):
        padded = torch.nn.functional.pad(image.flip(2) if flipped else image, (1, 1, 1, 1))
        expected |= {padded[:, y : y + 32, x : x + 32].numpy().tobytes() for y in range(3) for x in range(3)}
    results = (255 * script.augment(batch, allowed, 1, 0.0, random)).round().byte()
    assert {result.numpy().tobytes() for result in results} == expected


def test_jitter_changes_brightness_and_contrast():
    images, random = torch.full((50, 3, 32, 32), 0.5), torch.Generator().manual_seed(0)
    means = script.augment(images, torch.zeros(50, 1, dtype=torch.bool), 0, 0.3, random).mean((1, 2, 3))
    assert means.min() >= 0.5 * 0.7
    assert means.max() <= 0.5 * 1.3
    assert means.std() > 0.05
    images[:, :, :16] = 0.4
    spread = script.augment(images, torch.zeros(50, 1, dtype=torch.bool), 0, 0.3, random).std((1, 2, 3))
    assert spread.max() / spread.min() > 1.5


def test_half_of_the_patches_are_seen_until_the_last_part(hub, tmp_path):
    chosen = options(tmp_path, "--hub", str(hub), "--keep-until", "0.5")
    model, data, seen = script.build(chosen).model, script.load_data("train", chosen), []
    model["encoder"].layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    for step in range(6):
        script.loss_at(step, model, data, chosen)
    assert [shape[1] for shape in seen] == [9, 9, 9, 17, 17, 17]  # CLS and 8 of 16 patches, or all


def test_learning_rates_rise_stay_and_fall(tmp_path):
    chosen = options(tmp_path, "--steps", "1000", "--warmup", "100")
    rates = [script.rate(step, chosen) for step in (0, 49, 99, 400, 700, 999)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 0.5, 1 / 600])


def test_at_rate_zero_only_the_batches_change(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "rate", lambda *_: 0.0)
    tensors = load_file(run(hub, tmp_path) / "checkpoint.safetensors")
    start = script.build(options(tmp_path)).model.state_dict()
    assert all(torch.equal(tensors[f"model:{name}"], tensor) for name, tensor in start.items())
    assert len(set(tensors["losses"].tolist())) == 6


def test_muon_gets_the_matrices_of_the_blocks(tmp_path):
    model, optimizers, _ = script.build(options(tmp_path))
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = ({names[id(p)] for p in optimizers[k].param_groups[0]["params"]} for k in ("muon", "adamw"))
    assert len(muon) == 2 * 6
    assert all(re.fullmatch(r"encoder\.layers\.\d\..*\.weight", name) and "norm" not in name for name in muon)
    assert muon | adamw == set(names.values())
    assert not muon & adamw


def test_it_learns(hub, tmp_path):
    """Twenty images per set are soon known by heart."""
    run(hub, tmp_path, "--steps", "60", "--batch", "40", "--shift", "0", "--jitter", "0")
    losses = load_file(tmp_path / "checkpoint.safetensors")["losses"]
    assert losses[-10:].mean() < losses[:10].mean() - 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--width", "17"], "--width must be a multiple of --heads"),
        (["--patch", "5"], "and 32 of --patch"),
        (["--batch", "4"], "--batch must be at least 6"),
        (["--keep", "0"], "--keep in (0, 1]"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_wrong_options_are_told(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        options(tmp_path, *more)
    assert message in capsys.readouterr().err


def test_a_hub_out_of_reach_is_told(tmp_path, monkeypatch):
    def load_dataset(*_: str, **__: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(script, "load_dataset", load_dataset)
    with pytest.raises(SystemExit, match=r"ylecun/mnist cannot be loaded from the Hub; --hub.*no network"):
        script.load_data("test", options(tmp_path))


def test_what_is_missing_or_broken_is_told(hub, finished, tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere.*mnist.*test-00000-of-00001\.parquet is missing: --hub"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"holds another run \(seed 0, not 5\): take its values"):
        run(hub, finished, "--seed", "5")
    with pytest.raises(SystemExit, match=r"would weigh \d+\.\d of 12 MB"):
        run(hub, tmp_path / "out", "--width", "1024")
    with pytest.raises(SystemExit, match=r"Image 3 of MNIST test does not decode"):
        script.decode(b"no image", "Image 3 of MNIST test")
    with pytest.raises(SystemExit, match=r"Image 4 has 33 x 28 pixels, more than 32 x 32"):
        script.decode(encode(np.zeros((28, 33), dtype=np.uint8))["bytes"], "Image 4")
    with pytest.raises(SystemExit, match=r"loss is nan at step \d: lower --muon-lr"):
        run(hub, tmp_path / "out", "--adamw-lr", "nan")


def test_vit_mini_is_what_its_card_says():
    card = (VIT_MINI / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert front["datasets"] == [source.hub_id for source in script.SOURCES.values()]
    encoder, report = ViTModel.from_pretrained(VIT_MINI, add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    assert encoder.dtype == torch.float16
    assert f"{encoder.num_parameters() / 1e6:.2f} M" in card
    config = encoder.config
    assert (len(encoder.layers), config.hidden_size, config.num_attention_heads) == (12, 96, 3)
    features = encoder.float()(torch.rand(2, 3, 32, 32)).last_hidden_state
    assert features.shape == (2, 65, 96)
    assert features.isfinite().all()


def test_the_code_in_the_card_of_vit_mini_runs(monkeypatch):
    card = (VIT_MINI / "README.md").read_text(encoding="utf-8")
    names = {"image": Image.new("L", (28, 28), 255)}
    monkeypatch.chdir(ROOT)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["features"].shape == (1, 96)
