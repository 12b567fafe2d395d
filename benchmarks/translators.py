"""Points that each translator loses under a frozen head: the paper's plans, several calibration draws.

python -m benchmarks.translators --dataset cifar10 [--draws 5] [--test 10000] [--translators linear ...] [--bounds]

Draw k is judged on test images of its own, so that an interval over images is one over draws as well. What was computed
once is read from toastlib's cache. ``--bounds`` adds maps in context that are fitted on more: on cropped copies of the
same calibration images too, and, the oracle, on all training images. In its last rows blocks are parted: their MLPs
alone are replaced, their attentions alone, and, of the MLPs nearest to them, so many that at least as many parameters
go as with the paper's map.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from math import ceil
from statistics import mean

CLOSED_FORMS = ["identity", "scalar", "diagonal", "orthogonal", "low-rank", "linear", "affine", "ridge"]
AWARE_OF_TOKENS = ["separate", "context"]
REALIGNED = ["identity+align", "linear+align", "context+align"]
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
    parser.add_argument("--translators", nargs="*", default=[*CLOSED_FORMS, *AWARE_OF_TOKENS, *REALIGNED])
    parser.add_argument("--bounds", action="store_true", help="also maps fitted on more images, and parts of blocks")
    options = parser.parse_args()
    correct = judged(**vars(options))
    print(f"accuracy of the original: {100 * correct['original'].mean():.1f} %")
    print(against_linear(correct).round(2).to_string(index=False))


def judged(
    dataset: str, draws: int, train: int, test: int, calibration: int, translators: Iterable[str], bounds: bool
) -> dict:
    """Translator -> share of plans and seeds that classify each test image rightly, shape (images,)."""
    import numpy as np

    import toastlib as toast

    encoder = toast.load_encoder("vit-mini", device="cpu")
    images = toast.load_images(dataset, encoder, train_size=train, test_size=test, at_most=True)
    plans = toast.paper.plan_list(12)
    everything = toast.collect_moments(encoder, images.train, toast.plan_pairs(plans), folds=5) if bounds else None
    translators = list(dict.fromkeys(["linear", *translators]))
    correct = defaultdict(list)
    for draw in range(draws):
        part = toast.ImageSet(images.name, images.train, images.test[draw::draws])
        seen = images.train.sample(calibration, draw)
        drawn = toast.evaluate_plans(encoder, part, plans, translators=translators, calibration=seen)
        for name in ("original", *translators):
            correct[name].append(drawn.mean_correct(translator=name))
        if bounds:
            for name, share in of_bounds(encoder, part, plans, everything, seen).items():
                correct[name].append(share)
    return {name: np.concatenate(parts) for name, parts in correct.items()}


def of_bounds(encoder, images, plans, everything, calibration) -> dict:
    """The same for maps that see more than the calibration images, and for parts of the plans' blocks."""
    import numpy as np

    import toastlib as toast

    views = toast.collect_moments(
        encoder, calibration, toast.plan_pairs(plans), folds=5, augmentation=toast.Augmentation()
    )
    sets = {VIEWS: views, ORACLE: everything}
    better = toast.evaluate_plans(encoder, images, plans, translators=["context"], calibration=sets)
    correct = {name: better.mean_correct(calibration=name) for name in sets}
    sublayers = toast.split_blocks(encoder)
    finer = zip(*(parts_instead(encoder, sublayers, plan) for plan in plans), strict=True)
    for (name, translator), instead in zip(PARTS.items(), finer, strict=True):
        result = toast.evaluate_plans(sublayers, images, instead, translators=[translator], calibration=calibration)
        shares = [result.mean_correct(plan=str(plan)) for plan in instead]  # one may stand for several
        correct[name] = np.mean(shares, axis=0)
    return correct


def parts_instead(encoder, sublayers, plan) -> tuple:
    """What `PARTS` replace in place of a plan's blocks."""
    from toastlib.plan import Plan, Span, plan_of

    one = removed_parameters(sublayers, Plan((Span(0, 1),)), PARTS["MLPs, as many parameters"])
    count, middle = ceil(removed_parameters(encoder, plan, "linear") / one), mean(plan.removed)
    nearest = sorted(range(len(encoder.blocks)), key=lambda block: (abs(block - middle), -block))[:count]
    parts = ((1, plan.removed), (0, plan.removed), (1, nearest))
    return tuple(plan_of(2 * block + offset for block in blocks) for offset, blocks in parts)


def removed_parameters(encoder, plan, translator: str) -> int:
    """Parameters of the plan's blocks, without those of the maps."""
    from toastlib.evaluation.costs import map_costs
    from toastlib.models.costs import parameter_count

    removed = sum(parameter_count(encoder.blocks[block]) for block in plan.removed)
    return removed - len(plan) * map_costs(translator, encoder.width, tokens=1)[0]


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
