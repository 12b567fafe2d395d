"""Pretrain a small vision transformer, like data/models/vit-mini, on four public data sets with a head each.

    python scripts/pretrain_vit_mini.py --out results/vit-mini               # data sets from the Hub
    python scripts/pretrain_vit_mini.py --out results/vit-mini --hub FOLDER  # from a mirror: see `read_table`

After an interruption the same command goes on from the last checkpoint; on the CPU the result is the same
to the bit. The encoder, its preprocessor and a card with the measured accuracies end up in OUT/encoder.
"""

import io
import json
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace, RawTextHelpFormatter
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import load_dataset
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm, trange
from transformers import ViTConfig, ViTModel

# All the knobs. A data set has a share of every batch, and may be mirrored or not.
Source = namedtuple("Source", "hub_id image label classes share mirror")
SOURCES = {
    "MNIST": Source("ylecun/mnist", "image", "label", 10, 0.10, False),
    "Fashion-MNIST": Source("zalando-datasets/fashion_mnist", "image", "label", 10, 0.25, True),
    "CIFAR-10": Source("uoft-cs/cifar10", "img", "label", 10, 0.35, True),
    "CIFAR-100": Source("uoft-cs/cifar100", "img", "fine_label", 100, 0.30, True),
}
KNOBS = {  # each is an option too: --muon-lr for muon_lr
    "seed": (0, "of the weights, the batches, the augmentation and the dropped patches"),
    "steps": (5000, "optimizer steps in all"),
    "batch": (160, "images per step, over all data sets"),
    "blocks": (12, "transformer blocks"),
    "width": (96, "features per token"),
    "heads": (3, "attention heads per block"),
    "patch": (4, "pixels along a patch's edge"),
    "muon_lr": (0.02, "Muon's learning rate, for the blocks' matrices"),
    "muon_decay": (0.02, "Muon's weight decay"),
    "momentum": (0.95, "Muon's momentum"),
    "adamw_lr": (1.2e-3, "AdamW's learning rate, for everything else"),
    "adamw_decay": (0.01, "AdamW's weight decay"),
    "warmup": (100, "steps until the full learning rates"),
    "constant": (0.40, "part of the run until the learning rates fall, linearly, to zero"),
    "keep": (0.50, "part of the patches kept, at random, ..."),
    "keep_until": (0.85, "... for this part of the run; then all are kept"),
    "shift": (4, "pixels of padding around an image for the random crop"),
    "jitter": (0.30, "brightness and contrast are multiplied by 1 - jitter to 1 + jitter"),
    "limit": (0, "images read of each split, 0 for all: to try things out"),
}
SIZE = 32  # pixels along an image's edge
MAX_MB = 12  # what the saved encoder may weigh, in 1e6 bytes
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
State = namedtuple("State", "model optimizers losses")
Data = dict[str, tuple[Tensor, Tensor]]  # images (n, 3, 32, 32), uint8, and labels (n,) of each data set


def read_table(source: Source, split: str, hub: Path | None) -> pa.Table:
    """One split, its images still encoded, from the Hub or hub/<Hub id>/<split>-00000-of-00001.parquet."""
    if hub:
        if not (path := hub / source.hub_id / f"{split}-00000-of-00001.parquet").is_file():
            sys.exit(f"{path} is missing: --hub wants a folder of <Hub id>/<split>-00000-of-00001.parquet.")
        return pq.read_table(path)
    try:
        return load_dataset(source.hub_id, split=split).data.table
    except Exception as error:
        sys.exit(f"{source.hub_id} cannot be loaded from the Hub; --hub FOLDER reads a mirror. ({error})")


def decode(encoded: bytes, where: str) -> np.ndarray:
    """Pixels (32, 32, 3) of an image, centred on black, gray ones repeated."""
    try:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
    except OSError as error:
        sys.exit(f"{where} does not decode. ({error})")
    if max(image.size) > SIZE:
        sys.exit(f"{where} has {image.width} x {image.height} pixels, more than {SIZE} x {SIZE}.")
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas)


def load_data(split: str, options: Namespace) -> Data:
    """The split of every data set, decoded, on the device."""
    data = {}
    for name, source in SOURCES.items():
        table = read_table(source, split, options.hub).slice(0, options.limit or None)
        cells = enumerate(tqdm(table[source.image], desc=f"{name} {split}", leave=False))
        pixels = [decode(cell["bytes"].as_py(), f"Image {row} of {name} {split}") for row, cell in cells]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(table[source.label].to_numpy().astype(np.int64))
        data[name] = images.to(options.device), labels.to(options.device)
    return data


def draw(data: Data, counts: list[int], random: Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Random images (batch, 3, 32, 32) in 0..1, which may be mirrored (batch, 1), labels per data set."""
    images, mirror, labels = [], [], []
    for (name, (x, y)), count in zip(data.items(), counts):
        rows = torch.randint(len(x), (count,), generator=random).to(x.device)
        images.append(x[rows])
        mirror.append(torch.full((count, 1), SOURCES[name].mirror, device=x.device))
        labels.append(y[rows])
    return torch.cat(images) / 255, torch.cat(mirror), labels


def augment(images: Tensor, mirror: Tensor, shift: int, jitter: float, random: Generator) -> Tensor:
    """Pad and crop, mirror half of those that may be, change brightness and contrast; (n, 3, 32, 32)."""
    n, device = len(images), images.device
    corner = torch.randint(2 * shift + 1, (2, n, 1), generator=random).to(device)
    mirrored = mirror & (torch.rand(n, 1, generator=random) < 0.5).to(device)
    brightness, contrast = (1 + jitter * (2 * torch.rand(2, n, 1, 1, 1, generator=random) - 1)).to(device)
    row, column = corner + torch.arange(SIZE, device=device)  # (n, 32) each
    column = torch.where(mirrored, column.flip(1), column)
    padded = F.pad(images, (shift,) * 4).permute(0, 2, 3, 1)
    cropped = padded[torch.arange(n, device=device)[:, None, None], row[:, :, None], column[:, None, :]]
    bright = cropped.permute(0, 3, 1, 2) * brightness
    mean = bright.mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (bright - mean)).clamp(0, 1)


def build(options: Namespace) -> State:
    """An encoder and its heads with random weights; Muon for the blocks' matrices, AdamW for the rest."""
    torch.manual_seed(options.seed)
    layers = {"num_hidden_layers": options.blocks, "num_attention_heads": options.heads}
    sizes = {"hidden_size": options.width, "intermediate_size": 4 * options.width}
    config = ViTConfig(image_size=SIZE, patch_size=options.patch, **layers, **sizes)
    encoder = ViTModel(config, add_pooling_layer=False)
    if (megabytes := 2e-6 * encoder.num_parameters()) > MAX_MB - 0.1:  # 0.1 for all but the weights
        sys.exit(f"The encoder would weigh {megabytes:.1f} of {MAX_MB} MB: lower --width or --blocks.")
    heads = {name: nn.Linear(options.width, source.classes) for name, source in SOURCES.items()}
    model = nn.ModuleDict({"encoder": encoder, "heads": nn.ModuleDict(heads)}).to(options.device)
    matrices = [p for p in encoder.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, weight_decay=options.muon_decay, momentum=options.momentum)
    adamw = torch.optim.AdamW(others, weight_decay=options.adamw_decay)
    return State(model, {"muon": muon, "adamw": adamw}, torch.zeros(options.steps))


def features(encoder: ViTModel, images: Tensor, keep: float = 1.0, random: Generator | None = None) -> Tensor:
    """CLS features (n, width) of images in 0..1, of which a random part of the patches is seen."""
    hidden = encoder.embeddings(2 * images - 1)  # (n, 1 + patches, width), CLS first
    if keep < 1:
        n, patches, width = len(hidden), hidden.shape[1] - 1, hidden.shape[2]
        order = torch.rand(n, patches, generator=random).argsort(1).to(hidden.device)
        kept = order[:, : max(1, int(keep * patches)), None].expand(-1, -1, width)
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, kept)], 1)
    for block in encoder.layers:
        hidden = block(hidden)
    return encoder.layernorm(hidden)[:, 0]


def save_checkpoint(state: State, done: int, options: Namespace) -> None:
    """Write all that later steps depend on into one file, whole or not at all."""
    tensors = {f"model:{name}": tensor for name, tensor in state.model.state_dict().items()}
    for kind, optimizer in state.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}:{index}:{name}": tensor for name, tensor in moments.items()}
    header = {"done": str(done), "knobs": json.dumps(options.knobs)}
    path = options.out / "checkpoint.safetensors"
    save_file(tensors | {"losses": state.losses}, path.with_suffix(".part"), header)
    os.replace(path.with_suffix(".part"), path)


def load_checkpoint(state: State, options: Namespace) -> int:
    """Bring the state to where the run stopped, if it had begun; return the number of steps done."""
    if not (path := options.out / "checkpoint.safetensors").exists():
        return 0
    with safe_open(path, "pt") as file:
        found, done = json.loads(file.metadata()["knobs"]), int(file.metadata()["done"])
    if other := [f"{k} {found.get(k)}, not {v}" for k, v in options.knobs.items() if found.get(k) != v]:
        sys.exit(f"{options.out} holds another run ({'; '.join(other)}): take its values or another --out.")
    tensors, moments = load_file(path), {kind: {} for kind in state.optimizers}
    state.losses.copy_(tensors.pop("losses"))
    for kind, index, name in [key.split(":") for key in tensors if not key.startswith("model:")]:
        moments[kind].setdefault(int(index), {})[name] = tensors.pop(f"{kind}:{index}:{name}")
    state.model.load_state_dict({key.removeprefix("model:"): tensor for key, tensor in tensors.items()})
    for kind, optimizer in state.optimizers.items():
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments[kind]})
    return done


def rate(step: int, options: Namespace) -> float:
    """Factor on the learning rates: warm-up, constant, then linearly to zero."""
    left = (options.steps - step) / options.steps
    return min(1, (step + 1) / max(1, options.warmup), left / (1 - options.constant))


def loss_at(step: int, model: nn.ModuleDict, data: Data, options: Namespace) -> Tensor:
    """Mean cross-entropy of a step's batch, whose random numbers follow from the seed and the step alone."""
    random = Generator().manual_seed(int(np.random.SeedSequence([options.seed, step]).generate_state(1)[0]))
    images, mirror, labels = draw(data, options.counts, random)
    images = augment(images, mirror, options.shift, options.jitter, random)
    keep = options.keep if step < options.keep_until * options.steps else 1.0
    parts = features(model["encoder"], images, keep, random).split(options.counts)
    terms = zip(model["heads"].values(), parts, labels)
    return sum(F.cross_entropy(head(x), y, reduction="sum") for head, x, y in terms) / len(images)


def train(state: State, done: int, data: Data, options: Namespace) -> None:
    """Do the steps that are left, and save a checkpoint every so often."""
    model, optimizers, losses = state
    for step in (bar := trange(done, options.steps, initial=done, total=options.steps, desc="training")):
        loss = loss_at(step, model, data, options)
        model.zero_grad()
        loss.backward()
        for kind, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = options.knobs[f"{kind}_lr"] * rate(step, options)
            optimizer.step()
        losses[step] = loss.detach()
        if not losses[step].isfinite():
            sys.exit(f"The loss is {loss:g} at step {step}: lower --muon-lr or --adamw-lr, in another --out.")
        bar.set_postfix(loss=f"{losses[max(0, step - 19) : step + 1].mean():.3f}", refresh=False)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save_checkpoint(state, step + 1, options)


@torch.no_grad()
def accuracy(encoder: ViTModel, head: nn.Linear, images: Tensor, labels: Tensor) -> float:
    """Per cent of the images for which the head names the right class."""
    guesses = torch.cat([head(features(encoder, x / 255)).argmax(1) for x in images.split(500)])
    return 100 * (guesses == labels).sum().item() / len(labels)


PREPROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}}
PREPROCESSOR |= dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
PREPROCESSOR |= {"resample": 2, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [vit, vision]
datasets: [{ids}]
metrics: [accuracy]
---
# A small vision transformer

{blocks} blocks, width {width}, {heads} heads, 32 x 32 RGB, patch {patch}, weights in float16. Pretrained from
scratch on the training splits of {names}, with a linear head each.
Smaller images were centred on black. The heads are dropped. To load it:

    ViTModel.from_pretrained("this folder", add_pooling_layer=False)

Accuracy of the dropped heads, in % of the test images: {scores}.
The mean loss of the last steps (up to 100) was {loss:.3f}.
Made by `scripts/pretrain_vit_mini.py` with `{knobs}`.
"""


def export(state: State, tests: Data, options: Namespace) -> None:
    """Save the encoder in float16 in Hugging Face's format, with what was measured on just these weights."""
    part, final = options.out / "encoder.part", options.out / "encoder"
    encoder = state.model["encoder"].half().float()
    right = {name: accuracy(encoder, head, *tests[name]) for name, head in state.model["heads"].items()}
    scores = ", ".join(f"{name} {score:.1f} % of {len(tests[name][1])}" for name, score in right.items())
    shutil.rmtree(part, ignore_errors=True)
    encoder.half().save_pretrained(part)
    (part / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    facts = {"ids": ", ".join(source.hub_id for source in SOURCES.values()), "names": ", ".join(SOURCES)}
    facts |= {"scores": scores, "loss": state.losses[-100:].mean()}
    (part / "README.md").write_text(CARD.format(**vars(options), **facts))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    print(f"{final}, {sum(file.stat().st_size for file in final.iterdir()) / 1e6:.1f} MB: {scores}")


def read_options(argv: list[str] | None) -> Namespace:
    """The command line, checked."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the encoder")
    parser.add_argument("--hub", type=Path, help="folder of a mirror of the data sets (the Hub itself)")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[-1], help="(%(default)s)")
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (%(default)s)")
    for name, (value, text) in KNOBS.items():
        flag, text = "--" + name.replace("_", "-"), text + " (%(default)s)"
        parser.add_argument(flag, type=type(value), default=value, help=text)
    k = parser.parse_args(argv)
    k.knobs = {name: getattr(k, name) for name in KNOBS}
    k.counts = [round(k.batch * source.share) for source in SOURCES.values()]
    if min(k.steps, k.blocks, k.width, k.heads, k.patch, k.save_every, *k.counts) < 1:
        parser.error("--batch must be at least 6, --steps and whatever else is counted at least 1")
    if k.width % k.heads or SIZE % k.patch:
        parser.error(f"--width must be a multiple of --heads, and {SIZE} of --patch")
    if not 0 <= k.constant < 1 or not 0 < k.keep <= 1:
        parser.error("--constant must be in [0, 1) and --keep in (0, 1]")
    return k


def main(argv: list[str] | None = None) -> None:
    """Read the data, train or go on training, save the encoder."""
    options = read_options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    state = build(options)
    done = load_checkpoint(state, options)
    tests, trainings = load_data("test", options), load_data("train", options)
    train(state, done, trainings, options)
    export(state, tests, options)


if __name__ == "__main__":
    main()
