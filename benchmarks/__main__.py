"""All measured claims, one after the other: ``python -m benchmarks [--dataset NAME]``, about 18 minutes on 2 cores."""

import argparse
import os

import torch

from benchmarks import estimate, memory, moments, race, real, rerun, sweep
from benchmarks.table import HEADER, show


def main() -> None:
    """Measure, print each row as it comes, and say how many targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="", help="what the sweep runs on; coloured shapes if not given")
    options = parser.parse_args()
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print(HEADER)
    rows = []
    for measure in (
        lambda: sweep.against_reference(5000, 2000, options.dataset),
        lambda: sweep.against_hardware(512, 64, options.dataset),
        lambda: moments.against_a_forward_pass(500),
        lambda: real.against_reference(500, 300),
        race.against_all,
        memory.peaks,
        lambda: rerun.against_the_first("02", []),
        estimate.of_demo,
    ):
        rows += (measured := measure())
        show(measured)
    print(f"\n{sum(row.met for row in rows)} of {len(rows)} targets met")


if __name__ == "__main__":
    main()
