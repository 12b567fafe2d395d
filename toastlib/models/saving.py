"""Saved encoders: a folder that transformers opens, with a map in place of each span."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from toastlib.data.catalog import split_revision
from toastlib.data.tokens import arguments_of
from toastlib.errors import InputError, unknown
from toastlib.models import base_architecture
from toastlib.models import modeling_toast as form
from toastlib.models.base_architecture import own_classifier
from toastlib.models.costs import example_input, flops_of_example, input_of, parameter_count
from toastlib.models.hooks import capture_outputs
from toastlib.models.layers import describe_map
from toastlib.models.model_card import ModelCardData, Sizes, in_words, model_card, task_of
from toastlib.models.quiet import quiet_transformers
from toastlib.plan import Plan, Span

if TYPE_CHECKING:
    from toastlib.models.encoder import Encoder

OWN = "own"  # the head that a checkpoint has itself


def save_pretrained(
    encoder: Encoder,
    folder: str | Path,
    *,
    head: Any = OWN,
    class_names: Sequence[str] | None = None,
    card: ModelCardData | None = None,
) -> None:
    """Write a folder that the Auto classes and `pipeline` of transformers open.

    Parameters
    ----------
    encoder, folder
        An original, or the result of `approximate`, whose removed blocks are not in the file; made if it is missing.
    head
        ``"own"`` keeps the classifier of the checkpoint that `load_encoder` read, and its labels, if it has one;
        `None` saves features alone. Or a `Probe` with one head, a linear layer, or the original checkpoint as
        ``AutoModelForImageClassification``, ``...SequenceClassification`` or ``AutoModelForCausalLM`` loads it.
    class_names, card
        One for each class of a probe or a linear layer; contents of ``README.md``, sizes are counted if it has none.

    Weights are saved in the encoder's dtype, or in the checkpoint's where that is of half precision. An `InputError` if
    this encoder or head cannot be saved; nothing has been written then.
    """
    if Path(folder).is_file():
        raise InputError(f"{folder} is a file: name a folder to save the encoder in.")
    if isinstance(head, str):
        if head != OWN:
            raise unknown("head", head, [OWN])
        head = own_classifier(*encoder.checkpoint[:3]) if encoder.checkpoint else None
    model, card = saved_form(encoder, head, class_names), card or ModelCardData()
    plain, source = is_fused(encoder), encoder.checkpoint.path if encoder.checkpoint else ""
    if plain:
        plan, maps = encoder.plan, [f"a map fused into the MLP of block {span.start}" for span in encoder.plan]
    else:
        plan = Plan(tuple(Span(span["start"], span["end"]) for span in model.config.spans))
        maps = [in_words(span["map"]) for span in model.config.spans]
    text = model_card(
        replace(
            card,
            base=card.base or encoder.name,
            sizes=card.sizes or count(encoder, model),
            input=input_of(encoder),
            source=source if split_revision(source)[1] else None,
        ),
        plan,
        maps,
        features=encoder.feature_kind,
        sublayers=encoder.sublayer_split is not None,
        task=task_of(encoder.reads_text, None if head is None else getattr(model.config, "head", "base")),
        plain=plain,
    )
    with quiet_transformers():
        as_stored(model, encoder).save_pretrained(folder)
    (Path(folder) / "README.md").write_text(text, encoding="utf-8")
    if encoder.preprocessing is not None:
        settings = json.dumps(encoder.preprocessing.to_config(), indent=2)
        (Path(folder) / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    if encoder.tokenizer is not None:
        encoder.tokenizer.save_pretrained(folder)


def is_fused(encoder: Encoder) -> bool:
    """True for the result of `fuse_spans`, which is saved as a model of the base architecture."""
    return hasattr(encoder, "original")


def saved_form(encoder: Encoder, head: Any = None, class_names: Sequence[str] | None = None) -> PreTrainedModel:
    """The encoder as a transformers model that shares its weights, as `save_pretrained` writes it.

    It is built from its configuration alone, as by every reader, and refused unless weights and features are equal.

    Parameters
    ----------
    encoder, head, class_names
        As for `save_pretrained`; without a head it gives features alone.

    Returns
    -------
    PreTrainedModel
        In evaluation mode, all weights frozen. The encoder's are shared, the head's copied.

    Raises
    ------
    InputError
        If this encoder or head cannot be saved.
    """
    if is_fused(encoder):
        return base_architecture.plain_form(encoder, head, class_names)
    whole = head if isinstance(head, PreTrainedModel) else None
    layer = None if whole else base_architecture.linear_head(head, encoder, class_names)
    config = _config(encoder, whole, layer, class_names)
    classifier = form.ToastForSequenceClassification if encoder.reads_text else form.ToastForImageClassification
    kind = {None: form.ToastModel, "causal": form.ToastForCausalLM}.get(config.head, classifier)
    with torch.device("meta"):
        model = kind(config).eval()
    expected = _shapes(model)
    body = model.toast if config.head else model
    body.base = base_architecture.with_tower(whole, config.tower, encoder.model) if whole else encoder.model
    if layer is not None:
        model.classifier = layer
    model = model.to(encoder.device, encoder.dtype).requires_grad_(False)
    different = expected.items() ^ _shapes(model).items()  # names, or their shapes, that only one of the two has
    if different:
        raise InputError(f"{encoder.name} is not what its configuration makes: {min(different)[0]} differs.")
    example = example_input(encoder)
    with torch.inference_mode():
        try:
            features = body(**arguments_of(example)).pooler_output
        except ValueError as error:  # from its maps
            raise InputError(f"{encoder.name} cannot be saved: {error}.") from error
        if not torch.equal(features, encoder(example)):
            raise InputError(f"{encoder.name} computes other features once it is saved: it cannot be saved.")
    return model


def count(encoder: Encoder, model: PreTrainedModel) -> Sizes:
    """Sizes of the original, built without weights from the saved form's configuration, and of the saved form."""
    smaller = parameter_count(model)
    if is_fused(encoder):
        parameters, operations = encoder.original
    else:
        config = copy.deepcopy(model.config)
        config.spans = []
        with torch.device("meta"):
            original = type(encoder)(form.ToastModel(config).tower, config.blocks, encoder.feature_kind)
        parameters, operations = parameter_count(original), flops_of_example(original)
    removed = parameters - parameter_count(encoder)
    before, size = smaller + removed, stored_dtype(encoder).itemsize
    return Sizes((before, smaller), (operations, flops_of_example(encoder)), (before * size, smaller * size))


def stored_dtype(encoder: Encoder) -> torch.dtype:
    """The dtype of the weights in a folder: a checkpoint of half precision stays one."""
    checkpoint = encoder.checkpoint
    half = checkpoint is not None and checkpoint.dtype in (torch.float16, torch.bfloat16)
    return checkpoint.dtype if half else encoder.dtype


def as_stored(model: PreTrainedModel, encoder: Encoder) -> PreTrainedModel:
    """The model with its weights in the dtype that they are saved in; a copy if that is another one."""
    dtype = stored_dtype(encoder)
    return model if dtype == encoder.dtype else copy.deepcopy(model).to(dtype)


def _config(
    encoder: Encoder, whole: PreTrainedModel | None, layer: nn.Linear | None, class_names: Sequence[str] | None
) -> form.ToastConfig:
    """The configuration that the saved form is built from."""
    model, head = whole or encoder.model, None
    if whole is not None:
        head = "base" if not encoder.reads_text else "causal" if whole.can_generate() else "sequence"
    base, auto = base_architecture.base_config(encoder, model), form.BASES.get(head, AutoModel)
    built = base_architecture.skeleton(auto, base)
    if type(built) is not type(model):
        raise InputError(f"A {type(model).__name__} cannot be saved: {auto.__name__} does not open its configuration.")
    tower = base_architecture.tower_path(built, encoder)
    original = built.get_submodule(tower)
    block_count = len(original.get_submodule(encoder.blocks_path))
    labels = {} if layer is None else base_architecture.labels_of(layer, class_names)
    if whole is not None and head != "causal":
        id2label = whole.config.id2label
        labels = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
    return form.ToastConfig(
        base=base,
        tower=tower,
        blocks=encoder.blocks_path,
        parting=encoder.sublayer_split and asdict(encoder.sublayer_split),
        without=[part for part, _ in original.named_children() if getattr(encoder.model, part, None) is None],
        spans=_spans(encoder, block_count if encoder.sublayer_split is None else 2 * block_count),
        features=encoder.feature_kind,
        special_tokens=encoder.special_tokens,
        feature_norm=_feature_norm(encoder),
        head=head if layer is None else "linear",
        hidden_size=encoder.width,
        reads="input_ids" if encoder.reads_text else "pixel_values",
        is_causal=encoder.is_causal,
        block_outputs=encoder.block_outputs or 0,
        **labels,
        **{name: getattr(base, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def _spans(encoder: Encoder, block_count: int) -> list[dict[str, Any]]:
    """The maps in the encoder's block list: spans of the original's blocks, and descriptions of their maps."""
    spans, last = [], -1
    for block in encoder.blocks:
        if not hasattr(block, "translation"):
            last += 1
            continue
        start, end = block.span
        if start != last:
            break
        try:
            spans.append({"start": start, "end": end, "map": describe_map(block.translation)})
        except ValueError as error:
            raise InputError(str(error)) from error
        last = end
    if last != block_count - 1:
        raise InputError(
            f"{encoder.name} was made smaller in several steps: make it from the original with all spans in one plan."
        )
    return spans


def _feature_norm(encoder: Encoder) -> str | None:
    """CLIP's tower returns the last block's output as it is; `Encoder` then norms the features."""
    if encoder.feature_kind == "pooler" or not hasattr(encoder.model, "post_layernorm"):
        return None
    last = len(encoder.blocks) - 1
    with torch.inference_mode(), capture_outputs(encoder, [last]) as h:
        hidden = encoder.model(example_input(encoder)).last_hidden_state
    return "post_layernorm" if hidden is h[last] else None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
