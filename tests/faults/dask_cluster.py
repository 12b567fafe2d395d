"""A Dask scheduler and two workers as processes of their own, one of them killed: the same table as on one machine."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sweeping import ENVIRONMENT, Study, family, kill, wait_until

TABLE = """\
import pandas as pd
from toastlib.runs.store import Results

Results(results_dir).table(pd.DataFrame({"number": range(3), "power": [size**n for n in range(3)]}))
"""


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address, and what starts a worker."""
    pytest.importorskip("distributed")
    dask, processes, file = Path(sys.executable).with_name("dask"), [], tmp_path / "scheduler.json"

    def start(*arguments):
        with (tmp_path / "dask.txt").open("a") as out:
            processes.append(
                subprocess.Popen([dask, *arguments], env=ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT)
            )

    def start_worker():
        start("worker", "--scheduler-file", str(file), "--host", "127.0.0.1", *["--nthreads", "1", "--no-nanny"])
        return processes[-1]

    start("scheduler", "--host", "127.0.0.1", "--no-dashboard", "--port", "0", "--scheduler-file", str(file))
    wait_until(file.exists)
    yield json.loads(file.read_text())["address"], start_worker
    for process in reversed(processes):
        process.kill()
        process.wait()


def test_a_killed_dask_worker_changes_nothing(tmp_path, cluster):
    address, start_worker = cluster
    study = Study(tmp_path, range(1, 7), cells=("import time\n\ntime.sleep(2)", TABLE))
    first, driver = start_worker(), study.start("--dask", address)
    wait_until(lambda: family(first.pid)["kernel"])
    second = start_worker()  # when all runs are handed out
    wait_until(lambda: family(second.pid)["kernel"])
    kill(first)
    assert driver.wait(timeout=200) == 0, study.said()
    assert study.run("--jobs", "2", results="local")[0] == 0
    tables = []
    for results in ("results", "local"):
        assert study.run("--out", f"all-{results}", command="collect", results=results)[0] == 0
        tables.append(pd.read_parquet(tmp_path / f"all-{results}" / "results.parquet"))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 18
    assert study.left_over() == []
