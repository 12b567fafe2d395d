"""Draw the embedded sets data/images/mnist-mini and data/images/fashion-mnist-mini from the original ones.

    python scripts/make_mini_sets.py                              # from the Hub, into data/images
    python scripts/make_mini_sets.py --hub FOLDER                 # from a folder laid out as the Hub is

Of every class 150 training and 100 test images are drawn from the original split of the same name, with seed 0, and put
in random order. They are stored as PNG, which loses nothing.
"""

import hashlib
from argparse import ArgumentParser
from pathlib import Path

import datasets
import numpy as np

OUT = Path(__file__).parent.parent / "data" / "images"
SEED = 0
PER_CLASS = {"train": 150, "test": 100}
SETS = {
    "mnist-mini": {
        "path": "ylecun/mnist",
        "title": "MNIST",
        "licence": "cc-by-sa-3.0",
        "authors": "Yann LeCun, Corinna Cortes and Christopher J. C. Burges",
        "shows": "handwritten digits",
    },
    "fashion-mnist-mini": {
        "path": "zalando-datasets/fashion_mnist",
        "title": "Fashion-MNIST",
        "licence": "mit",
        "authors": "Zalando SE (Han Xiao, Kashif Rasul and Roland Vollgraf)",
        "shows": "articles of clothing",
    },
}
CARD = """---
license: {licence}
task_categories: [image-classification]
size_categories: [1K<n<10K]
configs:
- config_name: default
  data_files:
  - split: train
    path: train-00000-of-00001.parquet
  - split: test
    path: test-00000-of-00001.parquet
---
# {name}

1,500 training and 1,000 test images of {title}: {shows}, 28 x 28 pixels, grey, ten classes.

- **Source**: `{path}` on the Hugging Face Hub, by {authors}.
- **Licence**: {licence}, that of the source.
- **Draw**: of every class 150 images of the training split and 100 of the test split, without replacement, with seed
  {seed}, then in random order: `python scripts/make_mini_sets.py`.
- **Format**: columns `image` (PNG) and `label` (the class names of the source).
- **Hashes** (SHA-256 of the decoded pixels, uint8, in order): train `{train}`, test `{test}`.
"""


def draw_by_class(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Numbers of rows, `per_class` of every class, in random order."""
    generator = np.random.default_rng(seed)
    rows = [generator.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in np.unique(labels)]
    return generator.permutation(np.concatenate(rows))


def pixel_hash(rows: datasets.Dataset) -> str:
    """SHA-256 of all pixels, in order."""
    return hashlib.sha256(b"".join(np.array(image).tobytes() for image in rows["image"])).hexdigest()


def make(name: str, hub: Path | None, out: Path) -> None:
    """Write one set, with its card."""
    about = SETS[name]
    splits = datasets.load_dataset(str(hub / about["path"]) if hub else about["path"])
    folder, hashes = out / name, {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, per_class in PER_CLASS.items():
        drawn = splits[split].select(draw_by_class(np.array(splits[split]["label"]), per_class, SEED))
        hashes[split] = pixel_hash(drawn)
        drawn.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(CARD.format(name=name, seed=SEED, **about, **hashes), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hub", type=Path, help="folder that holds owner/name folders of parquet files")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for name in SETS:
        make(name, arguments.hub, arguments.out)
