"""A race of candidate plans against running them all: block runs, and whether the choice is as good.

python -m benchmarks.race [--model vit-mini] [--dataset fashion-mnist-mini] [--removed 2] [--image-size 0]

Candidates are run once on training images that neither maps nor head have seen. Random draws of 200 of these images
choose, by all costs and by a race.
"""

import argparse

from benchmarks.table import HEADER, Row, show


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit-mini")
    parser.add_argument("--dataset", default="fashion-mnist-mini")
    parser.add_argument("--removed", type=int, default=2, help="how many blocks the plans remove")
    parser.add_argument("--image-size", type=int, default=0)
    parser.add_argument("--translator", default="context")
    parser.add_argument("--images", type=int, default=600, help="training images that the draws are taken from")
    parser.add_argument("--draws", type=int, default=20)
    print(HEADER)
    show(against_all(**vars(parser.parse_args())))


def against_all(
    model: str = "vit-mini",
    dataset: str = "fashion-mnist-mini",
    removed: int = 2,
    image_size: int = 0,
    translator: str = "context",
    images: int = 600,
    draws: int = 20,
) -> list[Row]:
    """The mean over draws of the block runs of both, and the draws in which the race's plan is not clearly worse."""
    import torch

    import toastlib as toast
    from toastlib.approximation.engine import collect_features
    from toastlib.approximation.prepare import prepare
    from toastlib.runs.estimate import block_runs
    from toastlib.selection.plans import POOLED
    from toastlib.selection.rerank import divergence, race

    encoder = toast.load_encoder(model, device="cpu", image_size=image_size)
    data = toast.load_images(dataset, encoder, train_size=images + 600)
    order = data.train.sample(images + 600, seed=0)
    tried, seen = order[:images], order[images:]
    moments = toast.collect_moments(encoder, seen[:300])
    head = toast.Probe(len(data.class_names), toast.HeadConfig(seeds=1)).fit(encoder.encode(seen), seen.labels)
    plans = toast.candidate_plans([toast.span_costs(moments, name) for name in POOLED], removed)
    options = {"translators": [translator], "calibration": moments, "batch_size": 32}
    ready = prepare(encoder, None, plans, **options)
    original, *features = collect_features(encoder, tried, ready.variants, ready.maps)
    costs = torch.stack([divergence(head, one, original) for one in features]).double()
    depth, shares, as_good = len(encoder.blocks), [], 0
    for seed in range(draws):
        drawn, runs = torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:200], []

        def run(left, part, drawn=drawn, runs=runs):
            runs.append(len(part) * block_runs(left, depth))
            return costs[[plans.index(plan) for plan in left]][:, drawn[part]]

        table = race(plans, torch.arange(200), run)
        shares.append(sum(runs) / (200 * block_runs(plans, depth)))
        best = costs[:, drawn].mean(1).argmin()
        raced = list(map(str, plans)).index(table["cost"].idxmin())
        difference = toast.paired_difference(costs[raced, drawn].numpy(), costs[best, drawn].numpy())
        as_good += difference[1] <= 0
    name = f"{len(plans)} plans without {removed} blocks, {encoder.name} on {dataset}"
    return [
        Row(f"block runs of a race / of all ({name})", sum(shares) / draws, 0.33),
        Row("draws in which the race's plan is the best, or within its interval", as_good / draws, 1, at_least=True),
    ]


if __name__ == "__main__":
    main()
