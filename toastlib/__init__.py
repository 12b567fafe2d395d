"""Which blocks of a transformer are redundant, and what can stand in for them?

The names below load on first use: ``import toastlib as toast`` costs nothing until something is asked for.
"""

from importlib import import_module, metadata
from typing import Any

from toastlib.models.registration import register_saved_form

_HOMES = {
    "approximation.replace": ["approximate", "fit_spans"],
    "evaluation.sample_size": ["sample_size_curve", "saturation", "variance_split"],
    "models.model_card": ["Card"],
    "models.loading": ["load_encoder"],
    "selection.regret": ["distance_to_best", "random_like", "rank_correlation", "standing"],
    "translators.linear": ["Affine", "Diagonal", "LowRank", "Orthogonal", "Ridge", "Scalar"],
    "statistics.collect": ["collect_folds", "collect_moments"],
    "data.images": ["ImageSet", "Images", "load_images"],
    "export.folder": ["deliver"],
    "evaluation.dense": ["dense_errors", "fit_read_out", "read_pixels"],
    "errors": ["InputError"],
    "evaluation.metrics": ["accuracy_lost", "accuracy_table", "paired_difference", "throughput"],
    "approximation.fuse": ["fold_spans"],
    "evaluation.transfer": ["lost_by_source", "transfer"],
    "evaluation.language": ["LanguageModel", "load_language_model", "perplexity_table", "score"],
    "evaluation.misclassification": ["class_accuracy", "confusion", "flips", "mcnemar"],
    "models.encoder": ["Encoder"],
    "statistics.moments": ["FoldedMoments", "Moments"],
    "plots.panel": ["Panel"],
    "plan": ["Plan", "Span"],
    "evaluation.interactive": ["Answer", "Playground"],
    "data.transforms": ["Preprocessing"],
    "evaluation.probe": ["Probe"],
    "approximation.align": ["fold_into", "realign"],
    "runs.batch": ["Results", "run_notebook"],
    "models.saving": ["save_pretrained"],
    "selection.criteria": ["random_plans", "select", "span_costs"],
    "approximation.sequential": ["approximate_in_sequence"],
    "runs.shards": ["load_features", "load_moments"],
    "statistics.similarity": ["similarity"],
    "models.sublayers": ["split_blocks"],
    "evaluation.sweep": ["predict", "sweep", "tabulate"],
    "export.compress": ["TakeAway", "shrink"],
    "data.texts": ["TextSet", "Texts", "load_texts"],
    "translators.per_token": ["Contextual", "Separate"],
    "evaluation.costs": ["pareto_front", "relative_throughput", "time_plans"],
    "translators.trained": ["MLP", "FairMLP", "ResMLP"],
    "translators.base": ["Identity", "Linear"],
    "evaluation.dual_encoder": ["TwoTowers", "add_text_tower"],
    "selection.rerank": ["measured_costs"],
    "data.augment": ["Views"],
    "evaluation.zero_shot": ["of_classes", "predict_zero_shot", "zero_shot_head"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("paper", "plots")

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
