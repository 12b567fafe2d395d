"""Language models: bits per token and generated text of decoders with removed blocks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from toastlib.approximation.engine import forward_plans, visible_batches
from toastlib.approximation.prepare import Sources, name_translators, prepare
from toastlib.data import catalog
from toastlib.data.texts import TextSet, tokenised
from toastlib.data.tokens import Tokens, arguments_of
from toastlib.errors import InputError
from toastlib.evaluation.metrics import CONFIDENCE
from toastlib.evaluation.result import counted
from toastlib.models import loading
from toastlib.models.base_architecture import base_config, with_tower
from toastlib.models.costs import example_input
from toastlib.models.encoder import Checkpoint, Encoder
from toastlib.models.layers import shorten_config
from toastlib.models.model_card import ModelCardData
from toastlib.models.quiet import find_checkpoint, quiet_transformers
from toastlib.models.saving import as_stored, save_pretrained, saved_form
from toastlib.plan import ORIGINAL, Plan, Span
from toastlib.translators.base import split_align

RESAMPLES = 1000  # resamples of the texts behind an interval


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with the head that predicts the next token."""

    encoder: Encoder  # the decoder without its head: blocks are removed from it
    model: nn.Module  # with it, such as transformers' `GPT2LMHeadModel`; the encoder's model is a part of it

    def on(self, encoder: Encoder) -> Self:
        """The same head on another encoder, such as `approximate` returns; only the head's weights are copied."""
        return replace(self, encoder=encoder, model=with_tower(self.model, self.model.base_model_prefix, encoder.model))

    @torch.inference_mode()
    def nll(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Negative log-likelihood of each text in nats, shape (batch,): ``-sum log p(token | tokens before it)``.

        `hidden` is the last block's output, shape (batch, tokens, width). The first token and padding cost nothing.
        """
        found = []
        for row in range(len(tokens)):  # logits of one text at a time: the vocabulary is large
            one = tokens[row : row + 1]
            with self.encoder.replayed(one, hidden[row : row + 1]):
                logits = self.encoder.run(self.model, one).logits[0, :-1]
            seen = (one.attention_mask[0, :-1] * one.attention_mask[0, 1:]).bool()
            found.append(cross_entropy(logits[seen].float(), one.input_ids[0, 1:][seen], reduction="sum"))
        return torch.stack(found)

    @torch.inference_mode()
    def generate(self, prompts: str | Iterable[str], new_tokens: int = 100, **options: Any) -> list[str]:
        """Continue each prompt, one text or several of any lengths; returned are the continuations alone.

        At most `new_tokens` are written, by default the likeliest each time; `options` are those of transformers'
        ``generate``, for example ``do_sample=True``. An `InputError` if both are longer than the model reads.
        """
        tokenizer, prompts = self.encoder.tokenizer, [prompts] if isinstance(prompts, str) else list(prompts)
        longest = self.encoder.longest_text
        tokens = tokenised(tokenizer, prompts, longest, side="left").to(self.encoder.device)
        width = tokens.input_ids.shape[1]
        if width + new_tokens > longest:
            raise InputError(
                f"{self.encoder.name} reads {longest} tokens at most: a prompt of {width} leaves {longest - width} to "
                f"be written, not {new_tokens}."
            )
        settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | options
        written = self.form().generate(**arguments_of(tokens), max_new_tokens=new_tokens, **settings)
        return tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)

    def form(self) -> nn.Module:
        """The transformers model that writes: the architecture's own while nothing stands in for a span."""
        plain = self.encoder.sublayer_split is None and not any(map(_is_map, self.encoder.blocks))
        return self.model if plain else saved_form(self.encoder, self.model)

    def save_pretrained(self, folder: str | Path, *, card: ModelCardData | None = None) -> None:
        """Write a folder that `load_language_model` and ``AutoModelForCausalLM`` open, with the tokenizer.

        Where spans are dropped, translator ``"identity"``, it is a model of the base architecture with fewer blocks,
        and plain transformers opens it, if that makes the same of it; all others take toastlib, or
        ``trust_remote_code=True``. An `InputError` if the model cannot be saved; nothing has been written then.
        """
        plain = self._of_base_architecture()
        if plain is None:
            save_pretrained(self.encoder, folder, head=self.model, card=card)
            return
        with quiet_transformers():
            as_stored(plain, self.encoder).save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    @torch.inference_mode()
    def _of_base_architecture(self) -> nn.Module | None:
        """The model with fewer blocks as its configuration makes it; `None` if that is another one, or has no place."""
        blocks = self.encoder.blocks
        if self.encoder.sublayer_split is not None or any(_is_map(one) and [*one.parameters()] for one in blocks):
            return None
        removed = {block for one in blocks if _is_map(one) for block in Span(*one.span).blocks}
        config = base_config(self.encoder, self.model)
        shorten_config(config, sorted(set(range(config.num_hidden_layers)) - removed))
        with self.encoder.block_list([block for block in blocks if not _is_map(block)]):
            weights = self.model.state_dict()
        try:
            with torch.random.fork_rng(devices=[]):
                made = type(self.model)(config).eval().requires_grad_(False)
            made.load_state_dict(weights)
        except Exception:  # a configuration of fewer blocks that is none, or that has other weights
            return None
        made = made.to(self.encoder.device, self.encoder.dtype)
        example = arguments_of(example_input(self.encoder))
        expected, found = (model(**example).logits for model in (self.form(), made))  # a block may know its number
        made.generation_config = self.model.generation_config
        return made if torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())) else None


def _is_map(block: nn.Module) -> bool:
    return hasattr(block, "translation")


def has_language_head(name: str, trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint predicts tokens: its configuration names an architecture with that head."""
    where = catalog.at_revision(find_checkpoint(name))
    kinds = AutoConfig.from_pretrained(**where, trust_remote_code=trust_remote_code).architectures
    return any("CausalLM" in kind or "LMHeadModel" in kind for kind in kinds or [])


def load_language_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    blocks: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a decoder with its head by alias, local folder or Hub id.

    Parameters
    ----------
    name
        ``"gpt-mini"`` is embedded; else for example ``"openai-community/gpt2"``.
    device, dtype, blocks, trust_remote_code
        As for `load_encoder`.

    Returns
    -------
    LanguageModel
        Frozen, on the device.

    Raises
    ------
    InputError
        If the name, the device or the dtype is unknown, or the checkpoint cannot be read or is no decoder.
    """
    path, target = find_checkpoint(name), loading.resolve_device(device)
    model, missing = loading.load_checkpoint(path, trust_remote_code, "AutoModelForCausalLM")
    if missing:
        raise InputError(f"The checkpoint of {name!r} lacks {len(missing)} weights: {missing[0]} among them.")
    alias, tokenizer = catalog.model_alias(name), loading.load_tokenizer(path, name)
    if model.config.model_type == "toast":
        encoder, model = loading.opened(model.toast, "mean", name=alias, tokenizer=tokenizer), model.toast.base
    else:
        encoder = Encoder(getattr(model, model.base_model_prefix), blocks, "mean", name=alias, tokenizer=tokenizer)
    if not encoder.is_causal:
        raise InputError(f"{alias} is no decoder: its tokens see those that they should predict.")
    model = model.eval().requires_grad_(False).to(target, loading.resolve_dtype(dtype, target))
    encoder.checkpoint = Checkpoint(path, None, trust_remote_code, loading.stored_dtype_of(path, trust_remote_code))
    return LanguageModel(encoder, model)


@dataclass(frozen=True)
class LanguageEvaluation:
    """The cost of the same texts for every variant of a language model."""

    variants: pd.DataFrame  # a row each: translator, calibration where there are several calibration sets, plan
    bits: np.ndarray  # for all predicted tokens of a text, float64, shape (variants, texts)
    tokens: np.ndarray  # number of predicted tokens, int64, shape (texts,)

    def __repr__(self) -> str:
        return f"LanguageEvaluation({counted(self.variants)}, test texts: {len(self.tokens):,})"

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per variant: the columns of `variants`, ``perplexity``, ``bits`` per token, and bits ``lost``.

        ``bits_low``, ``bits_high``, ``lost_low`` and ``lost_high`` are 95 % intervals over resamples of the texts.
        """
        bits = self._resampled
        original = bits[(self.variants["plan"] == ORIGINAL).to_numpy()]
        columns = {"perplexity": 2 ** bits[:, 0]} | _with_interval("bits", bits)
        return self.variants.assign(**columns, **_with_interval("lost", bits - original))

    def gain(self, translator: str) -> pd.DataFrame:
        """Bits per token that each variant saves over that translator in the same plan.

        Columns: those of `variants`, ``gain``, ``gain_low``, ``gain_high``, without the original and the translator.
        """
        shared = ["plan"] if translator == "identity" else [name for name in self.variants if name != "translator"]
        rows = self.variants.reset_index(names="row")
        rivals = rows[rows["translator"] == translator][["row", *shared]]
        pairs = rows[rows["translator"] != translator].merge(rivals, on=shared, suffixes=("", "_rival"))
        gained = self._resampled[pairs.pop("row_rival")] - self._resampled[pairs.pop("row")]
        return pairs.assign(**_with_interval("gain", gained))

    @cached_property
    def _resampled(self) -> np.ndarray:
        """Bits per token of all texts and of resamples of them, shape (variants, 1 + resamples)."""
        texts = len(self.tokens)
        drawn = np.random.default_rng(0).multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES)
        weights = np.vstack([np.ones(texts), drawn])
        return self.bits @ weights.T / (weights @ self.tokens)


def _with_interval(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[:, 1:], [tail, 100 - tail], axis=1)
    return {name: values[:, 0], f"{name}_low": low, f"{name}_high": high}


def evaluate_language_model(
    language: LanguageModel,
    texts: TextSet,
    plans: str | Plan | Iterable[str | Plan],
    *,
    translators: Sources = ("identity", "linear"),
    calibration: Any = 500,
    batch_size: int = 8,
) -> LanguageEvaluation:
    """Predict every token of the test texts with the original model and with every plan.

    Parameters
    ----------
    language, texts
        The original model, and texts whose training part maps are fitted on.
    plans, translators, calibration, batch_size
        As for `evaluate_plans`; feature alignment is refused, for a language model has no features.

    Returns
    -------
    LanguageEvaluation
        Every variant's bits for every test text.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit, or a translator aligns features.
    """
    translators = name_translators(translators)
    if aligned := [name for name in translators if split_align(name)[1]]:
        raise InputError(f"{aligned[0]!r} aligns the features of an image or text; a language model has none.")
    encoder = language.encoder
    ready = prepare(encoder, texts, plans, translators=translators, calibration=calibration, batch_size=batch_size)
    batches = []
    for tokens in visible_batches(texts.test, batch_size, "tokens", "text"):
        nll = forward_plans(encoder, tokens, ready.variants, ready.maps, language.nll)
        batches.append(torch.stack([nll[variant] for variant in ready.variants]).double().cpu())
    predicted = texts.test.tokens.attention_mask.sum(1) - 1
    bits = torch.cat(batches, dim=1).numpy() / np.log(2)
    return LanguageEvaluation(pd.DataFrame(ready.names), bits, predicted.cpu().numpy())
