"""kill -9 of kernels, workers and drivers at random moments: a rerun completes, and nothing that was done is redone."""

import random
import time
from collections import Counter
from functools import partial

from sweeping import Study, all_gone, family, has_kernels, kill, wait_until

KILLS = 20


def test_twenty_kills_change_nothing(tmp_path):
    dice, sizes, killed, finished = random.Random(0), 12, Counter(), {}
    study, start = Study(tmp_path, range(1, sizes + 1)), time.monotonic()
    assert study.run("--jobs", "2", results="undisturbed")[0] == 0
    study.log.write_text("")
    a_run = (time.monotonic() - start) * 2 / sizes  # seconds, on this machine
    driver, everyone = study.start("--jobs", "2"), []
    while killed.total() < KILLS:
        time.sleep(dice.uniform(0, 1.5 * a_run))
        finished = study.done() | finished
        if driver.poll() is not None:
            if len(study.done()) == sizes:  # too quick for us: more to do
                sizes += 6
                study.ask_for(range(1, sizes + 1))
            driver = study.start("--jobs", "2")
            wait_until(partial(has_kernels, driver))
            continue
        processes = family(driver.pid) | {"driver": [driver]}
        everyone += processes["worker"] + processes["kernel"]
        kind = dice.choice([kind for kind in processes if processes[kind]])
        kill(dice.choice(processes[kind]))
        killed[kind] += 1
        if kind == "driver":
            driver.wait()
    driver.kill()
    driver.wait()
    print(dict(killed), f"{len(finished)} of {sizes} runs done meanwhile")

    code, said = study.run("--jobs", "2")
    assert code == 0, said
    assert min(killed[kind] for kind in ("kernel", "worker", "driver")) >= 2
    done = study.done()
    assert len(done) == sizes
    assert {run: done[run] for run in finished} == finished  # not touched again
    assert study.left_over() == []
    assert [path.name for path in (tmp_path / "results").glob("*.failed")] == []
    wait_until(partial(all_gone, everyone), 20)
    ended = Counter(line for line in study.log.read_text().splitlines() if line.startswith("end"))
    print(f"cells executed to their end {ended.total()} times for {sizes} runs")

    assert study.run("--jobs", "2", results="undisturbed")[0] == 0
    assert study.tables() == study.tables("undisturbed")


def test_a_worker_that_is_always_killed_is_a_row_and_the_others_are_done(tmp_path):
    suicide = "import os, psutil, signal\n\nif size == 2:\n    os.kill(os.getppid(), signal.SIGKILL)\n"
    study = Study(tmp_path, [1, 2, 3, 4], cells=(suicide,))
    code, said = study.run("--jobs", "2")
    assert code == 1
    assert "failed: lost worker: 3 workers were killed while they made this run" in said
    assert len(study.done()) == 3
    assert study.left_over() == []
    code, said = study.run(command="status")
    assert code == 1
    assert "4 runs: 3 done, 1 failed, 0 running, 0 missing" in said


def test_workers_and_kernels_end_with_a_killed_driver(tmp_path):
    study = Study(tmp_path, [1, 2], pause=60)
    driver = study.start("--jobs", "2")
    wait_until(partial(has_kernels, driver, 2))
    processes = [process for group in family(driver.pid).values() for process in group]
    assert len(processes) >= 4
    kill(driver)
    driver.wait()
    wait_until(partial(all_gone, processes), 20)
