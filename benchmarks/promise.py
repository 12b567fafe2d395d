"""How often the promise of ``toast approximate --max-drop`` is broken, over many draws of all images.

python -m benchmarks.promise [--jobs 2] [--device cpu] [--repetitions 24]

A repetition draws the training images anew from all images of a set, makes the model smaller, and looks at all the
images that were not drawn: the promise is broken if they lose more points than it says. Refusals break none.
"""

import argparse
import os
from dataclasses import replace

SETS = ("mnist-mini", "fashion-mnist-mini", "digits")
SIZES = (600, 1000, 1500)
BOUNDS = (2.0, 5.0)


def main() -> None:
    """Measure, and print a row for each bound, set and size, and for each bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=24, help="of each set, size and bound")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    print(measured(**vars(options)).round(2).to_string())


def measured(repetitions: int, jobs: int, device: str):
    """A row for each bound, set and size, and for each bound: shares in percent, and blocks removed on average."""
    import pandas as pd
    from joblib import Parallel, delayed

    settings = [(b, name, n, k, device) for k in range(repetitions) for b in BOUNDS for name in SETS for n in SIZES]
    rows = pd.DataFrame(Parallel(jobs)(delayed(repetition)(*setting) for setting in settings))
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


def repetition(bound: float, dataset: str, train: int, seed: int, device: str) -> dict:
    """One draw: blocks that were removed, 0 if it was refused, and points lost by the images that were not drawn."""
    import torch

    import toastlib as toast

    encoder = toast.load_encoder("vit-mini", device=device)
    images = toast.load_images(dataset, encoder)
    parts = images.train, images.test
    everything = replace(
        images.train,
        pixels=torch.cat([part.pixels for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1000 + seed))
    drawn, rest = everything[order[:train]], everything[order[train:]]
    row = {"bound": bound, "dataset": dataset, "train": train, "seed": seed}
    try:
        made = toast.compress(encoder, toast.ImageSet(dataset, drawn, rest), max_drop=bound, seed=seed)
    except toast.InputError:
        return row | {"blocks": 0, "lost": 0.0, "broken": False}
    return row | {"blocks": len(made.plan.removed), "lost": made.lost[0], "broken": made.lost[0] > bound}


if __name__ == "__main__":
    main()
