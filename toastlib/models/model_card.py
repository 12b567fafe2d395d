"""The model card: the ``README.md`` of a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jinja2 import Template

from toastlib.models.sublayer_split import IN_SUBLAYERS, block_name
from toastlib.plan import Plan

Accuracy = tuple[float, float, float]  # percent, and the ends of its 95 % interval


class Sizes(NamedTuple):
    """What the original and the smaller model take, in this order."""

    parameters: tuple[int, int]
    flops: tuple[int | None, int | None]  # of one input; `None` where torch cannot count them
    bytes: tuple[int, int]  # of the weights


@dataclass(frozen=True)
class ModelCardData:
    """Facts for a model card; each of them may be left out. Pairs are of the original and of this model."""

    base: str | None = None  # Hub id or name of the original model; the encoder's name if `None`
    calibration: str | None = None  # the calibration set, "500 training images of digits, seed 0"
    evaluation: str | None = None  # the test set
    head: str | None = None  # one sentence about the classifier
    measure: str = "accuracy"
    before: Accuracy | None = None  # of the original, by the measure
    after: Accuracy | None = None  # of this model
    latency: dict[int, tuple[float, float]] = field(default_factory=dict)  # batch size -> milliseconds per batch
    in_pipeline: tuple[float, float] | None = None  # milliseconds per image in transformers' `pipeline`
    unclear: tuple[int | str, ...] = ()  # batch sizes, or "pipeline", whose times the rounds do not tell apart
    device: str | None = None  # on which times were measured
    sizes: Sizes | None = None  # counted when the model is saved if `None`
    input: str = "image"  # what the FLOPs are of
    source: str | None = None  # the original at its commit, "owner/name@commit"; found when the model is saved

    def rows(self) -> list[tuple[str, str, str]]:
        """The table of costs: name, original, this model."""
        rows = []
        if self.sizes:
            rows.append(("parameters", *(f"{count:,}" for count in self.sizes.parameters)))
            rows.append(("MB on disk", *(short(count / 1e6) for count in self.sizes.bytes)))
            if None not in self.sizes.flops:
                rows.append((f"GFLOPs per {self.input}", *(short(count / 1e9) for count in self.sizes.flops)))
        if self.before or self.after:
            form = "{:.2f} % ({:.2f} to {:.2f})"
            texts = (form.format(*value) if value else "" for value in (self.before, self.after))
            rows.append((f"{self.measure} (95 % interval)", *texts))
        times = {size: (f"batch of {size}", pair) for size, pair in sorted(self.latency.items())}
        if self.in_pipeline:
            times["pipeline"] = (f"{self.input.split()[0]} in a pipeline", self.in_pipeline)
        for key, (what, pair) in times.items():
            told = " (which is faster is not clear)" if key in self.unclear else ""
            rows.append((f"milliseconds per {what}{told}", *map(short, pair)))
        return rows


FEATURES = {
    "cls": "the CLS token after the final norm",
    "mean": "the mean of the tokens that are not special",
    "last": "the last token after the final norm",
    "pooler": "the pooled output",
}
MAPS = {
    "Identity": "the identity",
    "ByToken": "a map for special tokens beside one for patches",
    "InContext": "a map that also reads the patches of the image as a whole",
    "InRunningContext": "a map that also reads the tokens up to each",
}


class Task(NamedTuple):
    """What a saved model is for: its Auto class, the name of transformers' `pipeline`, and an input of that."""

    auto: str
    name: str
    example: str


TASKS = {
    ("pixel_values", None): Task("AutoModel", "image-feature-extraction", "image.png"),
    ("pixel_values", "classes"): Task("AutoModelForImageClassification", "image-classification", "image.png"),
    ("input_ids", None): Task("AutoModel", "feature-extraction", "A text."),
    ("input_ids", "classes"): Task("AutoModelForSequenceClassification", "text-classification", "A text."),
    ("input_ids", "causal"): Task("AutoModelForCausalLM", "text-generation", "A text"),
}
"""Main input and head -> task."""


def short(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def change(before: float, after: float) -> str:
    """A relative change in percent."""
    return f"{100 * (after / before - 1):+z.0f} %"


def removed_in_words(removed: Sequence[int], sublayers: bool) -> str:
    """The removed blocks in a text: ``"blocks 2 and 3"``, ``"the MLP of block 3"``, or ``"no block"``."""
    kind = "" if sublayers else "block " if len(removed) == 1 else "blocks "
    names = [block_name(block, True) if sublayers else str(block) for block in removed] or ["no block"]
    return kind * bool(removed) + (", ".join(names[:-1]) + " and " if names[1:] else "") + names[-1]


def in_words(description: list) -> str:
    """A map's description, ``["Linear", 96, 96, false]``, in words."""
    name, *arguments = description
    if name == "Linear":
        return "an affine map" if arguments[-1] else "a linear map"
    return MAPS.get(name, f"a map ({name})")


def model_card(
    card: ModelCardData,
    plan: Plan,
    maps: list[str],
    *,
    features: str,
    task: Task,
    sublayers: bool = False,
    plain: bool = False,
) -> str:
    """The text of a ``README.md``; `maps` are in words, and `plain` models open in transformers without toastlib."""
    checkpoint = card.source.partition("@")[0] if card.source else card.base.removesuffix(IN_SUBLAYERS)
    source = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    template = Template(source, trim_blocks=True, keep_trailing_newline=True)
    return template.render(
        card=card,
        plan=plan,
        maps=list(zip(plan, maps, strict=True)),
        features="" if task.name == "text-generation" else FEATURES[features],
        sublayers=sublayers,
        plain=plain,
        task=task.name,
        checkpoint=checkpoint,
        on_hub=checkpoint.count("/") == 1 and not Path(checkpoint).exists(),
        name=block_name,
        code=loading_code("FOLDER-OR-HUB-ID", task, plain),
    )


def loading_code(folder: str, task: Task, plain: bool) -> str:
    """Python code that opens a saved folder."""
    toast = "import toastlib  # or, without it: pass trust_remote_code=True, after a look at its four .py files\n"
    return f"""{"" if plain else toast}from transformers import {task.auto}, pipeline

model = {task.auto}.from_pretrained("{folder}")
answers = pipeline("{task.name}", "{folder}")("{task.example}")"""


def task_of(reads_text: bool, head: str | None) -> Task:
    """The task of a model with a head, of the kinds that a saved configuration names, or without."""
    kind = head if head in (None, "causal") else "classes"
    return TASKS["input_ids" if reads_text else "pixel_values", kind]
