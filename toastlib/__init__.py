"""Which blocks of a transformer are redundant, and what can stand in for them?

The names below load on first use: ``import toastlib as toast`` costs nothing until something is asked for.
"""

from importlib import import_module, metadata
from typing import Any

from toastlib.models.registration import register_saved_form

_HOMES = {
    "approximation.replace": ["approximate", "fit_spans", "replace_spans"],
    "evaluation.sample_size": ["residual", "sample_size_curve", "saturation", "variance_split"],
    "models.model_card": ["ModelCardData"],
    "models.loading": ["load_encoder"],
    "selection.regret": ["regret", "random_map", "rank_correlation", "win_rate"],
    "translators.linear": ["Affine", "Diagonal", "LowRank", "Orthogonal", "Ridge", "Scalar"],
    "statistics.collect": ["collect_folds", "collect_moments"],
    "data.images": ["ImageSet", "Images", "load_images"],
    "export.folder": ["save_compressed"],
    "evaluation.dense": ["final_patches", "dense_errors", "fit_pixel_probe", "reconstruct_pixels"],
    "errors": ["InputError"],
    "evaluation.metrics": ["accuracy_lost", "accuracy_table", "paired_difference"],
    "approximation.fuse": ["fuse_spans"],
    "evaluation.transfer": ["lost_by_source", "transfer"],
    "evaluation.language": ["LanguageModel", "load_language_model", "perplexity_table", "score"],
    "evaluation.misclassification": ["class_accuracy", "confusion", "flips", "mcnemar"],
    "models.encoder": ["Encoder"],
    "statistics.moments": ["KFoldMoments", "Moments", "plan_pairs"],
    "plots.panel": ["Panel"],
    "plan": ["Plan", "Span"],
    "evaluation.interactive": ["Answer", "Playground"],
    "data.transforms": ["Preprocessing"],
    "evaluation.probe": ["Probe", "fold_into"],
    "approximation.align": ["align_features"],
    "runs.batch": ["Results", "run_notebook"],
    "models.saving": ["save_pretrained"],
    "selection.criteria": ["best_plan", "random_plans", "select", "span_costs"],
    "approximation.sequential": ["approximate_in_sequence"],
    "runs.shards": ["load_features", "load_moments"],
    "statistics.similarity": ["METRICS", "cka_from_samples", "similarity"],
    "models.sublayers": ["split_blocks"],
    "models.hooks": ["collect_activations"],
    "models.costs": ["parameter_count"],
    "approximation.engine": ["collect_features", "fit_maps", "variants_of"],
    "evaluation.sweep": ["predict", "sweep", "tabulate"],
    "export.compress": ["CompressionResult", "compress"],
    "data.texts": ["TextSet", "Texts", "load_texts"],
    "translators.per_token": ["PooledContext", "PerTokenType"],
    "evaluation.costs": [
        "map_costs",
        "plan_costs",
        "removed_parameters",
        "pareto_front",
        "relative_throughput",
        "time_plans",
    ],
    "translators.trained": ["relative_residual", "MLP", "WarmStartMLP", "ResMLP"],
    "translators.base": ["TRANSLATORS", "Identity", "Linear", "linear_module"],
    "evaluation.dual_encoder": ["tune_text_tower", "DualEncoder", "add_text_tower"],
    "selection.rerank": ["run_plans"],
    "data.augment": ["Augmentation"],
    "evaluation.zero_shot": ["select_classes", "predict_zero_shot", "zero_shot_head"],
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
