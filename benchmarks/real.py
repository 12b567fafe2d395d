"""A real ViT-S at 224 pixels: the sweep of three plans against the plain way, and what moments add to a forward pass.

    python -m benchmarks.real [--train 500] [--test 300]

The model is that of `toast fetch vit-s14-focus`, the images are CIFAR-10's: without one of them, the rows are skipped.
"""

import argparse
import os
import time

from benchmarks import sweep
from benchmarks.table import HEADER, Row, show

MODEL, DATASET = "vit-s14-focus", "cifar10"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=300)
    options = parser.parse_args()
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    print(HEADER)
    show(against_reference(options.train, options.test))


def against_reference(train_size: int, test_size: int) -> list[Row]:
    """The whole job in float32 and with ``dtype="fastest"``; then moments for three plans."""
    import toastlib as toast
    from benchmarks.inputs import load

    try:
        encoder, images = load(train_size, test_size, DATASET, model=MODEL)
    except toast.errors.InputError as error:
        print(f"<!-- The rows of {MODEL} are skipped: {error} -->")
        return []
    plain = sweep.run_plain(train_size, test_size, DATASET, MODEL)
    rows, seconds = [], {"plain": plain["one process"]}
    for dtype, target in (("float32", 1.8), ("fastest", 3.5)):
        seconds[dtype], accuracies = sweep.run_engine(train_size, test_size, DATASET, dtype, MODEL)
        faster = plain["one process"] / seconds[dtype]
        rows.append(Row(f"ViT-S, plain way in one process / ours, {dtype}", faster, target, at_least=True))
        apart = max(abs(plain["accuracies"][plan] - accuracies[plan]) for plan in accuracies)
        rows.append(Row(f"ViT-S, largest difference of their accuracies (points), {dtype}", apart, 1))
    print(f"<!-- seconds: { {name: round(value) for name, value in seconds.items()} } -->")
    return rows + moments_beyond_a_forward_pass(encoder, images.train[:64])


def moments_beyond_a_forward_pass(encoder, images) -> list[Row]:
    """What moments for three plans add to the forward pass over their images, of all patches and of a quarter."""
    import torch

    import toastlib as toast

    @torch.inference_mode()
    def forward() -> None:
        for pixel_values, _ in images.batches():
            encoder(pixel_values)

    pairs = toast.plan_pairs(sweep.SPREAD)
    tokens = {"all patches": "all", "a quarter of the patches": toast.TokenSample(0.25)}
    runs = {"": forward} | {
        name: lambda chosen=chosen: toast.collect_moments(encoder, images, pairs, folds=0, tokens=chosen)
        for name, chosen in tokens.items()
    }
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(4):  # in turns, and of processor time: what disturbs a machine only ever adds
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return [
        Row(f"ViT-S, moments for three plans / forward, {name}", least[name] / least[""] - 1, 0.1) for name in tokens
    ]


if __name__ == "__main__":
    main()
