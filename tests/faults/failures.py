"""Notebooks that raise, hang, lack their data, kill themselves or eat all memory: rows, with the others done."""

import html
from pathlib import Path

import pandas as pd
import pytest
from sweeping import ENVIRONMENT, WORK, WRITE, Study

WAYS = """\
import os, signal, time

if size == 2:
    raise KeyError("no such thing")
if size == 3:
    time.sleep(600)
if size == 4:
    import toastlib as toast

    toast.load_images("nobody/such-a-set", toast.load_encoder("vit-mini"))
if size == 5:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_failures_are_rows_and_the_others_are_done(tmp_path):
    study = Study(tmp_path, [1, 2, 3, 4, 5, 6], cells=(WORK, WAYS, WRITE))
    code, said = study.run("--jobs", "2", "--timeout", "60")
    assert code == 1
    assert "toast: 4 of 6 runs failed; the others are kept." in said
    says = {
        2: "cell 4: KeyError: 'no such thing'",
        3: "cell 4: time-out: not done after 60 s",
        4: "cell 4: InputError: ",
        5: "cell 4: dead kernel: it was killed, or crashed",
    }
    code, status = study.run(command="status")
    assert code == 1
    assert "6 runs: 2 done, 4 failed, 0 running, 0 missing" in status
    for told in says.values():
        assert f"failed: {told}" in said
        assert told in status

    assert study.run("--out", "all", command="collect")[0] == 0
    rows = pd.read_parquet(tmp_path / "all" / "runs.parquet").set_index("size")
    assert rows["state"].to_dict() == {size: "failed" if size in says else "done" for size in range(1, 7)}
    assert rows["kind"].to_dict() == {1: "", 2: "exception", 3: "time-out", 4: "exception", 5: "dead kernel", 6: ""}
    assert rows["cell"].dropna().eq(4).all()
    assert "nobody/such-a-set" in rows["message"][4]
    index = html.unescape((tmp_path / "all" / "index.html").read_text())
    assert "KeyError: 'no such thing'" in index

    before = study.done()
    code, said = study.run("--jobs", "2", "--timeout", "20")
    assert code == 1
    assert "6 notebook runs, 2 of them done" in said  # a rerun tries only what failed
    assert study.done() == before


CGROUP = Path("/sys/fs/cgroup/memory/toastlib-test")
EAT = f"""\
import os
from pathlib import Path

Path("{CGROUP}/cgroup.procs").write_text(str(os.getpid()))
if size == 2:
    food = [bytearray(10_000_000) for _ in range(100)]
"""


def test_a_notebook_that_eats_all_memory_is_a_row(tmp_path):
    try:
        CGROUP.mkdir(exist_ok=True)
        (CGROUP / "memory.limit_in_bytes").write_text(str(400 * 2**20))
    except OSError as error:
        pytest.skip(f"a limit of memory cannot be set here: {error}")
    study = Study(tmp_path, [1, 2, 3], cells=(EAT, WRITE))
    try:
        code, said = study.run("--jobs", "2")
    finally:
        CGROUP.rmdir()
    assert code == 1
    assert "cell 3: dead kernel: killed because memory ran out" in said
    assert len(study.done()) == 2


RACE = """\
import socket, sys
from pathlib import Path

if "ipykernel_launcher" in sys.orig_argv:
    from ipykernel.kernelapp import IPKernelApp

    once, original = Path({once!r}), IPKernelApp.init_sockets

    def init_sockets(self):
        if not once.exists():
            once.touch()
            taken = socket.socket()
            taken.bind(("127.0.0.1", self.shell_port))
            taken.listen()
        original(self)

    IPKernelApp.init_sockets = init_sockets
"""


def test_a_port_that_another_process_has_taken_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RACE.format(once=str(tmp_path / "once")))
    study = Study(tmp_path, [1])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path / "site"))
    code, said = study.run()
    assert (tmp_path / "once").exists(), "the first kernel did not find its port taken"
    assert code == 0, said
    assert len(study.done()) == 1
