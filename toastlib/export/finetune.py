"""Fine-tuning of a saved form after its blocks were replaced: transformers' Trainer, with labels or without."""

import tempfile
import time
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_accelerate_available

from toastlib.data.images import Images
from toastlib.data.tokens import arguments_of
from toastlib.errors import InputError, need, need_batches, real_number, unknown, whole_number
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
    parts: str = "all",
    teacher: Encoder | None = None,
    steps: int | Sequence[int] = 100,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> pd.DataFrame:
    """Train a model in which maps replace blocks, in place: the step 2b of the paper's released code.

    AdamW at a constant rate, without weight decay, on batches of 32; gradients are clipped at norm 1, Trainer's default.

    Parameters
    ----------
    model
        From `saved_form`, or a folder that `save_pretrained` wrote, float32; an encoder that shares its weights changes
        with it.
    images, test
        Images or texts to train on, and labelled ones to measure the accuracy on.
    parts
        ``"maps"``, ``"norms"`` (all LayerNorms), ``"head"`` (all behind the encoder) or ``"all"``; or several of them,
        as ``"maps+norms"``. All else is frozen.
    teacher
        Without it the loss is the cross-entropy of the labels. With it, usually the original encoder, no label is read:
        the loss is the mean squared error to its features (Hinton et al. 2015 distil logits).
    steps
        Number of steps; or the steps after which a row is measured, such as ``[0, 50, 100]``, the last of all at the
        end.
    learning_rate, seed
        The rate; the seed of the order of the images, and of dropout if the model has any.

    Returns
    -------
    DataFrame
        A row for each of `steps`, by default the first and the last: ``step``; ``seconds`` of training up to it, without
        the measuring; ``loss``, its mean over the steps since the row before; ``accuracy`` on `test` in percent.

    Raises
    ------
    InputError
        If accelerate is missing, the parts are unknown or not there, labels are missing, the teacher cannot be
        followed, or the model is of half precision.
    """
    if not is_accelerate_available():
        raise InputError("Fine-tuning needs accelerate, which is not installed: pip install 'toastlib[train]'.")
    _check(model, images, test, teacher, parts)
    measured = _steps(steps)
    real_number("learning_rate", learning_rate, above=0)
    whole_number("seed", seed)
    trained = parameters_of(model, parts)
    with tempfile.TemporaryDirectory() as folder, training(seed, model.device), quiet_transformers():
        targets = None if teacher is None else teacher.encode(images).clone()  # (images, width)
        for parameter in trained:
            parameter.requires_grad_()
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
        settings._n_gpu = min(settings.n_gpu, 1)  # as everywhere else: one device, no DataParallel
        record = _Record(measured, model, test)
        trainer = _Finetuner(
            model,
            settings,
            train_dataset=range(len(images)),
            data_collator=lambda rows: _batch(images, torch.tensor(rows), targets),
            callbacks=[record],
        )
        trainer.losses = record.losses
        trainer.remove_callback(PrinterCallback)
        try:
            record.measure(0)
            if measured[-1]:
                trainer.train()
        finally:
            model.eval().requires_grad_(False)
    return pd.DataFrame(record.rows, columns=COLUMNS)


def parameters_of(model: PreTrainedModel, parts: str) -> list[nn.Parameter]:
    """The parameters of maps, norms, head or all, or of several as ``"maps+norms"``; an `InputError` if there are none."""
    tower = model.toast.tower if hasattr(model, "toast") else getattr(model, "tower", model.base_model)
    inside = {id(parameter) for parameter in tower.parameters()}
    maps = [module for module in model.modules() if hasattr(module, "translation")]
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    found = {
        "maps": [parameter for module in maps for parameter in module.parameters()],
        "norms": [parameter for module in norms for parameter in module.parameters()],
        "head": [parameter for parameter in model.parameters() if id(parameter) not in inside],
        "all": list(model.parameters()),
    }
    for part in parts.split("+"):
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        if not found[part]:
            raise InputError(f"The model has no {part} with weights to train: take other parts.")
    return list({id(parameter): parameter for part in parts.split("+") for parameter in found[part]}.values())


class _Finetuner(Trainer):
    """Cross-entropy of labels; or, of a batch with targets, the mean squared error of the features to them."""

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

    def __init__(self, steps: Sequence[int], model: PreTrainedModel, test: Images | None) -> None:
        self.steps, self.model, self.test = steps, model, test
        self.rows: list[tuple] = []
        self.losses: list[Tensor] = []
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            self.seconds += time.perf_counter() - self.started
            self.measure(state.global_step)
            self.started = time.perf_counter()

    def measure(self, step: int) -> None:
        """Add the row of a step, if it is asked for."""
        if step in self.steps:
            loss, accuracy = float("nan"), float("nan")
            if self.losses:
                loss = torch.stack(self.losses).mean().item()
                self.losses.clear()
            if self.test is not None:
                right = answers(self.model.eval(), self.test).argmax(1) == self.test.labels
                accuracy = 100 * right.double().mean().item()
            self.rows.append((step, self.seconds, loss, accuracy))


def _batch(images: Images, rows: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
    inputs, labels = next(images[rows].batches(len(rows)))
    wanted = {"labels": labels} if targets is None else {"target": targets[rows.to(targets.device)]}
    return arguments_of(inputs) | wanted


def _check(model: PreTrainedModel, images: Images, test: Images | None, teacher: Encoder | None, parts: str) -> None:
    need(model, "config", "A model as saved_form makes it")
    need_batches(images)
    if model.dtype != torch.float32:
        raise InputError(f"Fine-tuning needs weights of float32, not {model.dtype}: load the encoder in float32.")
    if teacher is None and images.labels is None:
        raise InputError("There are no labels to train on: give the original encoder as teacher.")
    if test is not None and test.labels is None:
        raise InputError("Accuracies need labels, and the test images have none: leave out test.")
    if teacher is not None and parts == "head":
        raise InputError("The features that a teacher gives do not depend on the head: take other parts, or labels.")
    if teacher is not None and not hasattr(getattr(model, "toast", model), "tower"):
        raise InputError("A model with fused maps is trained with labels alone: a teacher needs maps of their own.")


def _steps(steps: int | Sequence[int]) -> list[int]:
    """The steps that are measured, in order."""
    measured = sorted({*steps} if isinstance(steps, Sequence) else {0, steps})
    for step in measured or [-1]:
        whole_number("A number of steps", step)
    return measured
