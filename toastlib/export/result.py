"""What a compression has made, what it costs, and whether it is worth it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from toastlib.approximation.fuse import FUSED
from toastlib.evaluation.heads import LOST, Flip, Head, points_lost
from toastlib.evaluation.latency import Spread, told_apart
from toastlib.evaluation.metrics import changes
from toastlib.export.folder import save_compressed
from toastlib.export.onnx import OnnxModel
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import Accuracy, ModelCardData, change, removed_in_words, short
from toastlib.plan import Plan
from toastlib.translators.base import RECOMMENDED, split_align

TURNED = {"worse": "turn wrong", "better": "turn right", "changed": "changed"}
"""Column of `CompressionResult.maps` -> what answers do."""
TUNED = ", fine-tuned"  # behind a map's name in the table of maps


class Contender(NamedTuple):
    """A model that is measured beside the others: its map, the model, its size on disk, and what opens it."""

    translator: str
    model: PreTrainedModel | OnnxModel
    megabytes: float
    opens: str


@dataclass(frozen=True)
class CompressionResult:
    """A smaller encoder, and what it costs.

    `maps` has a row for the original and for every translator that was compared: points ``lost`` with ``low`` and
    ``high``, images that turn ``worse`` and ``better``, answers that ``changed``, ``megabytes`` on disk, ``ms_1`` and
    ``ms_32`` per batch with their quartiles ``ms_low_1`` ..., ``millijoules`` per image where they are counted, what
    ``opens`` it, and ``why`` it cannot be had. Models in onnxruntime follow, if they were asked for.

    `search` has a row per number of blocks that was tried, with the columns `TESTED`; ``lost``, ``low`` and ``high``
    are NaN where no image was left to test on, and there is no row where the plan was given.
    """

    plan: Plan
    translator: str  # in place of each span
    encoder: Encoder  # the smaller one
    head: Head
    card: ModelCardData  # facts about both models
    lost: Accuracy  # points, paired over the test images, with their 95 % interval
    maps: pd.DataFrame
    classes: pd.DataFrame | None  # from `by_class`; `None` without labels
    flips: list[Flip]  # test images that turn wrong
    similarity: pd.DataFrame  # linear CKA of all blocks on the calibration set
    search: pd.DataFrame
    max_drop: float | None = None  # the promise, in points; `None` where a plan or a number of blocks was given

    def __repr__(self) -> str:
        return f"CompressionResult({self.plan}, {self.translator}: {self.verdict()})"

    @property
    def fused(self) -> bool:
        """True if the maps are in the weights of other blocks, and the architecture is the original's."""
        return split_align(self.translator)[0] == FUSED

    @property
    def tuned(self) -> bool:
        """True if the model has been fine-tuned; what it was before is the row behind it in `maps`."""
        return self.maps["translator"].iloc[1].endswith(TUNED)

    @property
    def removed(self) -> str:
        """The removed blocks in words."""
        return removed_in_words(self.plan.removed, self.encoder.sublayer_split is not None)

    @property
    def inputs(self) -> str:
        """``"images"`` or ``"texts"``."""
        return "texts" if self.encoder.reads_text else "images"

    @property
    def loses(self) -> str:
        """What a difference is called: points lost, or percent of the answers changed."""
        return LOST[self.head.measure]

    def time(self, batch: int | str) -> tuple[str, str]:
        """The change of the time for a batch, or ``"pipeline"``, if the quartiles tell one, and both times."""
        first, own = self.maps.iloc[0], self.maps.iloc[1]
        spreads = self.maps[[f"ms_{batch}", f"ms_low_{batch}", f"ms_high_{batch}"]].to_numpy()
        times = f"{_with_spread(first, f'_{batch}')} to {_with_spread(own, f'_{batch}')} ms"
        return change(first[f"ms_{batch}"], own[f"ms_{batch}"]) if told_apart(*spreads[:2]) else "not clear", times

    def verdict(self) -> str:
        """Whether it is smaller, whether it is faster, and what that costs; "Not worth it" if it is neither."""
        lost, low, high = self.lost
        batch, times = max(self.card.latency.items())
        size, time = (100 * (1 - after / before) for before, after in (self.card.sizes.parameters, times))
        told = self.time(batch)[0] != "not clear"
        smaller = f"{abs(size):.0f} % {'fewer' if size > 0 else 'MORE'} parameters"
        smaller = f"yes, {smaller}" if size >= 1 else f"no, {smaller if size <= -1 else 'as many parameters'}"
        faster = f"yes, {time:.0f} % less time" if time > 0 else f"no, {-time:.0f} % MORE time"
        faster = faster if told else "not clear, the two times overlap"
        clear = "" if low > 0 or high < 0 else ", which cannot be distinguished from none"
        worth = "" if size >= 1 or (told and time > 0) else "Not worth it. "
        cost = f"{self.loses[0].upper()}{self.loses[1:]}: {lost:z.1f} [{low:z.1f}, {high:z.1f}]{clear}"
        return f"{worth}Smaller: {smaller}. Faster at batch {batch}: {faster}. {cost}."

    def summary(self) -> str:
        """What was done, in two lines, and what it costs, in five."""
        card, (lost, low, high) = self.card, self.lost
        size = "{:,} to {:,} parameters ({}), {} to {} MB on disk"
        (before, after), megabytes = card.sizes.parameters, [short(count / 1e6) for count in card.sizes.bytes]
        times = [f"{self.time(batch)[1]} at batch {batch} ({self.time(batch)[0]})" for batch in card.latency]
        measured = [f"{card.measure}  {{:.1f}} % [{{:.1f}}, {{:.1f}}], over {card.evaluation}".format(*card.after)]
        if card.before:
            measured = [
                "{} before  {:.1f} % [{:.1f}, {:.1f}]".format(card.measure, *card.before),
                "{} after   {:.1f} % [{:.1f}, {:.1f}]".format(card.measure, *card.after),
                f"points lost  {lost:z.1f} [{low:z.1f}, {high:z.1f}], paired over {card.evaluation}",
            ]
        ladder, (faster, in_pipeline) = self.ladder(), self.time("pipeline")
        return "\n".join(
            [
                card.head,
                f"Removed: {self.removed} (plan {self.plan}). In place of each span: {self.translator}, fitted on "
                f"{card.calibration}.",
                self.verdict(),
                *self.choice(),
                *([] if ladder.empty else ["", ladder.to_string(index=False)]),
                "",
                self.maps_in_words().to_string(index=False),
                *self.about_maps(),
                "",
                *measured,
                f"size  {size.format(before, after, change(before, after), *megabytes)}",
                f"time  {', '.join(times)}, on {card.device}; "
                f"with preprocessing, in batches of 32, {in_pipeline} per {self.inputs[:-1]} ({faster})",
            ]
        )

    def maps_in_words(self) -> pd.DataFrame:
        """The table of maps as a terminal and the report show it, the map that was taken first of them."""
        sizes = sorted(self.card.latency)
        rows = []
        for number, row in enumerate(self.maps[self.maps["why"] == ""].to_dict("records")):
            lost = "" if number == 0 else "{lost:z.1f} [{low:z.1f}, {high:z.1f}]".format(**row)
            times = {f"ms at batch {size}": _with_spread(row, f"_{size}") for size in sizes}
            changed = {"accuracy": ("worse", "better", "changed"), "agreement": ("changed",), "similarity": ()}
            counts = {TURNED[name]: int(row[name]) for name in changed[self.head.measure]}
            cells = {"map": row["translator"], self.loses: lost} | counts | {"MB": short(row["megabytes"])}
            energy = {} if pd.isna(row["millijoules"]) else {f"mJ per {self.inputs[:-1]}": short(row["millijoules"], 2)}
            rows.append(cells | times | energy | {"opens with": row["opens"]})
        return pd.DataFrame(rows)

    def ladder(self) -> pd.DataFrame:
        """The table of numbers of blocks as a terminal and the report show it; empty if none was tested."""
        rows = [
            {
                "blocks removed": f"{row.removed}{' (taken)' if row.plan == str(self.plan) else ''}",
                "plan": row.plan,
                f"{self.loses}, {row.held_out:,} held out": f"{row.lost:z.1f} [{row.low:z.1f}, {row.high:z.1f}]",
                "parameters": f"{row.parameters:,}",
            }
            for row in self.search.itertuples()
            if row.held_out
        ]
        return pd.DataFrame(rows)

    def about_maps(self) -> list[str]:
        """The maps that cannot be had for these blocks, and why; and how another one is taken."""
        rows = self.maps[self.maps["why"] != ""]
        said = [f"{row.translator} is not possible here: {row.why}" for row in rows.itertuples()]
        in_torch = self.maps[self.maps["opens"].str.startswith("transformers", na=False)]
        said += ["Energy: unknown on this machine."] * bool(self.maps["millijoules"].isna().all())
        others = list(in_torch["translator"][2 + self.tuned :])
        nothing = [name for name in others if split_align(name)[0] == "identity"]
        said += [f"{name} puts nothing in place of the blocks." for name in nothing]
        if others := [name for name in others if name not in nothing]:
            wish = "size (or speed)" if split_align(self.translator)[0] == RECOMMENDED else "accuracy"
            said.append(f"{self.translator} was taken; --prefer {wish} takes {others[-1]}.")
        in_int8 = self.maps[self.maps["opens"] == "onnxruntime, int8"]
        if len(in_int8):
            batch = max(self.card.latency)
            before, after = (_with_spread(row, f"_{batch}") for row in in_int8.to_dict("records"))
            said.append(f"In onnxruntime with int8 weights, batch {batch} takes {before} ms before, {after} ms after.")
        return said

    def choice(self) -> list[str]:
        """How the blocks were chosen, in a sentence or two; nothing where the plan was given."""
        if self.search.empty:
            return []
        row = self.search[self.search["plan"] == str(self.plan)].iloc[-1]
        text = [
            f"Of {row['tried']} plans that were run on up to {row['tried_on']:,} training {self.inputs}, this one "
            f"changes least{row['next']}."
            if row["tried"]
            else "There is one plan only that removes so many blocks."
        ]
        if not row["held_out"]:
            fewer = int(row["removed"] > 1)
            untested = f"Fewer blocks were not tested: that takes more training {self.inputs} than maps and choice use."
            return text + [untested] * fewer
        if self.max_drop is not None:
            lost, low, high = self.lost
            alone = f"; alone they would not promise it, as their interval ends at {high:.1f}"
            tells = alone if lost <= self.max_drop < high else ""
            text += [
                f"On {row['held_out']:,} other training {self.inputs} {self.loses}: {row['lost']:z.1f} "
                f"[{row['low']:z.1f}, {row['high']:z.1f}]; the upper end was to be at most {self.max_drop:g}.",
                f"On the test {self.inputs} the promise is {'kept' if lost <= self.max_drop else 'NOT kept'}: "
                f"{lost:z.1f} [{low:z.1f}, {high:z.1f}]{tells}.",
            ]
        if self.head.own:
            text.append(
                f"If the checkpoint was trained on these {self.inputs}, it may lose less on them than on others."
            )
        return text

    save = save_compressed


def maps_table(
    contenders: list[Contender],
    reasons: dict[str, str],
    found: list[Tensor],
    scores: list[np.ndarray],
    latency: dict[int | str, list[Spread]],
    energy: list[float] | None,
    head: Head,
) -> pd.DataFrame:
    """A row for each contender, the original's first."""
    rows = []
    for index, one in enumerate(contenders):
        lost, low, high = points_lost(scores[0], scores[index], head) if index else (0.0,) * 3
        worse, better = changes(scores[0], scores[index])
        changed = int((found[index].argmax(1) != found[0].argmax(1)).sum())
        row = {"translator": one.translator, "lost": lost, "low": low, "high": high, "worse": worse, "better": better}
        row |= {"megabytes": one.megabytes, "changed": float("nan") if head.measure == "similarity" else changed}
        for batch, models in latency.items():
            row[f"ms_{batch}"], row[f"ms_low_{batch}"], row[f"ms_high_{batch}"] = models[index]
        rows.append(row | {"millijoules": energy and energy[index], "opens": one.opens, "why": ""})
    rows += [{"translator": name, "why": why} for name, why in reasons.items()]
    return pd.DataFrame(rows)


def _with_spread(row: dict, batch: str) -> str:
    """Milliseconds, and half the distance of their quartiles."""
    spread = (row["ms_high" + batch] - row["ms_low" + batch]) / 2
    return f"{short(row['ms' + batch], 3)} ± {short(spread, 2)}"
