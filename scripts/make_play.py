"""Compute the numbers of the page to play with: docs/play/play.json, and its card docs/play/card.md.

    python scripts/make_play.py                             # vit-mini on three embedded sets: minutes on one core
    python scripts/make_play.py --encoder vit-s14-focus --image-size 112 --data cifar10 --images 100

All plans that remove one block, two, or neighbours, and those of the paper, are run with each map. What is kept is the
class that one frozen head gives each test image, so that the page counts for itself. Other runs in the file stay.
"""

import base64
import io
import itertools
import json
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import t as student

import toastlib as toast
from toastlib.data.catalog import ROOT
from toastlib.evaluation.metrics import CONFIDENCE
from toastlib.evaluation.result import Evaluation
from toastlib.paper import plan_list
from toastlib.plan import ORIGINAL, Plan, all_spans, plan_of
from toastlib.runs.store import _commit
from toastlib.runs.versions import installed

OUT = ROOT / "docs" / "play"
SETS, MAPS = ("digits", "mnist-mini", "fashion-mnist-mini"), ("identity", "linear", "context")
COLUMNS = 20  # of the sheet of test images
CARD = """# A page to play with

Run `make site`, then open `build/site/docs/play/index.html` (from the built site:
<a href="index.html">click blocks away</a>). It shows what a click costs: accuracy, changed answers, size and compute.
The page is one file, and needs no Python, no kernel and no network.

The page has no model inside. Its numbers are computed beforehand, for all plans that remove one block, two blocks, or
neighbours, and for the paper's. The file holds the class that the head gives each test image, and the page counts from
these classes. The head is frozen: a linear classifier of the CLS token, trained once on the original's features with
seed {seed}. Maps are fitted on training images without labels, drawn with seed {seed}. FLOPs are counted, not timed;
sizes are those of float32.

| encoder | data set | test images | calibration images | plans | maps |
|---|---|---|---|---|---|
{rows}

## How it was made

{made}
"""


def small_plans(block_count: int) -> list[Plan]:
    """Every plan that removes one block, two blocks or neighbours, and the paper's; neighbours are one span."""
    few = [blocks for count in (1, 2) for blocks in itertools.combinations(range(block_count), count)]
    found = [*map(plan_of, few), *(Plan((span,)) for span in all_spans(block_count)), *plan_list(block_count)]
    return list(dict.fromkeys(plan_of(plan.removed) for plan in found))


def mask(plan: Plan) -> int:
    """The plan as a number: bit k is set where block k is removed."""
    return sum(1 << block for block in plan.removed)


def unmask(number: int) -> Plan:
    """The plan that `mask` writes as this number."""
    return plan_of(block for block in range(number.bit_length()) if number >> block & 1)


def evaluate(
    encoder: toast.Encoder, data: toast.ImageSet, plans: Iterable[Plan], *, maps: Iterable[str], calibration: int
) -> Evaluation:
    """Answers of one frozen head, the first, for the plans with each map."""
    moments = toast.collect_moments(encoder, data.train.sample(calibration, seed=0))
    head = toast.HeadConfig("frozen", seeds=1)
    return toast.evaluate_plans(encoder, data, plans, translators=maps, calibration=moments, head=head)


def hexadecimal(classes: np.ndarray) -> str:
    """Classes, int64, shape (images,), as one digit each."""
    return "".join(f"{label:x}" for label in classes)


def sheet(pixels: np.ndarray) -> str:
    """All images, uint8, shape (images, 3, side, side), as the tiles of one PNG in base64, `COLUMNS` in a row."""
    images, _, side, _ = pixels.shape
    tiles = np.zeros((-(-images // COLUMNS) * COLUMNS, side, side, 3), np.uint8)
    tiles[:images] = pixels.transpose(0, 2, 3, 1)
    rows = tiles.reshape(-1, COLUMNS, side, side, 3).transpose(0, 2, 1, 3, 4)
    picture, file = Image.fromarray(rows.reshape(-1, COLUMNS * side, 3)), io.BytesIO()
    is_grey = (pixels == pixels[:, :1]).all()
    (picture.convert("L") if is_grey else picture.quantize(64)).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def as_run(encoder: toast.Encoder, data: toast.ImageSet, result: Evaluation) -> dict:
    """What the page needs of one encoder and data set; a plan is ``[parameters, kFLOPs, answers]``."""
    costs = result.table[["translator", "plan", "parameters", "gflops"]]
    rows = [
        (name, mask(Plan.parse(plan)), [int(parameters), round(gflops * 1e6), hexadecimal(answers)])
        for (name, plan, parameters, gflops), answers in zip(costs.itertuples(index=False), result.predictions)
    ]
    names = dict.fromkeys(name for name, *_ in rows if name != ORIGINAL)
    return {
        "encoder": encoder.name,
        "dataset": data.name,
        "blocks": len(encoder.blocks),
        "images": len(data.test),
        "classes": list(data.class_names),
        "labels": hexadecimal(result.labels),
        "student": round(float(student.ppf((1 + CONFIDENCE) / 2, len(data.test) - 1)), 6),
        "original": rows[0][2],
        "maps": {name: {number: row for own, number, row in rows if own == name} for name in names},
        "side": data.test.pixels.shape[-1],
        "columns": COLUMNS,
        "sheet": sheet(data.test.pixels.numpy()),
    }


def card(runs: list[dict]) -> str:
    """How the numbers were made, and a page of the site that leads to them."""
    rows, made = [], {}
    for run in runs:
        cells = [run[key] for key in ("encoder", "dataset", "images", "calibration")]
        cells += [len(next(iter(run["maps"].values()))), ", ".join(run["maps"])]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        made.setdefault(json.dumps(run["made"]), []).append(f"{run['encoder']} on {run['dataset']}")
    told = []
    for about, names in made.items():
        told += [f"- **{', '.join(names)}**", *(f"  - {name}: {value}" for name, value in json.loads(about).items())]
    return CARD.format(seed=0, rows="\n".join(rows), made="\n".join(told))


def main(words: list[str] | None = None) -> None:
    """Run what is asked for, and write file and card anew."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="vit-mini", help="alias, Hub id or folder")
    parser.add_argument("--data", nargs="+", default=SETS, help="sets of at most 16 classes")
    parser.add_argument("--maps", nargs="+", default=MAPS, help="translators")
    parser.add_argument("--images", type=int, default=300, help="test images, the first ones")
    parser.add_argument("--calibration", type=int, default=300, help="training images that maps are fitted on")
    parser.add_argument("--train", type=int, default=1500, help="training images of the head, at most")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plans", type=int, default=None, help="only so many plans, to try the page")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(words)
    file = asked.out / "play.json"
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
    encoder = toast.load_encoder(asked.encoder, image_size=asked.image_size, dtype=asked.dtype)
    plans = small_plans(len(encoder.blocks))[: asked.plans]
    versions = ", ".join(f"{name} {version}" for name, version in installed().items())
    command = shlex.join(["python", "scripts/make_play.py", *(sys.argv[1:] if words is None else words)])
    about = {"Command": f"`{command}`", "Date": str(date.today()), "Versions": versions, "Commit": _commit()}
    for name in asked.data:
        data = small_set(toast.load_images(name, encoder), asked.train, asked.images)
        result = evaluate(encoder, data, plans, maps=asked.maps, calibration=asked.calibration)
        run = as_run(encoder, data, result) | {"calibration": asked.calibration, "made": about}
        runs = [one for one in runs if (one["encoder"], one["dataset"]) != (encoder.name, name)] + [run]
        paper = [mask(plan) for plan in plan_list(len(encoder.blocks))]
        text = json.dumps({"paper": paper, "runs": runs}, separators=(",", ":"))
        file.write_text(text.replace("</", "<\\/"), encoding="utf-8")  # no end of a script inside a page
        (asked.out / "card.md").write_text(card(runs), encoding="utf-8")


def small_set(data: toast.ImageSet, train: int, test: int) -> toast.ImageSet:
    """The first images of each split; both are in random order."""
    return replace(data, train=data.train[:train], test=data.test[:test])


if __name__ == "__main__":
    main()
