"""All maps and similarities of all pairs of blocks, against one forward pass over the same images.

python -m benchmarks.moments [--images 500]
"""

import argparse
import time

from benchmarks.table import HEADER, Row, show


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    print(HEADER)
    show(against_a_forward_pass(parser.parse_args().images))


def against_a_forward_pass(count: int) -> list[Row]:
    """Both timed in turns, the shortest time of each: what disturbs a machine only ever adds time."""
    import torch

    import toastlib as toast
    from benchmarks.inputs import load
    from toastlib.statistics.similarity import METRICS

    encoder, images = load(count, 6)
    depth = len(encoder.blocks)
    spans = [toast.Span(start, end) for start in range(-1, depth) for end in range(start + 1, depth)]

    @torch.inference_mode()
    def forward() -> None:
        for pixel_values, _ in images.train.batches():
            encoder(pixel_values)

    def everything() -> None:
        moments = toast.collect_moments(encoder, images.train, folds=0)
        toast.fit_spans(spans, "linear", moments)
        for metric in METRICS:
            toast.similarity(moments, metric)

    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        forward()
        middle = time.perf_counter()
        everything()
        rounds.append((middle - start, time.perf_counter() - middle))
    alone, with_all = map(min, zip(*rounds, strict=True))
    return [Row(f"maps and similarities of all {len(spans)} pairs / one forward pass", with_all / alone, 1.7)]


if __name__ == "__main__":
    main()
