"""On a GPU: the sweep of the paper's 20 plans against the plain way, against the GPU's ceiling, and the paper's grid.

    python -m benchmarks.gpu [--images 4000] [--plain 400]

ViT-S/16 and ViT-L/16 at 224 pixels, with random weights: accuracies mean nothing here, and times do not depend on
them. Of the plain way three plans and the original are run, and the rest is counted from them, see `benchmarks.sweep`.
It is given its images resized, too: what is left of its time is the GPU's.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from transformers import ViTConfig, ViTModel

import toastlib as toast
from benchmarks import reference
from benchmarks.inputs import shapes
from benchmarks.sweep import CALIBRATION, SAMPLED, SEEDS
from benchmarks.table import HEADER, Row, show
from toastlib.approximation.engine import collect_features
from toastlib.approximation.prepare import prepare
from toastlib.runs.estimate import block_runs

SIZES = {"ViT-S": (384, 12), "ViT-L": (1024, 24)}
"""Width and number of blocks; a head has 64 dimensions."""
PAPER_IMAGES = 2 * 70_000 + 3 * 60_000
"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 by its coarse and fine labels: training and test images."""
BATCHES = (32, 64, 128, 256, 512)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="of the engine's job; a fifth of them are test images")
    parser.add_argument("--plain", type=int, default=400, help="of the plain way")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("There is no GPU.")
    os.environ |= {"TOAST_CACHE": "off", "TQDM_DISABLE": "1"}
    ceiling = product_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {ceiling / 1e12:.0f} TFLOP/s in bfloat16\n")
    print(HEADER)
    for name in SIZES:
        show(rows_of(name, options.images, options.plain, ceiling))


def rows_of(name: str, count: int, plain_count: int, ceiling: float) -> list[Row]:
    """All rows of one size."""
    encoder = random_encoder(name)
    images = shapes(count * 4 // 5, count // 5, encoder)
    plans = toast.paper.plan_list(len(encoder.blocks))
    head = toast.HeadConfig("retrained", seeds=SEEDS, min_steps=0)

    def job() -> None:
        toast.evaluate_plans(encoder, images, plans, translators=["linear"], calibration=CALIBRATION, head=head)

    ready = prepare(encoder, images, plans, translators=["linear"], calibration=CALIBRATION, batch_size=256)
    features = {
        size: seconds_of(lambda size=size: collect_features(encoder, images.train, ready.variants, ready.maps, size))
        for size in BATCHES
    }
    job()
    ours = seconds_of(job) / count
    work = block_runs(plans, len(encoder.blocks)) * block_flops(encoder)
    rates = {size: len(images.train) * work / spent for size, spent in features.items()}
    told = ", ".join(f"{rate / ceiling:.0%} with {size}" for size, rate in rates.items())
    print(f"<!-- {name}: blocks that must run, at that share of the ceiling by batch size: {told} -->")
    plain, ready_made = plain_seconds(name, shapes(plain_count, plain_count // 4, encoder), plans)
    grid = PAPER_IMAGES * ours / 3600
    print(f"<!-- {name}: ms an image: ours {1e3 * ours:.2f}, plain {1e3 * plain:.1f} and {1e3 * ready_made:.2f} -->")
    return [
        Row(f"{name}, plain way / ours", plain / ours, 20, at_least=True),
        Row(f"{name}, plain way with its images resized beforehand / ours", ready_made / ours, 1, at_least=True),
        Row(f"{name}, blocks that must run / the bfloat16 ceiling", max(rates.values()) / ceiling, 0.4, at_least=True),
        Row(f"{name}, hours for 20 plans on the paper's five sets of labels", grid, 1),
    ]


def random_encoder(name: str, dtype: torch.dtype = torch.bfloat16) -> toast.Encoder:
    """An encoder of this size on the GPU."""
    width, depth = SIZES[name]
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, intermediate_size=4 * width
    )
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=False).to("cuda", dtype)
    steps = toast.Preprocessing((256, 256), (224, 224), "bicubic")
    return toast.Encoder(model, preprocessing=steps, name=name)


def block_flops(encoder: toast.Encoder) -> int:
    """Operations of a block for one image: four products of width x width, the MLP's eight, and attention's two."""
    tokens, width = 197, encoder.width
    return 2 * 12 * tokens * width**2 + 4 * tokens**2 * width


def plain_seconds(name: str, images: toast.ImageSet, plans: list) -> tuple[float, float]:
    """Seconds of the plain way for each image, with its images resized in every pass and beforehand; float32."""
    encoder = random_encoder(name, torch.float32)
    depth = len(encoder.blocks)
    pixels = torch.cat([images.train.pixels, images.test.pixels]).permute(0, 2, 3, 1).numpy()
    resized = list(reference.batches(pixels, "dinov2"))

    def passed(model: torch.nn.Module, batches: Callable) -> float:
        return seconds_of(lambda: [model(batch.cuda()).last_hidden_state[:, 0].cpu() for batch in batches()])

    with torch.inference_mode():
        drawn = resized[0][:32].cuda()
        stored = [h.flatten(0, 1) for h in encoder.model(drawn, output_hidden_states=True).hidden_states]
        spent, blocks = [0.0, 0.0], 0
        for text in ("original", *SAMPLED):
            plan = toast.Plan.parse(text)
            smaller = reference.approximate(encoder.model, plan, stored)
            spent[0] += passed(smaller, lambda: reference.batches(pixels, "dinov2"))
            spent[1] += passed(smaller, lambda: resized)
            blocks += depth - len(plan.removed)
    share = sum(depth - len(plan.removed) for plan in [toast.Plan(), *plans]) / blocks
    return tuple(seconds * share / len(pixels) for seconds in spent)


def product_rate(size: int = 8192) -> float:
    """Operations per second of a product of random bfloat16 matrices."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    a @ b
    return 2 * size**3 / min(seconds_of(lambda: a @ b) for _ in range(10))


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of a call, until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
