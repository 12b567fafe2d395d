"""Peak memory: of moments against the number of images, of a sweep against the number of plans. Neither should grow.

    python -m benchmarks.memory

Every figure is the peak resident set of a process of its own, as the operating system reports it. The images are drawn
batch by batch, so that only what the library keeps can grow.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.table import HEADER, Row, show

SWEPT_IMAGES = 320


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, number = options.child
        print({"moments": moments, "sweep": sweep}[what](int(number)))
        return
    print(HEADER)
    show(peaks())


def peaks(images: tuple[int, int] = (500, 20_000), plans: tuple[int, int] = (2, 20)) -> list[Row]:
    """How the two peaks grow."""
    few, many = (_measure("moments", count) for count in images)
    small, large = (_measure("sweep", count) for count in plans)
    return [
        Row(f"peak memory of moments, {images[1]:,} images / {images[0]}", many / few, 1.05),
        Row(f"peak memory of a sweep beyond its features, {plans[1]} plans / {plans[0]}", large / small, 1.05),
    ]


def moments(count: int) -> float:
    """Peak resident set in MiB of this process after collecting the moments of all pairs of vit-mini."""
    import torch

    import toastlib as toast

    class Stream:
        def batches(self, size: int) -> Iterator[tuple[torch.Tensor, None]]:
            for start in range(0, count, size):
                yield torch.rand(min(size, count - start), 3, 32, 32) * 2 - 1, None

    toast.collect_moments(toast.load_encoder("vit-mini", device="cpu"), Stream(), folds=0)
    return _peak()


def sweep(count: int) -> float:
    """Peak resident set in MiB after the features of so many plans, dropped and mapped, less those features."""
    import toastlib as toast
    from benchmarks.inputs import load
    from toastlib.approximation.engine import collect_features
    from toastlib.approximation.prepare import prepare

    encoder, images = load(SWEPT_IMAGES, 6)
    plans = toast.paper.plan_list(len(encoder.blocks))[:count]
    moments = toast.collect_moments(encoder, images.train)
    ready = prepare(encoder, images, plans, translators=["identity", "linear"], calibration=moments, batch_size=32)
    features = collect_features(encoder, images.train, ready.variants, ready.maps)
    return _peak() - features.nbytes / 2**20


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(what: str, number: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", what, str(number)]
    environment = os.environ | {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


if __name__ == "__main__":
    main()
