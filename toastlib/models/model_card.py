"""The model card: what a saved model was made of, how, and what it costs and saves."""

from dataclasses import dataclass, field
from pathlib import Path

from toastlib.models.sublayer_split import IN_SUBLAYERS, block_name
from toastlib.plan import Plan, Span

Accuracy = tuple[float, float, float]
"""Percent, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class ModelCardData:
    """What only the one who made the model knows; every part may be left out.

    Parameters
    ----------
    base
        Hub id or name of the original model; the encoder's name if `None`.
    calibration
        The images that the maps were fitted on: ``"500 training images of digits, seed 0"``.
    evaluation
        The images that accuracy was measured on.
    accuracy_before, accuracy_after
        Of the original and of this model: percent, lower and upper end of the 95 % interval.
    latency
        Batch size -> milliseconds per batch of the original and of this model.
    device
        Where latency was measured.
    """

    base: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    accuracy_before: Accuracy | None = None
    accuracy_after: Accuracy | None = None
    latency: dict[int, tuple[float, float]] = field(default_factory=dict)
    device: str | None = None


@dataclass(frozen=True)
class Sizes:
    """Parameters and FLOPs of one image: of the original, and of this model."""

    parameters: tuple[int, int]
    flops: tuple[int, int]


def model_card(
    card: ModelCardData,
    name: str,
    plan: Plan,
    maps: list[str],
    counted: Sizes,
    features: str,
    classes: int,
    plain: bool = False,
) -> str:
    """The text of a ``README.md``.

    Parameters
    ----------
    card
        What was measured, and on what.
    name
        Of the original encoder, where the card has none.
    plan, maps
        The spans, and what stands in for each.
    counted
        See `Sizes`.
    features
        Kind of the features, see `Encoder`.
    classes
        How many classes it tells apart; 0 if it has no classifier.
    plain
        Whether it is of the base architecture, which transformers opens without toastlib.
    """
    base = card.base or name
    title = f"{base}, plan {plan}" if plan else base
    parts = [_header(base, classes), f"# {title}", _made_of(card, base, name, plan, maps), _table(card, counted)]
    return "\n\n".join([*parts, _notes(card, features, plain), _how_to_load(classes, plain)]) + "\n"


IN_WORDS = {
    "Identity": "the identity",
    "SplitByTokenType": "a map for special tokens beside one for patches",
    "AddPooledContext": "a map that also reads the patches of the image as a whole",
}


def in_words(description: list) -> str:
    """A map's description, ``["Linear", 96, 96, false]``, in words."""
    name, *arguments = description
    if name == "Linear":
        return "an affine map" if arguments[-1] else "a linear map"
    return IN_WORDS.get(name, f"a map ({name})")


def _header(base: str, classes: int) -> str:
    task = "image-classification" if classes else "image-feature-extraction"
    lines = ["library_name: transformers", f"pipeline_tag: {task}", "tags:", "- toast"]
    checkpoint = base.removesuffix(IN_SUBLAYERS)
    if checkpoint.count("/") == 1 and not Path(checkpoint).exists():
        lines.append(f"base_model: {checkpoint}")
    return "\n".join(["---", *lines, "---"])


def _made_of(card: ModelCardData, base: str, name: str, plan: Plan, maps: list[str]) -> str:
    if not plan:
        return f"All blocks of {base}, none replaced."
    sublayers = name.endswith(IN_SUBLAYERS)
    spans = [
        f"- `{span}`: {_removed(span, sublayers)} removed; {kind} takes the output of "
        f"{block_name(span.start, sublayers)} to an approximation of that of {block_name(span.end, sublayers)}"
        for span, kind in zip(plan, maps, strict=True)
    ]
    fitted = f"\n\nThe maps were fitted on {card.calibration}; no block was trained." if card.calibration else ""
    kinds = "; 2k is the attention of a block k, 2k + 1 its MLP" if sublayers else ""
    intro = f"{base} with spans of its blocks replaced (blocks count from 0{kinds}):"
    return "\n".join([intro, "", *spans]) + fitted


def _removed(span: Span, sublayers: bool) -> str:
    if sublayers:
        return ", ".join(block_name(block, sublayers) for block in span.blocks)
    return f"block{'s' if len(span.blocks) > 1 else ''} {', '.join(map(str, span.blocks))}"


def _table(card: ModelCardData, counted: Sizes) -> str:
    rows = [
        ("parameters", *(f"{count:,}" for count in counted.parameters)),
        ("GFLOPs per image", *(f"{count / 1e9:.3g}" for count in counted.flops)),
    ]
    if card.accuracy_before or card.accuracy_after:
        rows.append(("accuracy (95 % interval)", _percent(card.accuracy_before), _percent(card.accuracy_after)))
    rows += [
        (f"milliseconds per batch of {size}", *(f"{value:.3g}" for value in times))
        for size, times in sorted(card.latency.items())
    ]
    lines = ["| | original | this model |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _percent(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None else "{:.2f} % ({:.2f} to {:.2f})".format(*accuracy)


def _notes(card: ModelCardData, features: str, plain: bool) -> str:
    kinds = {
        "cls": "the CLS token after the final norm",
        "mean": "the mean of the patch tokens",
        "pooler": "the pooled output",
    }
    notes = [f"Its features{'' if plain else ' (`pooler_output`)'}: {kinds[features]}."]
    if card.evaluation:
        notes.append(f"Accuracy was measured on {card.evaluation}.")
    if card.latency and card.device:
        notes.append(f"Latency was measured on {card.device}.")
    return " ".join(notes)


def _how_to_load(classes: int, plain: bool) -> str:
    auto = "AutoModelForImageClassification" if classes else "AutoModel"
    task = "image-classification" if classes else "image-feature-extraction"
    code = "import toastlib  # or, without it: pass trust_remote_code=True, after a look at its three .py files\n"
    return f"""## How to load it

```python
{"" if plain else code}from transformers import {auto}, pipeline

model = {auto}.from_pretrained("FOLDER-OR-HUB-ID")
answers = pipeline("{task}", "FOLDER-OR-HUB-ID")("image.png")
```

`toastlib.load_encoder("FOLDER-OR-HUB-ID")` opens the encoder to measure it, or to sweep over plans. Upload all files of
this folder by `hf upload OWNER/NAME FOLDER`, or by `model.push_to_hub("OWNER/NAME")`."""
