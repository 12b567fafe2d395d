"""Two drivers on one folder: they share the work, and no run is ever made by both."""

from collections import Counter

from sweeping import Study


def test_two_drivers_never_make_the_same_run(tmp_path):
    study = Study(tmp_path, range(8), pause=1)
    drivers = [study.start("--jobs", "2") for _ in range(2)]
    assert [driver.wait(timeout=200) for driver in drivers] == [0, 0]
    assert Counter(study.log.read_text().split("\n")[:-1]) == Counter(
        f"{what} {size}" for what in ("begin", "end") for size in range(8)
    )
    assert len(study.done()) == 8
    assert study.left_over() == []


def test_the_second_says_that_it_waits(tmp_path):
    study = Study(tmp_path, [1], pause=12)
    drivers = [study.start() for _ in range(2)]
    assert [driver.wait(timeout=200) for driver in drivers] == [0, 0]
    assert "is being made by another process: waiting for it" in study.said()
    assert study.log.read_text().count("begin") == 1
