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

    pixel_values, _ = next(images.train.batches())
    rows = encoder.embed(pixel_values).hidden.shape[:2].numel()
    stacked = torch.randn(rows, (depth + 1) * encoder.width, dtype=torch.float64)

    def products() -> None:
        """All pairs of blocks twice, of one batch of images."""
        stacked.mT @ stacked

    def seconds(run) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    rounds = [(seconds(forward), seconds(everything), seconds(products)) for _ in range(7)]
    alone, with_all, of_a_batch = map(min, zip(*rounds, strict=True))
    share = (depth + 2) / (depth + 1) / 2  # the pairs i <= j
    bound = 1 + share * of_a_batch * count / len(pixel_values) / alone
    figure = f"maps and similarities of all {len(spans)} pairs / one forward pass; target: with float64 products alone"
    return [Row(figure, with_all / alone, round(bound, 2))]


if __name__ == "__main__":
    main()
