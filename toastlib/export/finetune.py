"""Fine-tuning of a saved form after its blocks were replaced, by transformers' Trainer, with labels or without."""

import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from toastlib.data.images import Images
from toastlib.data.tokens import arguments_of
from toastlib.errors import InputError, need, need_batches, need_packages, real_number, unknown, whole_number
from toastlib.evaluation.heads import answers
from toastlib.models.encoder import Encoder
from toastlib.models.quiet import quiet_transformers
from toastlib.translators.trained import training

PARTS = ("maps", "norms", "head", "all")
BATCH = 32
COLUMNS = ["step", "seconds", "loss", "accuracy"]


def finetune(
    model: PreTrainedModel,
    images: Images,
    *,
    test: Images | None = None,
    parts: str = "maps",
    teacher: Encoder | None = None,
    steps: int | Sequence[int] = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> pd.DataFrame:
    """Train a model with maps in place of blocks, as the paper's released code does in its last step.

    AdamW at a constant rate and without weight decay, on batches of 32; gradients are clipped to a norm of 1.

    Parameters
    ----------
    model
        What `saved_form` makes, or `save_pretrained` wrote; float32. It is trained in place.
    images, test
        Images or texts to train on; and, with labels, to measure the accuracy on.
    parts
        ``"maps"``, ``"norms"`` (all LayerNorms), ``"head"`` (all behind the encoder), several of them as
        ``"maps+norms"``, or ``"all"``. Everything else is frozen.
    teacher
        `None`: the loss is the cross-entropy of the labels. An encoder, usually the original: no label is read, and the
        loss is the mean squared error to its features.
    steps
        Number of steps; or steps after which a row is measured, such as ``[0, 50, 100]``, of which the last ends it.
    learning_rate, seed
        Of AdamW: 1e-3 suits few weights, and 1e-5 all of a ViT-S (chapter 17); and of the order of images, and dropout.

    Returns
    -------
    DataFrame
        A row for each step that is measured, the first and the last by default: ``step``, ``seconds`` of training until
        then, mean ``loss`` since the row before, and ``accuracy`` in percent. An `InputError` if accelerate is missing,
        or parts, labels or the teacher do not suit the model.
    """
    need_packages("Fine-tuning", ["accelerate"], "train")
    _check(model, images, test, teacher, parts)
    real_number("learning_rate", learning_rate, above=0)
    whole_number("seed", seed)
    measured, weights = sorted({*steps} if isinstance(steps, Sequence) else {0, steps}), parameters_of(model, parts)
    for step in measured or [-1]:
        whole_number("A number of steps", step)
    drawn = random.getstate(), np.random.get_state()  # Trainer seeds them too
    work = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with work as folder, training(seed, model.device), quiet_transformers():
        settings = TrainingArguments(
            folder,
            max_steps=measured[-1],
            per_device_train_batch_size=BATCH,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            seed=seed,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,  # batches lie on the device already
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        settings._n_gpu = min(settings.n_gpu, 1)  # no DataParallel: a model has one device
        targets = None if teacher is None else teacher.encode(images).clone()  # (images, width)
        collate = partial(_batch, images, targets)
        trainer = _Finetuner(model, settings, train_dataset=range(len(images)), data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(record := _Record(measured, trainer, test))
        try:
            for weight in weights:
                weight.requires_grad_()
            record.measure(0)
            if measured[-1]:
                trainer.train()
        finally:
            model.eval().requires_grad_(False)
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
    return pd.DataFrame(record.rows, columns=COLUMNS)


def parameters_of(model: PreTrainedModel, parts: str) -> list[nn.Parameter]:
    """The parameters of maps, norms, head or all, or of several, ``"maps+norms"``; an `InputError` if one has none."""
    body, modules = getattr(model, "toast", model), list(model.modules())
    inside = {id(parameter) for parameter in getattr(body, "tower", model.base_model).parameters()}
    found = {
        "maps": [p for module in modules if hasattr(module, "translation") for p in module.parameters()],
        "norms": [p for module in modules if "Norm" in type(module).__name__ for p in module.parameters()],
        "head": [p for p in model.parameters() if id(p) not in inside],
        "all": list(model.parameters()),
    }
    for part in parts.split("+"):
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        if not found[part]:
            raise InputError(f"The model has no {part} with weights to train: take other parts.")
    return list({id(p): p for part in parts.split("+") for p in found[part]}.values())


def _batch(images: Images, targets: Tensor | None, rows: list[int]) -> dict[str, Tensor]:
    """Rows of images as the arguments of a model, with their labels or the features that are wanted."""
    inputs, labels = next(images[torch.tensor(rows)].batches(len(rows)))
    return arguments_of(inputs) | ({"labels": labels} if targets is None else {"target": targets[rows]})


class _Finetuner(Trainer):
    """Trainer, whose loss of a batch with a target is the mean squared error of the features to it."""

    losses: list[Tensor]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        target = inputs.pop("target", None)
        if target is None:
            loss = model(**inputs).loss
        else:
            loss = mse_loss(getattr(model, "toast", model)(**inputs).pooler_output, target)
        self.losses.append(loss.detach())
        return loss


class _Record(TrainerCallback):
    """Measures a row after some of the steps; meanwhile the clock stands still."""

    def __init__(self, steps: Sequence[int], trainer: _Finetuner, test: Images | None) -> None:
        self.steps, self.trainer, self.test = steps, trainer, test
        self.seconds, self.rows, trainer.losses = 0.0, [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
            self.seconds += time.perf_counter() - self.started
            self.measure(state.global_step)
            self.started = time.perf_counter()

    def measure(self, step: int) -> None:
        """Add the row of a step, if it is asked for."""
        if step in self.steps:
            losses, accuracy = self.trainer.losses, float("nan")
            loss = torch.stack(losses).mean().item() if losses else float("nan")
            losses.clear()
            if self.test is not None:
                found = answers(self.trainer.model.eval(), self.test).argmax(1)
                accuracy = 100 * (found == self.test.labels.cpu()).double().mean().item()
            self.rows.append((step, self.seconds, loss, accuracy))


def _check(model: PreTrainedModel, images: Images, test: Images | None, teacher: Encoder | None, parts: str) -> None:
    need(model, "config", "A model as saved_form makes it")
    need_batches(images)
    if model.dtype != torch.float32:
        raise InputError(f"Fine-tuning needs weights of float32, not of {model.dtype}: load the encoder in float32.")
    if teacher is None and images.labels is None:
        raise InputError("There are no labels to train on: give the original encoder as teacher.")
    if test is not None and test.labels is None:
        raise InputError("Accuracies need labels, and the test images have none: leave out test.")
    if teacher is not None and parts == "head":
        raise InputError("The features that a teacher gives do not depend on the head: take other parts, or labels.")
    if teacher is not None and not hasattr(getattr(model, "toast", model), "tower"):
        raise InputError("A model with fused maps is trained with labels alone: a teacher needs maps of their own.")
