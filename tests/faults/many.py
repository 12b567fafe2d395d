"""200 trivial runs: what a run costs beyond its kernel's own start, and that the driver does not grow."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
from jupyter_client.manager import start_new_kernel
from sweeping import Study

RUNS, AT_ONCE, OVERHEAD, GROWTH = 200, 2, 0.5, 16 * 2**20


def start_and_stop(_) -> None:
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=50"])
    client.stop_channels()
    manager.shutdown_kernel()


def kernels_take(count: int = 12) -> float:
    """Seconds from one kernel's start to its end, as many at once as the sweep has."""
    start = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(start_and_stop, range(count)))
    return (time.monotonic() - start) * AT_ONCE / count


def test_two_hundred_trivial_runs_cost_little_and_the_driver_stays_small(tmp_path):
    study = Study(tmp_path, range(RUNS), cells=("size",))
    before = kernels_take()
    driver, sizes = study.start("--jobs", str(AT_ONCE)), []
    process, start = psutil.Process(driver.pid), time.monotonic()
    while driver.poll() is None:
        if study.said().count("\n") > 1 + RUNS // 10:  # some runs in: everything is loaded
            sizes.append(process.memory_info().rss)
        time.sleep(1)
    took = (time.monotonic() - start) * AT_ONCE / RUNS
    kernel = (before + kernels_take()) / 2
    assert driver.returncode == 0, study.said()
    assert len(study.done()) == RUNS
    grown = max(sizes[-5:]) - sizes[0]
    print(f"{took:.2f} s a run, of which the kernel {kernel:.2f} s; driver {sizes[0] / 2**20:.0f} MiB", end="")
    print(f", grown by {grown / 2**20:.1f} MiB over {RUNS * 9 // 10} runs")
    assert took - kernel < OVERHEAD
    assert grown < GROWTH
