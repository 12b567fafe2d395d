"""Dask: refused in one sentence where it cannot serve, and the Slurm script as dask-jobqueue writes it."""

import re
import sys
from types import SimpleNamespace

import pytest
import yaml

from toastlib.cli import main
from toastlib.data.catalog import ROOT
from toastlib.errors import InputError
from toastlib.runs import cluster


@pytest.mark.parametrize(("where", "module"), [("local", "distributed"), ("slurm", "dask_jobqueue")])
def test_without_dask_one_sentence_says_what_to_install(monkeypatch, tmp_path, where, module):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(InputError, match=r"^--dask needs \w+: pip install 'toastlib\[cluster\]'\.$"),
        cluster.connect(where, 1, tmp_path),
    ):
        pass


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 0.2)
    with (
        pytest.raises(InputError, match=r"^No Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"),
        cluster.connect("tcp://127.0.0.1:9", 1, tmp_path),
    ):
        pass


def test_an_address_that_is_none_is_refused(tmp_path):
    refused = pytest.raises(InputError, match=r"^No Dask scheduler answers at 'slrum'")
    with refused, cluster.connect("slrum", 1, tmp_path):
        pass


def client_of(threads, sees=True):
    """A client whose workers have so many threads each, and see the results folder or not."""
    return SimpleNamespace(
        scheduler_info=lambda: {"workers": threads},
        wait_for_workers=lambda count: None,
        nthreads=lambda: threads,
        run=lambda function, file: {worker: sees and function(file) for worker in threads},
        run_on_scheduler=lambda function: function(SimpleNamespace()),
    )


def test_workers_with_several_threads_are_refused(tmp_path):
    with pytest.raises(InputError, match="start each with --nthreads 1"):
        cluster._ready(client_of({"a": 1, "b": 2}), tmp_path)


def test_workers_that_do_not_see_the_results_are_refused(tmp_path):
    assert cluster._ready(client_of({"a": 1}), tmp_path)
    with pytest.raises(InputError, match=r"Dask's worker a does not see .*: name a --results-dir that all"):
        cluster._ready(client_of({"a": 1}, sees=False), tmp_path)
    assert list((tmp_path / ".toast").iterdir()) == []


def test_slurm_without_configuration_is_refused(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(InputError, match=r"^Slurm jobs are not configured: "):
        cluster.sbatch_script()


def blocks(page, language):
    """The pieces of code of that language on a page of docs/cluster."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "cluster" / page).read_text(), re.S)


def test_the_sbatch_script_is_the_one_on_the_page():
    pytest.importorskip("dask_jobqueue")
    import dask

    settings = yaml.safe_load(blocks("slurm.md", "yaml")[0])["jobqueue"]["slurm"]
    settings["scheduler-options"] = {"host": "127.0.0.1", "dashboard_address": None}
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in settings.items()}):
        script = cluster.sbatch_script()
    assert script.startswith("#!/")
    assert blocks("slurm.md", "bash")[-1] in script
    assert "--nthreads 1" in script
    assert "--lifetime 7h" in script


def test_the_kubernetes_manifest_is_whole_and_its_parts_find_each_other():
    service, scheduler, worker, job = yaml.safe_load_all(blocks("kubernetes.md", "yaml")[0])
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for part in (worker, job):
        (container,) = part["spec"]["template"]["spec"]["containers"]
        assert address in container["command"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] in [volume["name"] for volume in part["spec"]["template"]["spec"]["volumes"]]
    command = container["command"]
    assert main([*command[1:3], "--results-dir", "nowhere", "--dry-run"]) == 0
