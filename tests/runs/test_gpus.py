"""One GPU for each run: found without torch, never shared by accident, given back by whoever is killed."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from toastlib.runs import gpus
from toastlib.runs.gpus import VISIBLE, gpu_names, one_gpu


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Factory: a machine with so many GPUs, as its nvidia-smi tells."""

    def build(count):
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\n" + "".join(f"echo {index}, NVIDIA H200\n" for index in range(count)))
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))

    monkeypatch.delenv(VISIBLE, raising=False)
    return build


pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")


def test_gpus_are_counted_and_named(machine):
    machine(2)
    assert gpu_names() == {"0": "NVIDIA H200", "1": "NVIDIA H200"}


def test_a_machine_without_nvidia_smi_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_names() == {}
    with one_gpu() as gpu:
        assert gpu is None
        assert VISIBLE not in os.environ


@pytest.mark.parametrize(("visible", "left"), [("1", ["1"]), ("", []), ("-1", []), ("GPU-8f, 0", ["GPU-8f", "0"])])
def test_what_the_batch_system_leaves_visible_is_all_there_is(machine, monkeypatch, visible, left):
    machine(2)
    monkeypatch.setenv(VISIBLE, visible)
    assert list(gpu_names()) == left


def test_two_runs_have_two_gpus_and_the_environment_is_as_before(machine):
    machine(2)
    with one_gpu() as first:
        assert os.environ.pop(VISIBLE) == first  # as in another process, which does not see it
        with one_gpu() as second:
            assert os.environ[VISIBLE] == second
            assert {first, second} == {"0", "1"}
        os.environ[VISIBLE] = first
    assert VISIBLE not in os.environ


def test_a_third_waits_until_one_is_free(machine):
    machine(1)
    places = [("0", 0)]
    with ThreadPoolExecutor() as pool:
        with gpus._first_free(places):
            waiting = pool.submit(lambda: next(gpus._first_free(places).gen))
            assert not waiting.done()
        assert waiting.result(timeout=5) == "0"


def test_a_gpu_is_shared_only_if_that_is_asked_for(machine):
    machine(1)
    with one_gpu(runs_per_gpu=2):
        del os.environ[VISIBLE]
        with one_gpu(runs_per_gpu=2) as second:
            assert second == "0"
        os.environ[VISIBLE] = "0"
