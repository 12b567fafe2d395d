"""What a model answers, and how good that is: its accuracy, or its agreement with the original where labels lack."""

import platform
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toastlib.approximation.align import align_features
from toastlib.approximation.engine import THE_ORIGINAL, collect_features
from toastlib.data.images import Images, ImageSet, catalog
from toastlib.errors import InputError
from toastlib.evaluation.costs import relative_throughput
from toastlib.evaluation.metrics import CONFIDENCE, accuracy_interval
from toastlib.evaluation.probe import HeadConfig, Probe, absorb_alignment
from toastlib.models.costs import example_input
from toastlib.models.encoder import Encoder
from toastlib.models.image_size import set_image_size
from toastlib.models.model_card import Accuracy
from toastlib.models.quiet import quiet_transformers
from toastlib.models.saving import saved_form

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURES = {
    "accuracy": "accuracy",
    "agreement": "agreement with the original",
    "similarity": "cosine similarity with the original's features",
}
MIN_STEPS = 1000  # of the head


class Head(NamedTuple):
    """What turns features into classes: a probe or linear layer, the checkpoint's own classifier, or `None`.

    `measure` is what its answers are judged by: ``"accuracy"``; ``"agreement"`` with the original's answers; or
    ``"similarity"``, the cosine between features and the original's.
    """

    module: "Probe | nn.Linear | PreTrainedModel | None"
    class_names: tuple[str, ...]
    measure: str


def own_classifier(name: str, image_size: int | None = None) -> "PreTrainedModel | None":
    """The classifier of a checkpoint, whole, or `None` if it has none; the arguments are as for `load_encoder`."""
    from transformers import AutoConfig, AutoModelForImageClassification

    path = catalog.model_path(name)
    kinds = AutoConfig.from_pretrained(path).architectures or []
    if not any("ForImageClassification" in kind and not kind.startswith("Toast") for kind in kinds):
        return None
    with quiet_transformers():
        model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()
    if image_size:
        set_image_size(getattr(model, "vision_model", model.base_model), image_size)
    return model


def choose_head(encoder: Encoder, dataset: ImageSet, classifier: "PreTrainedModel | None", seed: int) -> Head:
    """The checkpoint's classifier if it fits, else a probe on the original's features if there are labels."""
    own = tuple(classifier.config.id2label[k] for k in range(classifier.config.num_labels)) if classifier else ()
    if dataset.train.labels is None or dataset.test.labels is None:
        return Head(classifier, own, "agreement" if classifier else "similarity")
    if classifier and {name.lower() for name in own} == {name.lower() for name in dataset.class_names}:
        return Head(classifier, own, "accuracy")
    features = collect_features(encoder, dataset.train, [THE_ORIGINAL], {})
    probe = Probe(len(dataset.class_names), HeadConfig(seeds=[seed], min_steps=MIN_STEPS))
    return Head(probe.fit(features, dataset.train.labels), dataset.class_names, "accuracy")


def aligned(head: Head, smaller: Encoder, original: Encoder, images: Images) -> Head:
    """The head for a smaller encoder, with the alignment of its features folded in.

    An `InputError` if there is no head, or the checkpoint's own is no linear layer on the features.
    """
    layer = first_layer(head, original)
    if layer is None:
        raise InputError("Aligned features need a linear classifier that reads them: take a translator without +align.")
    alignment = align_features(smaller, original, images)
    absorbed = layer.absorb(alignment) if isinstance(layer, Probe) else absorb_alignment(layer, alignment)
    return head._replace(module=absorbed)


def first_layer(head: Head, original: Encoder) -> "Probe | nn.Linear | None":
    """What absorbs an alignment: the probe, or the checkpoint's linear layer if it reads what the encoder gives."""
    if isinstance(head.module, Probe):
        return head.module
    layer, example = getattr(head.module, "classifier", None), example_input(original)
    with torch.inference_mode():
        if isinstance(layer, nn.Linear) and layer.in_features == original.width:
            logits = layer(original(example).to(layer.weight))
            own = head.module(example.to(layer.weight)).logits
            if torch.allclose(logits, own, rtol=1e-4, atol=1e-4 * logits.abs().max().item()):
                return layer
    return None


def names_of(head: Head) -> tuple[str, ...] | None:
    """The class names to save a head with: a checkpoint's own classifier brings its own."""
    return head.class_names if isinstance(head.module, Probe | nn.Linear) else None


def form(encoder: Encoder, head: Head) -> "PreTrainedModel":
    """The model as it is saved; so what is measured is what is taken away."""
    return saved_form(encoder, head.module, names_of(head))


@torch.inference_mode()
def answers(model: "PreTrainedModel", images: Images) -> Tensor:
    """Logits of a classifier, shape (images, classes), or features, shape (images, width); float32 on the CPU."""
    outputs = [model(pixel_values) for pixel_values, _ in images.batches()]
    found = [output.logits if "logits" in output else output.pooler_output for output in outputs]
    return torch.cat(found).float().cpu()


def score(found: Tensor, original: Tensor, images: Images, head: Head) -> np.ndarray:
    """How good each image's answer is, in [0, 1], by the head's measure; shape (images,)."""
    if head.measure == "similarity":
        return torch.cosine_similarity(found, original).clamp(min=0).double().numpy()
    expected = labels_of(images, head) if head.measure == "accuracy" else original.argmax(1)
    return (found.argmax(1) == expected).double().numpy()


def labels_of(images: Images, head: Head) -> Tensor:
    """The images' labels in the head's order of classes, int64, shape (images,)."""
    place = {name.lower(): k for k, name in enumerate(head.class_names)}
    return torch.tensor([place[name.lower()] for name in images.class_names])[images.labels.cpu()]


def compare(
    models: tuple["PreTrainedModel", "PreTrainedModel"], head: Head, images: Images
) -> tuple[tuple[np.ndarray, np.ndarray], pd.DataFrame | None]:
    """Scores of the original and of the smaller model for every image, and the table of classes."""
    found = [answers(model, images) for model in models]
    scores = tuple(score(one, found[0], images, head) for one in found)
    if head.measure != "accuracy":
        return scores, None
    frame = pd.DataFrame({"label": images.labels.cpu().numpy(), "before": scores[0], "after": scores[1]})
    table = frame.groupby("label").agg(images=("after", "size"), before=("before", "mean"), after=("after", "mean"))
    table[["before", "after"]] *= 100
    table.insert(0, "class", [images.class_names[label] for label in table.index])
    return scores, table.reset_index(drop=True)


def percent(scores: np.ndarray, measure: str) -> Accuracy:
    """Mean of the scores in percent with its interval: Wilson's for shares of images, Student's for similarities."""
    if measure != "similarity":
        interval = accuracy_interval(int(scores.sum()), len(scores))
    else:
        from scipy.stats import sem, t

        half = t.ppf((1 + CONFIDENCE) / 2, len(scores) - 1) * sem(scores)
        interval = (scores.mean() - half, scores.mean() + half)
    return tuple(100 * float(value) for value in (scores.mean(), *interval))


def measure_latency(
    models: tuple["PreTrainedModel", "PreTrainedModel"], images: Images, sizes: tuple[int, ...] = (1, 32)
) -> dict[int, tuple[float, float]]:
    """Batch size -> median milliseconds per batch of both models, timed in turns; no size beyond the images."""
    latency = {}
    for size in (size for size in sizes if size <= len(images)):
        inputs, _ = next(images[:size].batches(size))
        timed = relative_throughput(dict(enumerate(models)), inputs, repeats=9 if size > 1 else 25)
        seconds = (1000 * size / timed["images_per_second"]).groupby(timed["encoder"]).median()
        latency[size] = (seconds[0], seconds[1])
    return latency


def device_name(device: torch.device) -> str:
    """How a report names the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'' if threads == 1 else 's'}"
