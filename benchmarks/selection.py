"""How many of all plans of a size a choice beats, by what the plans are judged by and on how many images they are run.

python -m benchmarks.selection --dataset cifar10 [--removed 2] [--verify 300 1000] [--test 10000]

All plans that remove so many blocks are run once on training images that neither maps nor head have seen, and on the
test images. Of the former, random subsets choose: for each measure the plan that it puts first. Nothing else changes
from subset to subset. The last row is the share that a plan beats on half of the test images which was chosen by the
labels of the other half: so much of the order of these plans can be told at all.
"""

import argparse
from functools import cache


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--removed", type=int, default=2, help="how many blocks the plans remove")
    parser.add_argument("--train", type=int, default=5000, help="images that heads are fitted on")
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--calibration", type=int, default=500, help="of the training images, for the maps")
    parser.add_argument("--held-out", type=int, default=5000, help="further training images, to run the plans on")
    parser.add_argument("--verify", type=int, nargs="*", default=[300, 1000], help="how many of them choose")
    parser.add_argument("--subsets", type=int, default=40, help="choices for each number of images")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of all training images")
    print(chosen(**vars(parser.parse_args())).round(2).to_string(index=False))


def chosen(
    dataset: str,
    removed: int,
    train: int,
    test: int,
    calibration: int,
    held_out: int,
    verify: list[int],
    subsets: int,
    seed: int,
):
    """A row for each measure and number of images: shares that the choice beats, and its distance from the best."""
    import numpy as np
    import pandas as pd

    import toastlib as toast
    from toastlib.approximation.engine import THE_ORIGINAL, collect_features
    from toastlib.approximation.prepare import prepare
    from toastlib.selection.plans import every_plan
    from toastlib.selection.regret import regret, win_rate
    from toastlib.selection.rerank import divergence, features_error, loss

    encoder = toast.load_encoder("vit-mini", device="cpu")
    images = toast.load_images(dataset, encoder, train_size=train + held_out, test_size=test)
    drawn = images.train.sample(train + held_out, seed)
    seen, unseen = drawn[:train], drawn[train:]
    plans = every_plan(len(encoder.blocks), removed)
    options = {"translators": ["linear"], "calibration": seen[:calibration], "batch_size": 32}
    ready = prepare(encoder, images, plans, **options)
    head = toast.Probe(len(images.class_names), toast.HeadConfig(seeds=3, min_steps=1000)).fit(
        collect_features(encoder, seen, [THE_ORIGINAL], {}), seen.labels
    )
    predicted = head.predict(collect_features(encoder, images.test, ready.variants, ready.maps))
    shares = (predicted == images.test.labels).double().mean(1).numpy()[1:].T
    correct = pd.DataFrame(shares, columns=[str(plan) for plan in plans])
    features = collect_features(encoder, unseen, ready.variants, ready.maps)
    measures = {
        "features": lambda rows, plan: features_error(plan[rows], features[0, rows]).mean(),
        "divergence": lambda rows, plan: divergence(head, plan[rows], features[0, rows]).mean(),
        "loss": lambda rows, plan: loss(head, plan[rows], unseen.labels[rows]).mean(),
    }

    @cache
    def worth(plan: str) -> tuple[float, float, float]:
        standing = win_rate(correct, plan)
        return 100 * standing.beats, 100 * standing.unbeaten, regret(correct, plan).points

    order, table = np.random.default_rng(seed), []
    for size in (*verify, held_out):
        rows = [order.choice(held_out, size, replace=False) for _ in range(subsets if size < held_out else 1)]
        for name, measure in measures.items():
            picks = [np.argmin([measure(subset, plan) for plan in features[1:]]) for subset in rows]
            beats, unbeaten, behind = np.mean([worth(correct.columns[pick]) for pick in picks], axis=0)
            table.append((name, size, beats, unbeaten, behind))
    hindsight = win_rate(correct, correct.columns[0]).hindsight
    table.append(("half of the test labels", len(correct) // 2, 100 * hindsight, np.nan, np.nan))
    return pd.DataFrame(table, columns=["chosen by", "images", "beats", "unbeaten", "points behind"])


if __name__ == "__main__":
    main()
