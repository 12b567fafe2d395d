"""How often the promise of ``toast approximate --max-drop`` is broken, over many draws of images.

python -m benchmarks.promise [--jobs 2] [--device cpu] [--draws 4] [--promises 20]

A draw takes training images from all images of a set, of which two thirds fit maps, head and choice; one block more and
one more is removed. All images that this has not seen are then scored once. A promise takes as many of them as the
training images' last third has, at random, and bounds the loss on them; it is broken if the rest loses more.
"""

import argparse
import os
from dataclasses import replace

SETS = ("mnist-mini", "fashion-mnist-mini", "digits")
SIZES = (600, 1200)
BOUNDS = (1.0, 2.0, 5.0)
MOST = 8  # blocks


def main() -> None:
    """Measure, and print a row for each bound, set and size, and for each bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4, help="of the images for maps, head and choice")
    parser.add_argument("--promises", type=int, default=20, help="of the held-out images, for each of these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    print(measured(**vars(options)).round(2).to_string())


def measured(draws: int, promises: int, jobs: int, device: str):
    """A row for each bound, set and size, and for each bound: shares in percent, and blocks removed on average."""
    import pandas as pd
    from joblib import Parallel, delayed

    settings = [(name, size, seed, promises, device) for size in SIZES for seed in range(draws) for name in SETS]
    rows = pd.concat(Parallel(jobs)(delayed(draw)(*setting) for setting in settings))
    columns = {
        "repetitions": ("seed", "size"),
        "broken": ("broken", lambda found: 100 * found.mean()),
        "refused": ("blocks", lambda found: 100 * (found == 0).mean()),
        "blocks": ("blocks", "mean"),
        "lost": ("lost", "mean"),
    }
    tables = [rows.groupby(["bound", "dataset", "train"]).agg(**columns)]
    tables.append(rows.assign(dataset="all", train="all").groupby(["bound", "dataset", "train"]).agg(**columns))
    return pd.concat(tables)


def draw(dataset: str, train: int, seed: int, promises: int, device: str):
    """One draw: a row for each bound and promise, with the blocks removed (0: refused) and what the rest loses."""
    from itertools import islice

    import pandas as pd
    import torch

    import toastlib as toast
    from toastlib.evaluation.heads import choose_head
    from toastlib.export.compress import TRIED_ON
    from toastlib.selection.search import HELD_OUT, Calibrated, largest_plan_within, make_selector, scores_by_size
    from toastlib.translators.base import ALIGN, RECOMMENDED

    encoder, translator = toast.load_encoder("vit-mini", device=device), RECOMMENDED + ALIGN
    images = toast.load_images(dataset, encoder)
    parts = images.train, images.test
    pixels, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "labels"))
    everything = replace(images.train, pixels=pixels, labels=labels)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1000 + seed))
    held_out = train // HELD_OUT
    fitting, unseen = everything[order[: train - held_out]], everything[order[train - held_out :]]
    head = choose_head(encoder, toast.ImageSet(dataset, fitting, unseen), None, seed)
    reserved = min(TRIED_ON, len(fitting) // 3)
    calibrated, tried_on = Calibrated(encoder, fitting[reserved:][:500]), fitting[:reserved]
    choose = make_selector(calibrated, tried_on, head, translator)
    tested = list(islice(scores_by_size(calibrated, choose, translator, head, unseen), MOST))
    rows = []
    for promise in range(promises):
        shuffled = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(promise)).numpy()
        seen, rest = shuffled[:held_out], shuffled[held_out:]
        for bound in BOUNDS:
            row = {"bound": bound, "dataset": dataset, "train": train, "seed": seed, "blocks": 0, "lost": 0.0}
            try:
                held = [one._replace(before=one.before[seen], after=one.after[seen]) for one in tested]
                plan, _ = largest_plan_within(held, head, bound)
                row["blocks"] = len(plan.removed)
                one = next(one for one in tested if one.choice.plan == plan)
                row["lost"] = 100 * (one.before[rest] - one.after[rest]).mean()
            except toast.InputError:
                pass
            rows.append(row | {"broken": row["lost"] > bound})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
