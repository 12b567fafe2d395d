"""Latency of smaller models at 224 pixels against their counted FLOPs.

python -m benchmarks.latency [--rounds 5]
"""

import argparse

from benchmarks.table import HEADER, Row, show

PLAN = "1->5 8->10"
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
    from toastlib.saving import count, saved_form

    kind, width, heads = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, image_size=224
    )
    torch.manual_seed(0)
    encoder = toast.Encoder(getattr(transformers, f"{kind}Model")(config), name=name)
    spans = {span: torch.nn.Linear(width, width, bias=False) for span in toast.Plan.parse(PLAN)}
    smaller = toast.approximation.replace_spans(encoder, spans)
    original, left = count(smaller, saved_form(smaller)).flops
    rows = []
    for size in (1, 32):
        inputs = torch.randn(size, 3, 224, 224)
        timed = toast.trade_off.relative_throughput(
            {"original": encoder, "smaller": smaller}, inputs, repeats=rounds * (8 if size == 1 else 1)
        )
        seconds = (1 / timed["images_per_second"]).groupby(timed["encoder"]).min()
        ratio = seconds["smaller"] / seconds["original"]
        figure = f"{name}, batch {size}: time {ratio:.3f} of the original's, FLOPs {left / original:.3f}; apart by"
        rows.append(Row(figure, abs(ratio / (left / original) - 1), 0.1))
    return rows


if __name__ == "__main__":
    main()
