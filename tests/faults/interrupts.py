"""Ctrl-C and SIGTERM at random moments: exit code 130, nothing half-made, no process left; a rerun completes."""

import os
import random
import signal
import time
from functools import partial

import pytest
from sweeping import Study, all_gone, family, has_kernels, wait_until


@pytest.mark.parametrize("whom", ["the terminal's whole group, as Ctrl-C", "the driver, as kill"])
def test_an_interrupted_sweep_is_whole(tmp_path, whom):
    dice = random.Random(whom)
    study = Study(tmp_path, range(8), pause=0.5)
    for _ in range(3):
        driver, finished = study.start("--jobs", "2"), study.done()
        wait_until(partial(has_kernels, driver))
        time.sleep(dice.uniform(0, 1.5))
        processes = [process for group in family(driver.pid).values() for process in group]
        if "group" in whom:
            os.killpg(driver.pid, signal.SIGINT)
        else:
            driver.terminate()
        assert driver.wait(timeout=30) == 130, study.said()
        assert "toast: interrupted; finished runs are kept." in study.said()
        wait_until(partial(all_gone, processes), 10)
        assert study.left_over() == []
        assert [path.name for path in (tmp_path / "results").glob("*.failed")] == []
        assert finished.items() <= study.done().items()
    finished = study.done()
    assert study.run("--jobs", "2")[0] == 0
    assert len(study.done()) == 8
    assert finished.items() <= study.done().items()
    assert "Traceback" not in study.said()
