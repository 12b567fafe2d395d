"""Peak memory of `collect_moments` against the number of images: it should not grow.

    python -m benchmarks.memory [IMAGES ...]

Every number of images is measured in a process of its own, as the peak resident set that the operating system
reports. The images are drawn batch by batch, so that only what the library keeps can grow.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator

TARGET = 1.05


def main() -> None:
    """Measure, print a table, and say whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=int, default=[500, 5000])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(peak_memory(options.images[0]))
        return
    peaks = {count: _measure(count) for count in options.images}
    for count, peak in peaks.items():
        print(f"{count:>7} images  {peak:7.1f} MiB")
    ratio = max(peaks.values()) / min(peaks.values())
    print(f"largest / smallest {ratio:.3f}, target at most {TARGET}: {'met' if ratio <= TARGET else 'missed'}")


def peak_memory(count: int) -> float:
    """Peak resident set in MiB of this process after collecting the moments of all pairs of vit-mini."""
    import torch

    import toastlib as toast

    class Stream:
        def batches(self, size: int) -> Iterator[tuple[torch.Tensor, None]]:
            for _ in range(0, count, size):
                yield torch.rand(min(size, count), 3, 32, 32) * 2 - 1, None

    toast.collect_moments(toast.load_encoder("vit-mini", device="cpu"), Stream())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
