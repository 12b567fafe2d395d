"""Which blocks of a transformer are redundant, and what can stand in for them?

The names below load on first use: ``import toastlib as toast`` costs nothing until something is asked for.
"""

from importlib import import_module, metadata
from typing import Any

from toastlib.models.registration import register_saved_form
from toastlib.plugins import load_named

_HOMES = {
    "errors": ["InputError"],
    "plan": ["Plan", "Span"],
    "data.images": ["ImageSet", "Images", "load_images"],
    "data.tokens": ["TokenSample"],
    "data.texts": ["load_texts"],
    "data.transforms": ["Preprocessing"],
    "data.augment": ["Augmentation"],
    "models.encoder": ["Encoder"],
    "models.loading": ["load_encoder"],
    "models.hooks": ["collect_activations"],
    "models.costs": ["parameter_count"],
    "models.saving": ["saved_form"],
    "models.sublayers": ["split_blocks"],
    "statistics.moments": ["Moments", "plan_pairs"],
    "statistics.collect": ["collect_moments"],
    "statistics.similarity": ["cka_from_samples", "similarity", "similarity_between"],
    "translators.base": ["TRANSLATORS", "Translator"],
    "translators.linear": ["Affine", "Identity", "Linear", "Ridge"],
    "translators.per_token": ["PerPosition", "PerTokenType", "PooledContext"],
    "approximation.replace": ["approximate", "fit_spans", "replace_spans"],
    "approximation.fuse": ["fuse_spans"],
    "evaluation.probe": ["HeadConfig", "Probe"],
    "evaluation.result": ["Evaluation"],
    "evaluation.evaluate": ["evaluate_plans", "require_labels"],
    "evaluation.metrics": ["paired_difference"],
    "evaluation.costs": ["map_costs", "pareto_front", "plan_costs", "relative_throughput", "time_plans"],
    "evaluation.sample_size": ["sample_size_curve", "saturation", "variance_split"],
    "evaluation.zero_shot": ["evaluate_zero_shot", "load_dual_encoder"],
    "evaluation.dense": ["evaluate_dense", "final_patches", "fit_pixel_probe", "reconstruct_pixels"],
    "evaluation.language": ["evaluate_language_model", "load_language_model"],
    "evaluation.interactive": ["Playground"],
    "selection.criteria": ["span_costs"],
    "selection.plans": ["best_plans", "candidate_plans", "random_plans", "select"],
    "selection.rerank": ["race_plans", "removal_order", "run_plans"],
    "export.compress": ["compress"],
    "export.finetune": ["finetune"],
    "export.compatibility": ["check_model"],
    "export.language": ["compress_language"],
    "paper": ["reference"],
    "plots.panel": ["Panel"],
    "runs.store": ["Results"],
    "runs.run": ["run_notebook"],
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("paper", "plots")

__all__ = sorted([*_MODULE_OF, *_MODULES])

register_saved_form()


def __getattr__(name: str) -> Any:
    load_named()  # now, and not on import, where an error would be a traceback on the command line too
    if name in _MODULE_OF:
        return getattr(import_module(f"toastlib.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return import_module(f"toastlib.{name}")
    if name == "__version__":
        return metadata.version("toastlib")
    raise AttributeError(f"module 'toastlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
