"""Pretrain a small GPT-2 that reads and writes single characters, like data/models/gpt-mini, on the embedded books.

    python scripts/pretrain_gpt_mini.py --out results/gpt-mini      # some minutes on one core

Its text is that of ``data/texts``, all of it long in the public domain; every fifth passage is kept for testing.
"""

import json
import math
from argparse import ArgumentParser
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from toastlib.data.texts import books, chunked

# All the knobs; each is an option too.
KNOBS = {
    "seed": (0, "of the weights, the batches and the dropout"),
    "steps": (1000, "optimizer steps in all"),
    "batch": (16, "windows per step"),
    "window": (128, "characters that the model can read at once"),
    "blocks": (6, "transformer blocks"),
    "width": (64, "features per token"),
    "heads": (4, "attention heads per block"),
    "muon_lr": (0.02, "Muon's highest learning rate, for the blocks' matrices"),
    "adamw_lr": (3e-3, "AdamW's, for everything else"),
    "warmup": (50, "steps until the highest learning rates; then they fall to zero along a cosine"),
    "dropout": (0.1, "share of what blocks add that is dropped in training"),
}
SPECIAL = ("<pad>", "<unk>")
CARD = """---
license: mit
language: en
---
# gpt-mini

A GPT-2 of {blocks} blocks of width {width}, {parameters:,} parameters, whose tokens are single characters: small
enough to be carried along, and good enough that a removed block is missed. `scripts/pretrain_gpt_mini.py` made it in
{steps} steps from the training passages of `data/texts`: some of Shakespeare's Sonnets, of Genesis in the King James
Version, and of Alice's Adventures in Wonderland; {characters:,} characters, all of them in the public domain.

Bits per character: {train:.2f} on these passages, {test:.2f} on those kept for testing. Weights are stored in float16.
"""


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """One token for each character that the text has."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *sorted(set(text))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def train(model: GPT2LMHeadModel, ids: torch.Tensor, test: torch.Tensor, knobs: dict) -> None:
    """Muon and AdamW on windows drawn from the running text; learning rates warm up, then fall along a cosine."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=knobs["muon_lr"], weight_decay=0.02, momentum=0.95)
    adamw = torch.optim.AdamW(others, lr=knobs["adamw_lr"], weight_decay=0.01, betas=(0.9, 0.95))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(part, lambda step: learning_rate(step, knobs["warmup"], knobs["steps"]))
        for part in (muon, adamw)
    ]
    for step in (bar := trange(knobs["steps"])):
        starts = torch.randint(len(ids) - knobs["window"] - 1, (knobs["batch"],))
        windows = torch.stack([ids[start : start + knobs["window"]] for start in starts])
        loss = model(windows, labels=windows).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (muon, adamw, *schedules):
            part.step()
        if step % 100 == 99:
            print(step + 1, round(loss.item() / math.log(2), 3), round(bits(model, test), 3), flush=True)
        bar.set_postfix(bits=f"{loss.item() / math.log(2):.3f}")


def learning_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def bits(model: GPT2LMHeadModel, chunks: torch.Tensor) -> float:
    """Bits per character over chunks of shape (chunks, characters)."""
    training = model.training
    model.eval()
    loss = torch.stack([model(part, labels=part).loss for part in chunks.split(1)]).mean().item()
    model.train(training)
    return loss / math.log(2)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, (default, text) in KNOBS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} ({default})")
    knobs = vars(parser.parse_args())
    torch.manual_seed(knobs["seed"])
    torch.set_num_threads(1)  # the same sums in the same order everywhere
    texts, test = ("\n\n".join(table.texts) for table in books())
    tokenizer = character_tokenizer(texts + test)
    ids = torch.tensor(tokenizer(texts, verbose=False)["input_ids"])
    held_out = chunked(tokenizer, [test], knobs["window"]).input_ids
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=knobs["window"],
        n_embd=knobs["width"],
        n_layer=knobs["blocks"],
        n_head=knobs["heads"],
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=knobs["dropout"],
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config).train()
    train(model, ids, held_out, knobs)
    model = model.eval().half()
    model.save_pretrained(knobs["out"])
    tokenizer.save_pretrained(knobs["out"])
    model = model.float()
    figures = {
        "parameters": model.num_parameters(),
        "characters": len(ids),
        "train": bits(model, chunked(tokenizer, [texts], knobs["window"]).input_ids),
        "test": bits(model, held_out),
    }
    (knobs["out"] / "README.md").write_text(CARD.format(**knobs, **figures), encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
