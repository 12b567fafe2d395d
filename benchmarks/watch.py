"""Plug-in for the kernels of `benchmarks.estimate`: which functions of toastlib the processor works for, and memory.

Every 5 ms the stack of the main thread is read, and its processor time since then goes to the functions on it. The
environment's ``TOAST_WATCHED`` names the folder for it. Each kernel has an empty cache of its own.
"""

import atexit
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

INTERVAL, WRITE = 0.005, 0.5  # seconds
OF_IMAGES = {"encode", "collect_activations", "collect_moments"}
"""Functions whose number of images is noted: a notebook may call them for a few images, however many a run has."""


def watch(folder: Path) -> None:
    """Read the main thread's stack until the kernel ends."""
    thread = threading.main_thread().ident
    clock = time.pthread_getcpuclockid(thread)
    last = time.clock_gettime(clock)
    seconds, written = Counter({"": last}), 0.0
    while True:
        time.sleep(INTERVAL)
        functions, frame = [], sys._current_frames().get(thread)
        while frame is not None:
            _, inside, file = frame.f_code.co_filename.rpartition("/toastlib/")
            functions += [f"{file.removesuffix('.py')}:{frame.f_code.co_name}"] * bool(inside)
            if inside and frame.f_code.co_name in OF_IMAGES:
                images = frame.f_locals.get("images")
                functions += [f"images:{len(images)}"] * hasattr(images, "__len__")
            frame = frame.f_back
        now = time.clock_gettime(clock)
        seconds[" ".join(reversed(functions))] += now - last
        last = now
        if time.monotonic() - written > WRITE:
            written = time.monotonic()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            results = Path(vars(sys.modules["__main__"]).get("results_dir", ""))  # the run's staging folder
            lived = time.time() - psutil.Process().create_time()
            part = folder / f"{os.getpid()}.part"
            part.write_text(json.dumps({"lived": lived, "memory": peak, "seconds": seconds}))
            part.replace(folder / f"{results.parent.name}.json")


if "ipykernel" in sys.modules and os.environ.get("TOAST_WATCHED"):
    os.environ["TOAST_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["TOAST_CACHE"], ignore_errors=True)
    threading.Thread(target=watch, args=(Path(os.environ["TOAST_WATCHED"]),), daemon=True).start()
