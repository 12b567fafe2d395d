"""Dask: refused in one sentence where it cannot serve, and the Slurm script as dask-jobqueue writes it."""

import sys
from types import SimpleNamespace

import pytest

from toastlib import cluster
from toastlib.errors import InputError


@pytest.mark.parametrize(("where", "module"), [("local", "distributed"), ("slurm", "dask_jobqueue")])
def test_without_dask_one_sentence_says_what_to_install(monkeypatch, where, module):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(InputError, match=r"^--dask needs Dask: python -m pip install -e '\.\[cluster\]'$"),
        cluster.connect(where, 1),
    ):
        pass


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.2)
    with (
        pytest.raises(InputError, match=r"^No Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"),
        cluster.connect("tcp://127.0.0.1:9", 1),
    ):
        pass


def test_an_address_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"^No Dask scheduler answers at 'slrum'"), cluster.connect("slrum", 1):
        pass


def test_workers_with_several_threads_are_refused():
    client = SimpleNamespace(
        scheduler_info=lambda: {"workers": {"a": {}}},
        wait_for_workers=lambda n: None,
        nthreads=lambda: {"a": 1, "b": 2},
    )
    with pytest.raises(InputError, match="start each with --nthreads 1"):
        cluster._ready(client)


def test_slurm_without_configuration_is_refused(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(InputError, match=r"^Slurm jobs are not configured: "):
        cluster.sbatch_script()


def test_the_sbatch_script_is_shown_as_configured():
    pytest.importorskip("dask_jobqueue")
    import dask

    settings = {"cores": 1, "memory": "16GB", "walltime": "08:00:00", "job-extra-directives": ["--gres=gpu:1"]}
    settings["scheduler-options"] = {"host": "127.0.0.1", "dashboard_address": None}
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in settings.items()}):
        script = cluster.sbatch_script()
    assert script.startswith("#!/")
    for line in ("#SBATCH -t 08:00:00", "#SBATCH --gres=gpu:1", "--nthreads 1"):
        assert line in script
