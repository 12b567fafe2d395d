"""The sweep against the plain way, and against the blocks that have to run.

    python -m benchmarks.sweep [--train 5000] [--test 2000] [--dataset NAME]

The paper's 20 plans and the original, linear maps from 500 images, retrained heads with 3 seeds, float32; and once
more with `dtype="fastest"` where that is bfloat16. Of the plain way the original and three plans are run, each with its
heads and one head in a process of its own; the rest is counted from them, features by the number of blocks and heads
by their number. The cache is off.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.table import HEADER, Row, show

SAMPLED = ("1->5", "2->4", "3->4")
SPREAD = ("2->5", "7->10", "9->11")
"""Three plans from early to late in the depth, for an encoder that 20 plans would take too long on."""
SEEDS = 3
CALIBRATION = 500
ROUNDS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--dataset", default="")
    parser.add_argument("--dtype", default="float32", help="of the engine, where it is run alone")
    parser.add_argument("--model", default="vit-mini", help="likewise")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    if options.child:
        print(json.dumps(ours(options.train, options.test, options.dataset, options.dtype, options.model)))
        return
    print(HEADER)
    show(against_reference(options.train, options.test, options.dataset))
    show(against_hardware(512, 64, options.dataset))


def ours(train_size: int, test_size: int, dataset: str, dtype: str, model: str) -> dict[str, float]:
    """Plan -> mean accuracy over seeds of the engine's whole job."""
    import toastlib as toast
    from benchmarks.inputs import load

    encoder, images = load(train_size, test_size, dataset, dtype, model)
    head, calibration = toast.HeadConfig("retrained", seeds=SEEDS, min_steps=0), calibration_size(train_size)
    plans = plans_of(encoder)
    result = toast.evaluate_plans(encoder, images, plans, translators=["linear"], calibration=calibration, head=head)
    return result.table.groupby("plan")["accuracy"].mean().to_dict()


def plans_of(encoder) -> list:
    """The paper's 20 plans for vit-mini, three for a larger encoder."""
    import toastlib as toast

    mini = encoder.name == "vit-mini"
    return toast.paper.plan_list(len(encoder.blocks)) if mini else list(map(toast.Plan.parse, SPREAD))


def calibration_size(train_size: int) -> int:
    """500 of the training images; of few, 60 %."""
    return min(CALIBRATION, train_size * 3 // 5)


def against_reference(train_size: int, test_size: int, dataset: str = "") -> list[Row]:
    """The engine in a process of its own, everything included, and the plain way, sampled."""
    import torch

    from toastlib.models.loading import resolve_dtype

    engine_seconds, engine = run_engine(train_size, test_size, dataset, "float32")
    plain = run_plain(train_size, test_size, dataset)
    one_process, per_head = plain["one process"], plain["process per head"]
    apart = max(abs(plain["accuracies"][plan] - engine[plan]) for plan in plain["accuracies"])
    seconds = f"ours {engine_seconds:.0f}, plain {one_process:.0f}, plain with a process per head {per_head:.0f}"
    print(f"<!-- seconds: {seconds} -->")
    rows = [
        Row("plain way, a process per head / ours", per_head / engine_seconds, 5.6, at_least=True),
        Row("plain way, all in one process / ours", one_process / engine_seconds, 2.3, at_least=True),
        Row("largest difference of their accuracies (points)", apart, 0.3),
    ]
    if resolve_dtype("fastest", torch.device("cpu")) == torch.float32:
        return rows
    fastest_seconds, fastest = run_engine(train_size, test_size, dataset, "fastest")
    apart = statistics.mean(fastest[plan] - engine[plan] for plan in engine)
    return [
        *rows,
        Row('plain way, a process per head / ours, dtype="fastest"', per_head / fastest_seconds, 9.5, at_least=True),
        Row('plain way, all in one process / ours, dtype="fastest"', one_process / fastest_seconds, 4, at_least=True),
        Row("mean change of accuracy by bfloat16 (points)", abs(apart), 0.3),
    ]


def run_engine(
    train_size: int, test_size: int, dataset: str, dtype: str, model: str = "vit-mini"
) -> tuple[float, dict[str, float]]:
    """Seconds of the engine's whole job in a process of its own, and plan -> its mean accuracy."""
    command = [sys.executable, "-m", "benchmarks.sweep", "--child", "--dtype", dtype, "--model", model]
    command += ["--train", str(train_size), "--test", str(test_size), "--dataset", dataset]
    start = time.perf_counter()
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return time.perf_counter() - start, json.loads(printed)


def run_plain(train_size: int, test_size: int, dataset: str, model: str = "vit-mini") -> dict:
    """Seconds of the plain way, counted up to the whole job, and accuracies of the plans that were run."""
    import toastlib as toast
    from benchmarks import reference
    from benchmarks.inputs import load
    from toastlib.data.catalog import model_path

    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import datasets, torch, transformers; transformers.AutoModel"], check=True)
    start_seconds = time.perf_counter() - start
    encoder, images = load(train_size, test_size, dataset, model=model)
    train, test = (part.pixels.permute(0, 2, 3, 1).numpy() for part in (images.train, images.test))
    classes, depth = len(images.class_names), len(encoder.blocks)
    whole = reference.load(model_path(model))
    drawn = images.train.sample(calibration_size(train_size), seed=0).pixels.permute(0, 2, 3, 1).numpy()
    stored, extract = reference.timed(reference.activations, whole, drawn)
    features = blocks = heads = processes = 0.0
    accuracies = {}
    plans = plans_of(encoder)
    for text in ("original", *(SAMPLED if len(plans) > len(SPREAD) else SPREAD)):
        plan = toast.Plan.parse(text)
        smaller, fit = reference.timed(reference.approximate, whole, plan, stored)
        (of_train, first), (of_test, second) = (reference.timed(reference.features, smaller, x) for x in (train, test))
        features, blocks = features + fit + first + second, blocks + depth - len(plan.removed)
        labelled = (of_train, images.train.labels), (of_test, images.test.labels)
        scores = []
        for seed in range(SEEDS):
            head, seconds = reference.timed(reference.train_head, *labelled[0], seed, classes)
            scores.append(reference.accuracy(head, *labelled[1]))
            heads += seconds
        _, seconds = reference.timed(reference.head_in_a_process, *labelled[0], *labelled[1], 0)
        processes += seconds
        accuracies[text] = statistics.mean(scores)
    share = sum(depth - len(plan.removed) for plan in [toast.Plan(), *plans]) / blocks
    all_but_heads, sets = start_seconds + extract + features * share, (len(plans) + 1) / len(accuracies)
    return {
        "one process": all_but_heads + heads * sets,
        "process per head": all_but_heads + processes * sets * SEEDS,
        "accuracies": accuracies,
    }


def against_hardware(train_size: int, test_size: int, dataset: str = "") -> list[Row]:
    """Ratios within the engine: a second translator, the blocks that must run, probes, the number of images."""
    import toastlib as toast
    from benchmarks.inputs import load
    from toastlib.approximation.engine import collect_features, variants_of
    from toastlib.approximation.prepare import prepare
    from toastlib.models.sublayers import split_blocks
    from toastlib.runs.estimate import block_runs

    encoder, images = load(train_size, test_size, dataset)
    plans = toast.paper.plan_list(len(encoder.blocks))
    options = {"translators": ["identity", "linear"], "calibration": images.train[:CALIBRATION], "batch_size": 32}
    ready = prepare(encoder, images, plans, **options)
    linear, both, maps = variants_of(plans, ["linear"]), ready.variants, ready.maps
    needed = block_runs(plans, len(encoder.blocks))
    ends = sum(
        len(encoder.blocks) - 1 not in variant.plan.removed for variant in linear
    )  # no two share their last block
    timed = {
        "block": lambda: _block_seconds(encoder, images.train),
        "attention": lambda: _block_seconds(split_blocks(encoder), images.train, of=0),
        "heads": lambda: _seconds(_fit_heads, 40, len(images.train) * 5, encoder.width) / 5,
        "both": lambda: _seconds(collect_features, encoder, images.train, both, maps),
    }
    for parts in (1, 2, 4):
        part = images.train[: len(images.train) // parts]
        timed[parts] = lambda part=part: _seconds(collect_features, encoder, part, linear, maps)
    rounds = [{name: measure() for name, measure in timed.items()} for _ in range(ROUNDS)]
    # What disturbs a machine only ever adds time: the shortest of several rounds is the one least disturbed.
    least_of = {name: min(measured[name] for measured in rounds) for name in timed}
    one = least_of[1]
    least = len(images.train) * ((needed - ends) * least_of["block"] + ends * least_of["attention"])
    return [
        Row("identity beside linear / linear alone", least_of["both"] / one, 1.9),
        Row("sweep's forwards / time of the blocks that must run, the last without its MLP", one / least, 1.2),
        Row("probes of 40 plans x 3 seeds / the sweep's forwards", least_of["heads"] / least_of["both"], 0.15),
        Row("twice the images: time / (2 x the time of half), off by", abs(one / least_of[2] / 2 - 1), 0.05),
        Row("four times the images: time / (4 x the time of a quarter), off by", abs(one / least_of[4] / 4 - 1), 0.05),
    ]


def _seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def _fit_heads(sets: int, images: int, width: int) -> None:
    import torch

    import toastlib as toast

    toast.Probe(10, toast.HeadConfig(seeds=SEEDS, min_steps=0)).fit(
        torch.randn(sets, images, width), torch.arange(images) % 10
    )


def _block_seconds(encoder, images, of: int | None = None) -> float:
    """Median seconds of a block for one image, in a batch of the default size; with `of` 0, of attentions alone."""
    import torch

    with torch.inference_mode():
        pixel_values, _ = next(images.batches())
        shared = encoder.embed(pixel_values)
        times = []
        for _ in range(5):
            for block in range(of or 0, len(encoder.blocks), 1 if of is None else 2):
                start = time.perf_counter()
                encoder.run_block(block, shared.hidden, shared)
                times.append(time.perf_counter() - start)
    return statistics.median(times) / len(pixel_values)


if __name__ == "__main__":
    main()
