"""A smaller language model: blocks chosen and replaced, what it costs in perplexity, and what it writes."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from toastlib.approximation.replace import approximate
from toastlib.data.texts import TextSet
from toastlib.errors import InputError, need_original
from toastlib.evaluation.language import LanguageModel, evaluate_language_model
from toastlib.export.compress import REMOVES_NOTHING
from toastlib.export.folder import render
from toastlib.models.costs import parameter_count
from toastlib.models.model_card import ModelCardData, change, loading_code, removed_in_words, task_of
from toastlib.output import writing
from toastlib.plan import ORIGINAL, Plan
from toastlib.selection.criteria import span_costs
from toastlib.selection.plans import POOLED, candidate_plans
from toastlib.statistics.collect import collect_moments
from toastlib.translators.base import RECOMMENDED

CANDIDATES = 10
TRIED_ON = 50  # training texts at most on which candidate plans are compared; maps are fitted on others
PROMPTS, PROMPT, WRITTEN = 3, 32, 48
"""Test texts that are continued; tokens that are read of each, and that are written."""


@dataclass(frozen=True)
class LanguageCompression:
    """A smaller language model, and what it costs."""

    plan: Plan
    translator: str  # in place of each span
    model: LanguageModel  # the smaller one
    original: LanguageModel
    table: pd.DataFrame  # of `evaluate_language_model` on the test texts, the original first
    samples: pd.DataFrame  # some test texts: ``prompt``, and how the ``original`` and the ``smaller`` model go on
    choice: str  # in a sentence, how the plan was chosen
    calibration: str  # what maps were fitted on
    evaluation: str  # what the table is of

    def __repr__(self) -> str:
        return f"LanguageCompression({self.plan}, {self.translator}: {self.verdict()})"

    def verdict(self) -> str:
        """Size won and bits lost, in one sentence."""
        before, after = (parameter_count(language.model) for language in (self.original, self.model))
        rows = self.table.set_index("translator").loc[[ORIGINAL, self.translator]]
        original, smaller = rows["perplexity"]
        lost, low, high = rows.loc[self.translator, ["lost", "lost_low", "lost_high"]]
        return (
            f"{before:,} to {after:,} parameters ({change(before, after)}); perplexity {original:.2f} to "
            f"{smaller:.2f}, bits per token lost: {lost:z.3f} [{low:z.3f}, {high:z.3f}]."
        )

    def summary(self) -> str:
        """What was done, what it costs, and what is written, as a terminal shows it."""
        removed, first = removed_in_words(self.plan.removed, False), self.samples.iloc[0]
        return "\n".join(
            [
                f"Removed: {removed} (plan {self.plan}). In place of each span: {self.translator}, fitted on "
                f"{self.calibration}.",
                self.verdict(),
                self.choice,
                "",
                f"On {self.evaluation}:",
                self.maps().to_string(index=False),
                "",
                *(f"{name}: {first[name]!r}" for name in self.samples),
            ]
        )

    def maps(self) -> pd.DataFrame:
        """The table as a terminal and the report show it."""
        lost = [f"{row.lost:z.3f} [{row.lost_low:z.3f}, {row.lost_high:z.3f}]" for row in self.table.itertuples()]
        numbers = self.table[["translator", "perplexity", "bits"]].round({"perplexity": 2, "bits": 3})
        return numbers.assign(lost=["", *lost[1:]]).rename(columns={"translator": "map", "bits": "bits per token"})

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write model, card and ``report.html``, as `CompressionResult.save` does, and return the folder's path."""
        facts = {"calibration": self.calibration, "evaluation": self.evaluation, "measure": "perplexity"}
        with writing(folder, force=force) as staging:
            self.model.save_pretrained(staging, card=ModelCardData(head=self.verdict(), **facts))
            page = render(
                "language.html",
                title=f"{self.original.encoder.name} without {removed_in_words(self.plan.removed, False)}",
                result=self,
                code=loading_code("THIS-FOLDER", task_of(True, "causal"), self.translator == "identity"),
            )
            (staging / "report.html").write_text(page, encoding="utf-8")
        return Path(folder).resolve()


def compress_language(
    language: LanguageModel,
    texts: TextSet,
    remove: int | str | Plan,
    *,
    translator: str | None = None,
    calibration: int = 500,
    seed: int = 0,
) -> LanguageCompression:
    """Remove blocks of a language model and measure the cost; test texts are used for measuring alone.

    Parameters
    ----------
    language, texts
        An original, and chunks of running text, see `load_texts`.
    remove
        A plan, or a number of blocks: then the best plans by calibration texts are compared on other training texts.
    translator
        The map that is taken; if `None`, ``"context"`` or ``"linear"``, whichever loses less on those texts.
    calibration, seed
        Number of training texts at most that maps are fitted on; seed of their draw.

    Returns
    -------
    LanguageCompression
        `LanguageCompression.save` writes it to a folder.

    Raises
    ------
    InputError
        If the model was made smaller before, the plan or the number of blocks does not fit, or a translator is unknown.
    """
    need_original(language.encoder)
    encoder, drawn = language.encoder, texts.train.sample(len(texts.train), seed)
    kinds = [translator] if translator else [RECOMMENDED, "linear"]
    tried_on = drawn[: min(TRIED_ON, len(drawn) // 4)]
    fitting = drawn[len(tried_on) :][:calibration]
    if len(fitting) < 5:
        raise InputError(f"Maps are fitted on {len(fitting)} training texts, and 5 are needed at least.")
    if isinstance(remove, str | Plan):
        plans = [Plan.parse(remove).check(len(encoder.blocks))]
        if not plans[0]:
            raise InputError(REMOVES_NOTHING)
    elif not 0 < remove < len(encoder.blocks):
        raise InputError(f"{remove} blocks cannot be removed: the model has {len(encoder.blocks)}, and keeps one.")
    else:
        moments = collect_moments(encoder, fitting, batch_size=8, context=False)
        plans = candidate_plans([span_costs(moments, name) for name in POOLED], remove, CANDIDATES)
    plan, taken, choice = plans[0], kinds[0], "Plan and map were given."
    if len(plans) * len(kinds) > 1:
        trial = TextSet(texts.name, fitting, tried_on)
        tried = evaluate_language_model(language, trial, plans, translators=kinds, calibration=fitting).table[1:]
        best = tried.loc[tried["bits"].idxmin()]
        plan, taken = Plan.parse(best["plan"]), best["translator"]
        choice = (
            f"Of {len(tried)} plans and maps that were run on {len(tried_on)} other training texts, these lose least."
        )
    names = list(dict.fromkeys([taken, RECOMMENDED, "linear", "identity"]))
    evaluated = evaluate_language_model(language, texts, [plan], translators=names, calibration=fitting)
    smaller = language.on(approximate(encoder, plan, fitting, translator=taken, batch_size=8))
    beginnings = texts.test[:PROMPTS].tokens.cut(PROMPT)
    prompts = encoder.tokenizer.batch_decode(beginnings.input_ids, skip_special_tokens=True)
    written = {"original": language.generate(prompts, WRITTEN), "smaller": smaller.generate(prompts, WRITTEN)}
    return LanguageCompression(
        plan=plan,
        translator=taken,
        model=smaller,
        original=language,
        table=evaluated.table,
        samples=pd.DataFrame({"prompt": prompts} | written),
        choice=choice,
        calibration=f"{len(fitting)} training texts of {texts.name}, seed {seed}",
        evaluation=f"{len(texts.test)} test texts of {texts.name}",
    )
