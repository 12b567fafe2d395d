"""Times of models in turns, in a pipeline, memory of a fresh process, and energy from the machine's counters."""

import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny import make_tiny_model

from toastlib.data.images import Images
from toastlib.evaluation import latency
from toastlib.evaluation.latency import joules, measure_energy, measure_latency, measure_memory, measure_pipeline
from toastlib.models.encoder import Encoder
from toastlib.models.saving import saved_form

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return Images(torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8), None, ())


def slower(model, times):
    return lambda **inputs: [model(**inputs) for _ in range(times)]


def test_milliseconds_are_per_batch_with_their_quartiles(images):
    work = torch.randn(300, 300)
    found = measure_latency([slower(lambda **_: work @ work, times) for times in (5, 50)], images)
    assert list(found) == [1, 32]
    for once, often in found.values():
        assert once[1] <= once[0] <= once[2]
        assert 3 < often[0] / once[0] < 30
    assert list(measure_latency([lambda **_: work @ work], images[:5])) == [1]


def test_a_pipeline_is_timed_from_pictures_to_answers(tiny_encoder, images):
    model, seen = saved_form(tiny_encoder, torch.nn.Linear(tiny_encoder.width, 3)), []
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["pixel_values"].shape), with_kwargs=True)
    (median, low, high), _ = measure_pipeline([model, model], images, "image-classification")
    assert 0 < low <= median <= high
    assert set(seen) == {(32, 3, 32, 32)}


def test_a_pipeline_prints_nothing_of_packages_that_it_does_not_need():
    """In a fresh process, since transformers says it once."""
    lines = (
        "import torch",
        "from toastlib.data.images import Images",
        "from toastlib.evaluation import latency",
        "images = Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, ())",
        "latency._in_turns = lambda *_, **__: []",
        "latency.measure_pipeline([], images, 'image-classification')",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_pipeline_leaves_the_model_where_it_is(tiny_encoder, images, monkeypatch):
    """By itself a pipeline moves its model to a GPU if there is one."""
    import transformers

    model, placed = saved_form(tiny_encoder, torch.nn.Linear(tiny_encoder.width, 3)), []
    monkeypatch.setattr(transformers, "pipeline", lambda *_, device, **__: placed.append(device) or len)
    measure_pipeline([model], images, "image-classification")
    assert placed == [model.device]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_is_that_of_a_process_with_the_weights(tiny_encoder, tmp_path):
    large = Encoder(make_tiny_model("vit", intermediate_size=200_000), preprocessing=tiny_encoder.preprocessing)
    ballast, peaks = torch.ones(250, 2**20), []  # 1 GB of this process, which is not the other's
    for name, encoder in (("small", tiny_encoder), ("large", large)):
        encoder.save_pretrained(tmp_path / name)
        peaks.append(measure_memory(tmp_path / name, torch.zeros(1, 3, 32, 32)))
    weights = sum(p.nbytes for p in large.parameters()) / 1e6
    assert 50 < peaks[0] < ballast.nbytes / 1e6
    assert weights < peaks[1] - peaks[0] < 2.5 * weights  # the file may be in memory too


def test_memory_is_unknown_without_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert measure_memory(tmp_path, torch.zeros(1, 3, 32, 32)) is None


def test_energy_is_read_from_the_counters_of_the_cpu(tmp_path, monkeypatch, images):
    monkeypatch.setattr(latency, "COUNTERS", tmp_path)
    assert joules(CPU) is None
    assert measure_energy([lambda **_: None], images) is None
    for package, used in (("0", 3_000_000), ("1", 500_000), ("0:0", 7)):  # a part of package 0 is not counted twice
        (tmp_path / f"intel-rapl:{package}").mkdir()
        (tmp_path / f"intel-rapl:{package}" / "energy_uj").write_text(f"{used}\n")
    assert joules(CPU) == 3.5


def test_energy_is_per_image_and_unknown_where_the_counter_begins_anew(monkeypatch, images):
    readings = iter([1.0, 1.0, 3.0, 9.0, 0.5])
    monkeypatch.setattr(latency, "joules", lambda device: next(readings))
    first, second = measure_energy([lambda **_: None] * 2, images, seconds=0)
    assert first == pytest.approx(2000 / 32)
    assert math.isnan(second)


def test_a_counter_that_may_not_be_read_is_none(tmp_path, monkeypatch):
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir(parents=True)  # opening it fails, even for root
    monkeypatch.setattr(latency, "COUNTERS", tmp_path)
    assert joules(CPU) is None


def test_energy_of_a_gpu_is_of_that_gpu(monkeypatch):
    asked = []
    driver = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500 if handle == "handle" else 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1-2"))
    assert (joules(torch.device("cuda")), asked) == (2.5, ["GPU-1-2"])
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert joules(torch.device("cuda")) is None
