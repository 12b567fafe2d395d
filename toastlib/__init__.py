"""Which blocks of a transformer are redundant, and what can stand in for them?

The names below load on first use: ``import toastlib as toast`` costs nothing until something is asked for.
"""

from importlib import import_module, metadata
from typing import Any

from toastlib.registration import register_saved_form

_HOMES = {
    "approximation": ["approximate", "fit_spans"],
    "calibration": ["sample_size_curve", "saturation", "variance_split"],
    "card": ["Card"],
    "checkpoints": ["load_encoder"],
    "choices": ["distance_to_best", "random_like", "rank_correlation", "standing"],
    "closed_forms": ["Affine", "Diagonal", "LowRank", "Orthogonal", "Ridge", "Scalar"],
    "collecting": ["collect_folds", "collect_moments"],
    "data": ["ImageSet", "Images", "load_images"],
    "delivery": ["deliver"],
    "dense": ["dense_errors", "fit_read_out", "read_pixels"],
    "errors": ["InputError"],
    "evaluation": ["accuracy_lost", "accuracy_table", "paired_difference", "throughput"],
    "folding": ["fold_spans"],
    "generalization": ["lost_by_source", "transfer"],
    "language": ["LanguageModel", "load_language_model", "perplexity_table", "score"],
    "misclassification": ["class_accuracy", "confusion", "flips", "mcnemar"],
    "models": ["Encoder"],
    "moments": ["FoldedMoments", "Moments"],
    "panel": ["Panel"],
    "plan": ["Plan", "Span"],
    "playground": ["Answer", "Playground"],
    "preprocessing": ["Preprocessing"],
    "probe": ["Probe"],
    "realignment": ["fold_into", "realign"],
    "running.batch": ["Results", "run_notebook"],
    "saving": ["save_pretrained"],
    "selection": ["random_plans", "select", "span_costs"],
    "sequential": ["approximate_in_sequence"],
    "sharding": ["load_features", "load_moments"],
    "similarities": ["similarity"],
    "sublayers": ["split_blocks"],
    "sweeps": ["predict", "sweep", "tabulate"],
    "take_away": ["TakeAway", "shrink"],
    "texts": ["TextSet", "Texts", "load_texts"],
    "token_aware": ["Contextual", "Separate"],
    "trade_off": ["pareto_front", "relative_throughput", "time_plans"],
    "trained": ["MLP", "FairMLP", "ResMLP"],
    "translators": ["Identity", "Linear"],
    "two_towers": ["TwoTowers", "add_text_tower"],
    "verification": ["measured_costs"],
    "views": ["Views"],
    "zero_shot": ["of_classes", "predict_zero_shot", "zero_shot_head"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = (
    "activations",
    "catalog",
    "paper",
    "plots",
    "running",
    "walks",
    *(home for home in _HOMES if "." not in home),
)

__all__ = sorted([*_MODULE_OF, *_MODULES])

register_saved_form()


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"toastlib.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return import_module(f"toastlib.{name}")
    if name == "__version__":
        return metadata.version("toastlib")
    raise AttributeError(f"module 'toastlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
