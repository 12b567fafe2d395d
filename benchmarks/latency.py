"""Latency of smaller models at 224 pixels against their counted FLOPs: the paper's map, and the recommended one.

python -m benchmarks.latency [--rounds 5]
"""

import argparse

from benchmarks.table import HEADER, Row, show

PLAN = "1->5 8->10"
TRANSLATORS = ("linear", "context")
MODELS = {
    "ViT-Ti": ("ViT", 192, 3),
    "ViT-S": ("ViT", 384, 6),
    "DeiT-S": ("DeiT", 384, 6),
    "DINOv2-S": ("Dinov2", 384, 6),
}
"""Class, width and heads; random weights, for time does not depend on them."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    print(HEADER)
    for name in MODELS:
        show(against_flops(name, parser.parse_args().rounds))


def against_flops(name: str, rounds: int) -> list[Row]:
    """How far the ratio of the shortest times, taken in turns, is from that of the FLOPs, for batches of 1 and 32."""
    import torch
    import transformers

    import toastlib as toast
    from toastlib.models.saving import count, saved_form
    from toastlib.translators.base import make_translator

    kind, width, heads = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, image_size=224
    )
    torch.manual_seed(0)
    encoder = toast.Encoder(getattr(transformers, f"{kind}Model")(config), name=name)
    smaller = {}
    for translator in TRANSLATORS:
        maps = {span: make_translator(translator).build(width) for span in toast.Plan.parse(PLAN)}
        smaller[translator] = toast.replace_spans(encoder, maps)
    counted = {translator: count(some, saved_form(some)).flops for translator, some in smaller.items()}
    rows = []
    for size in (1, 32):
        inputs = torch.randn(size, 3, 224, 224)
        timed = toast.relative_throughput(
            {"original": encoder, **smaller}, inputs, repeats=rounds * (8 if size == 1 else 1)
        )
        seconds = (1 / timed["images_per_second"]).groupby(timed["encoder"]).min()
        for translator, (original, left) in counted.items():
            ratio, flops = seconds[translator] / seconds["original"], left / original
            figure = (
                f"{name}, {translator}, batch {size}: time {ratio:.3f} of the original's, FLOPs {flops:.3f}; apart by"
            )
            rows.append(Row(figure, abs(ratio / flops - 1), 0.1))
    return rows


if __name__ == "__main__":
    main()
