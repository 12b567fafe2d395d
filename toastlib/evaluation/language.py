"""Language models: what a token costs, in bits, where spans of a decoder's blocks are removed, and what it writes."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toastlib.approximation.engine import Variant, collect_calibration, fit_maps, forward_plans, variants_of
from toastlib.approximation.progress import progress_bar
from toastlib.data import catalog
from toastlib.data.texts import Texts, TextSet, tokenised
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.evaluation.metrics import CONFIDENCE
from toastlib.models.base_architecture import shorten_config
from toastlib.models.encoder import Encoder, ReplayBlock
from toastlib.models.layers import Replacement
from toastlib.models.loading import load_checkpoint, load_tokenizer, resolve_device, resolve_dtype
from toastlib.models.saving import with_tower
from toastlib.plan import ORIGINAL, Plan, parse_plans
from toastlib.statistics.moments import KFoldMoments, Moments
from toastlib.translators.base import Activations, make_translator, split_align


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with the head that predicts the next token.

    Parameters
    ----------
    encoder
        The decoder without its head: what blocks are removed from.
    model
        The whole as transformers knows it, such as `GPT2LMHeadModel`; the encoder's model is a part of it.
    """

    encoder: Encoder
    model: nn.Module

    def on(self, encoder: Encoder) -> Self:
        """The same head on another encoder, such as `approximate` returns; nothing changes here.

        The head's weights are copied, the encoder's are not.
        """
        return replace(self, encoder=encoder, model=with_tower(self.model, self.model.base_model_prefix, encoder.model))

    @torch.inference_mode()
    def nats(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """What each text costs given the last block's output, ``-sum log p(token | those before)``; shape (batch,).

        Parameters
        ----------
        hidden
            Shape (batch, tokens, width).
        tokens
            The texts; their first tokens are not predicted, and padding costs nothing.
        """
        return torch.stack([self._nats(hidden[row : row + 1], tokens[row : row + 1]) for row in range(len(tokens))])

    def _nats(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        with self.encoder.block_list([ReplayBlock(hidden, self.encoder.blocks[0])]):
            logits = self.encoder.run(self.model, tokens).logits[0, :-1]
        seen = (tokens.attention_mask[0, :-1] * tokens.attention_mask[0, 1:]).bool()
        return cross_entropy(logits[seen].float(), tokens.input_ids[0, 1:][seen], reduction="sum")

    @torch.inference_mode()
    def generate(self, prompts: str | Iterable[str], new_tokens: int = 100, **options: Any) -> list[str]:
        """Continue each prompt; returned are the continuations alone.

        Parameters
        ----------
        prompts
            One text, or several, of any lengths.
        new_tokens
            How many tokens are written at most.
        **options
            Of transformers' ``generate``, for example ``do_sample=True``; the likeliest token is taken each time if
            nothing is said.
        """
        tokenizer, prompts = self.encoder.tokenizer, [prompts] if isinstance(prompts, str) else list(prompts)
        longest = self.model.config.max_position_embeddings
        tokens = tokenised(tokenizer, prompts, longest, side="left").to(self.encoder.device)
        width = tokens.input_ids.shape[1]
        if width + new_tokens > longest:
            raise InputError(
                f"{self.encoder.name} reads {longest} tokens at most: a prompt of {width} leaves {longest - width} to "
                f"be written, not {new_tokens}."
            )
        settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id} | options
        inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        written = self.model.generate(**inputs, max_new_tokens=new_tokens, **settings)
        return tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model of the base architecture with fewer blocks, and its tokenizer: plain transformers opens it.

        Raises
        ------
        InputError
            If maps stand in for spans, or blocks were split into sublayers, for which the architecture has no place;
            nothing has been written then.
        """
        if self.encoder.sublayer_split is not None:
            raise InputError(
                f"A saved {type(self.model).__name__} has no place for sublayers: save one of whole blocks."
            )
        gone = [block for block in self.encoder.blocks if isinstance(block, Replacement)]
        if mapped := [block.span for block in gone if list(block.parameters())]:
            raise InputError(
                f"A map stands in for span {mapped[0]}, and a saved {type(self.model).__name__} has no place for it: "
                "only dropped spans, translator 'identity', can be saved."
            )
        with self.encoder.block_list([block for block in self.encoder.blocks if block not in gone]):
            model = copy.deepcopy(self.model)
        shorten_config(model.config, len(self.encoder.blocks) - len(gone))
        model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)


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
    path, target = catalog.model_path(name), resolve_device(device)
    model, missing = load_checkpoint(path, trust_remote_code, "AutoModelForCausalLM")
    if missing:
        raise InputError(f"The checkpoint of {name!r} lacks {len(missing)} weights: {missing[0]} among them.")
    alias, base = catalog.model_alias(name), getattr(model, model.base_model_prefix)
    encoder = Encoder(base, blocks, "mean", name=alias, tokenizer=load_tokenizer(path, name))
    if not encoder.is_causal:
        raise InputError(f"{alias} is no decoder: its tokens see those that they should predict.")
    model = model.eval().requires_grad_(False).to(target, resolve_dtype(dtype, target))
    return LanguageModel(encoder, model)


@dataclass(frozen=True)
class Scores:
    """What every variant of a language model pays for the same texts.

    Parameters
    ----------
    variants
        One row per variant: ``translator``, ``plan``.
    bits
        float64, shape (variants, texts): bits for all predicted tokens of a text.
    tokens
        int64, shape (texts,): how many are predicted.
    """

    variants: pd.DataFrame
    bits: np.ndarray
    tokens: np.ndarray


def score(
    language: LanguageModel,
    texts: TextSet,
    plans: str | Plan | Iterable[str | Plan],
    translators: Iterable[str] = ("identity", "linear"),
    calibration_size: int = 500,
    calibration_seed: int = 0,
    batch_size: int = 8,
    moments: Moments | KFoldMoments | Activations | None = None,
) -> Scores:
    """Let the original and every plan with every translator predict the test texts, in one walk.

    Parameters
    ----------
    language, texts
        The original, and texts whose training part the maps are fitted on.
    plans, translators
        Each plan is tried with each translator.
    calibration_size, calibration_seed
        How many training texts the maps are fitted on, all where there are fewer, and the seed of that draw.
    batch_size
        Texts per forward pass.
    moments
        Fit the maps on these instead, see `fit_spans`.

    Returns
    -------
    Scores
        What every variant gives for every test text.

    Raises
    ------
    InputError
        If a name is unknown, a plan does not fit the model, or a translator aligns features.
    """
    encoder, translators = language.encoder, list(dict.fromkeys(translators))
    for name in translators:
        make_translator(name)
        if split_align(name)[1]:
            raise InputError(f"{name!r} aligns the features of an image or text; a language model has none.")
    plans = [plan.check(len(encoder.blocks)) for plan in parse_plans(plans)]
    if moments is None and any(plans):
        sample = texts.train.sample(min(calibration_size, len(texts.train)), calibration_seed)
        moments = collect_calibration(encoder, sample, plans, translators, batch_size)
    variants = variants_of(plans, translators)
    nats = _walk_texts(language, texts.test, variants, fit_maps(encoder, variants, moments), batch_size)
    rows = [(variant.translator, str(variant.plan)) for variant in variants]
    predicted = texts.test.tokens.attention_mask.sum(1) - 1
    return Scores(pd.DataFrame(rows, columns=["translator", "plan"]), nats.numpy() / np.log(2), predicted.cpu().numpy())


def _walk_texts(language: LanguageModel, texts: Texts, variants: list[Variant], maps: Any, batch_size: int) -> Tensor:
    """Nats of every variant for every text, float64, shape (variants, texts), on the CPU."""
    parts = []
    with progress_bar(len(texts), "score", "text") as progress:
        for tokens, _ in texts.batches(batch_size):
            nats = forward_plans(language.encoder, tokens, variants, maps, language.nats)
            parts.append(torch.stack([nats[variant] for variant in variants]).double().cpu())
            progress.update(len(tokens))
    return torch.cat(parts, dim=1)


def perplexity_table(scores: Scores, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per variant: what a token costs, and how much more than in the original model.

    Parameters
    ----------
    scores
        From `score`.
    resamples, seed
        Of the texts: the 95 % intervals are quantiles over them, of one variant or of the difference of two for the
        same texts.

    Returns
    -------
    DataFrame
        Columns ``translator``, ``plan``, ``perplexity``, ``bits`` (per token) with ``bits_low`` and ``bits_high``, and
        ``lost`` (bits more than the original's) with ``lost_low`` and ``lost_high``.
    """
    texts = len(scores.tokens)
    drawn = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=resamples)
    weights = np.vstack([np.ones(texts), drawn])  # (1 + resamples, texts), the texts as they are first
    bits = scores.bits @ weights.T / (weights @ scores.tokens)  # (variants, 1 + resamples)
    original = bits[(scores.variants["plan"] == ORIGINAL).to_numpy()]
    tail = 50 * (1 - CONFIDENCE)
    columns = {"perplexity": 2 ** bits[:, 0]}
    for name, values in (("bits", bits), ("lost", bits - original)):
        low, high = np.percentile(values[:, 1:], [tail, 100 - tail], axis=1)
        columns |= {name: values[:, 0], f"{name}_low": low, f"{name}_high": high}
    return scores.variants.assign(**columns)
