"""Points that each translator loses under a frozen head: the paper's plans, several calibration draws.

python -m benchmarks.translators --dataset cifar10 [--draws 5] [--test 2000] [--translators identity linear ...]

Draw k is judged on test images of its own, so that an interval over images is one over draws as well. Two rows more
have maps in context: fitted on cropped copies of the same calibration images too, and, the oracle, on all training
images. In the last rows blocks are parted: their MLPs alone are replaced, their attentions alone, and, of the MLPs
nearest to them, so many that at least as many parameters go as with the paper's map.
"""

import argparse
from collections.abc import Iterable
from math import ceil
from statistics import mean

TRANSLATORS = ["identity", "linear", "separate", "context", "identity+realign", "context+realign"]
VIEWS = "context, four crops each"
ORACLE = "context, all training images"
PARTS = {"their MLPs alone": "ridge", "their attentions alone": "context", "MLPs, as many parameters": "separate"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--train", type=int, default=5000, help="images that heads and the oracle are fitted on")
    parser.add_argument("--test", type=int, default=10000, help="test images of all draws together")
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--translators", nargs="*", default=TRANSLATORS)
    options = parser.parse_args()
    correct = judged(
        options.dataset, options.draws, options.train, options.test, options.calibration, options.translators
    )
    print(against_linear(correct).round(2).to_string(index=False))


def judged(dataset: str, draws: int, train: int, test: int, calibration: int, translators: Iterable[str]) -> dict:
    """Translator -> share of plans and seeds that classify each test image rightly, shape (images,)."""
    import numpy as np

    import toastlib as toast

    encoder = toast.load_encoder("vit-mini", device="cpu")
    images = toast.load_images(dataset, encoder, train_size=train, test_size=test, at_most=True)
    plans = toast.paper.plan_list(12)
    pairs = toast.moments.plan_pairs(plans)
    everything = toast.collect_folds(encoder, images.train, pairs)
    settings = {"heads": "frozen", "head_min_steps": 1000, "calibration_size": calibration}
    sublayers = toast.split_blocks(encoder)
    finer = dict(zip(PARTS, zip(*(parts_instead(encoder, sublayers, plan) for plan in plans)), strict=True))
    correct = {name: [] for name in ("original", *translators, VIEWS, ORACLE, *PARTS)}
    for draw in range(draws):
        part = toast.ImageSet(images.name, images.train, images.test[draw::draws])
        drawn = toast.predict(encoder, part, plans, translators, calibration_seed=draw, **settings)
        for name in ("original", *translators):
            correct[name].append(drawn.mean_correct(translator=name))
        seen = toast.collect_folds(encoder, images.train.sample(calibration, draw), pairs, views=toast.Views())
        for name, moments in ((VIEWS, seen), (ORACLE, everything)):
            better = toast.predict(encoder, part, plans, ["context"], moments=moments, **settings)
            correct[name].append(better.mean_correct(translator="context"))
        for name, instead in finer.items():
            predicted = toast.predict(sublayers, part, instead, [PARTS[name]], calibration_seed=draw, **settings)
            right = [predicted.mean_correct(plan=str(plan)) for plan in instead]  # one may stand for several
            correct[name].append(np.mean(right, axis=0))
    return {name: np.concatenate(parts) for name, parts in correct.items()}


def parts_instead(encoder, sublayers, plan) -> tuple:
    """What `PARTS` replace in place of a plan's blocks."""
    from toastlib.evaluation import removed_parameters
    from toastlib.plan import Plan, Span, plan_of

    one = removed_parameters(sublayers, Plan((Span(0, 1),)), translator=PARTS["MLPs, as many parameters"])
    count, middle = ceil(removed_parameters(encoder, plan) / one), mean(plan.removed)
    nearest = sorted(range(len(encoder.blocks)), key=lambda block: (abs(block - middle), -block))[:count]
    parts = ((1, plan.removed), (0, plan.removed), (1, nearest))
    return tuple(plan_of(2 * block + offset for block in blocks) for offset, blocks in parts)


def against_linear(correct: dict):
    """Points lost against the original and gained on the linear map, with 95 % intervals, and the share of its loss."""
    import pandas as pd

    import toastlib as toast

    original, linear = correct["original"], correct["linear"]
    rows = [
        (name, *toast.paired_difference(original, some), *toast.paired_difference(some, linear))
        for name, some in correct.items()
        if name != "original"
    ]
    table = pd.DataFrame(rows, columns=["translator", "lost", "low", "high", "gain", "gain_low", "gain_high"])
    return table.assign(share=table["lost"] / table.set_index("translator").loc["linear", "lost"])


if __name__ == "__main__":
    main()
