"""The command line: ``toast study``, ``sweep``, ``run``, ``approximate``, ``export``, ``params`` and others."""

import argparse
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from toastlib import batch
from toastlib.errors import InputError
from toastlib.parameters import check_parameters, notebook_parameters


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns 0, 1 if a notebook failed, or 2 if the input cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except InputError as error:
        print(f"toast: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"toast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("toast: interrupted; finished runs are kept.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Execute one notebook."""
    folder = batch.run_notebook(options.notebook, _given(options), options.results_dir, sys.stderr.isatty())
    _say_where([folder])
    return 0


def study(options: argparse.Namespace) -> int:
    """Execute every notebook of the study, or the paper's own grid of runs."""
    from toastlib.grids import paper_grid

    given, on_paper = _given(options), options.full or options.table
    if on_paper:
        runs = [(run.notebook, run.given) for table in options.table or [None] for run in paper_grid(table)]
    else:
        runs = [(batch.find_notebook(name), {}) for name in batch.notebook_names()]
    for parameter in given:
        if not any(parameter in notebook_parameters(notebook) for notebook, _ in runs):
            raise InputError(f"No notebook has a parameter {parameter!r}; `toast params` lists them.")
    return _execute([(notebook, own | _taken(given, notebook)) for notebook, own in runs], options, bool(on_paper))


def sweep(options: argparse.Namespace) -> int:
    """Execute the runs of a grid file that are not done yet."""
    from toastlib.grids import read_grid

    return _execute([(run.notebook, run.given) for run in read_grid(options.grid)], options, resume=True)


def params(options: argparse.Namespace) -> int:
    """List the parameters of the notebooks, with their defaults."""
    for name in [options.notebook] if options.notebook else batch.notebook_names():
        notebook = batch.find_notebook(name)
        print(notebook.stem)
        for parameter in notebook_parameters(notebook).values():
            comment = f"  # {parameter.comment}" if parameter.comment else ""
            print(f"  {parameter.name} = {parameter.default!r}{comment}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine offers: versions, devices, embedded defaults."""
    import torch

    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{p} {metadata.version(p)}" for p in batch.VERSIONS))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(
        f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(f", cuda:{i} ({g})" for i, g in enumerate(gpus))
    )
    print(f"notebooks: {', '.join(batch.notebook_names())}")
    from toastlib.checkpoints import load_encoder

    encoder = load_encoder("vit-mini", device="cpu")
    print(f"vit-mini loads: {len(encoder.blocks)} blocks of width {encoder.width}")
    return 0


def approximate(options: argparse.Namespace) -> int:
    """Make a checkpoint smaller: a folder with the model and a page that says what it costs."""
    from toastlib import checkpoints, data, delivery, judging, take_away

    folder = delivery.check_folder(options.out)
    encoder = checkpoints.load_encoder(options.model, features=options.features, device=options.device)
    sizes = {"train_size": options.train_size, "test_size": options.test_size, "seed": options.seed}
    images = data.load_images(options.data, encoder, **sizes, at_most=True)
    taken = take_away.shrink(
        encoder,
        images,
        options.plan,
        options.remove,
        options.max_drop,
        options.translator,
        judging.own_classifier(options.model),
        options.calibration_size,
        options.seed,
    )
    delivery.deliver(taken, folder)
    print(take_away.summary(taken))
    print(f"Model and report.html lie in\n  {folder}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a saved model in another format, checked against the original."""
    from toastlib.exporting import export_onnx

    file, difference = export_onnx(options.folder, options.out)
    print(f"{file}: its outputs differ from torch's by at most {difference:.1e} of the largest")
    return 0


def cache(options: argparse.Namespace) -> int:
    """Show what features take on disk, or delete them."""
    from toastlib.cache import default_cache

    kept = default_cache()
    if kept.folder is None:
        print("The cache is off (TOAST_CACHE).")
        return 0
    if options.clear:
        kept.shrink(0)
    entries = kept.entries()
    size = sum(stat.st_size for _, stat in entries) / 2**20
    print(f"{kept.folder}: {len(entries)} entries, {size:,.1f} MiB of at most {kept.limit / 2**30:g} GiB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toast", description="Which blocks of a transformer are redundant?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, **options) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__, **options)
        sub.set_defaults(command=function)
        return sub

    study_parser, sweep_parser, run_parser = command(study), command(sweep), command(run)
    paper = study_parser.add_mutually_exclusive_group()
    paper.add_argument("--full", action="store_true", help="the paper's grid: every table; what is done is skipped")
    paper.add_argument("--table", action="append", metavar="N", help="a table of the paper's grid; repeat")
    sweep_parser.add_argument("grid", help="a YAML file, for example grids/demo.yaml")
    for sub in (study_parser, sweep_parser):
        sub.add_argument("--jobs", type=_positive, help="notebooks at a time (two; one where there is a GPU)")
    run_parser.add_argument("notebook", help="name, number or path: 02, 02_approximation, my.ipynb")
    for sub in (study_parser, run_parser):
        sub.add_argument(
            "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter; repeat"
        )
        sub.add_argument("--device", help="the same as -p device=...")
    for sub in (study_parser, sweep_parser, run_parser):
        sub.add_argument(
            "--results-dir", type=Path, default=Path("results"), help="where the run folders are made (results)"
        )
    command(params).add_argument("notebook", nargs="?", help="one notebook; all of them if not given")
    command(doctor)
    _add_approximate(command(approximate))
    export_parser = command(export)
    export_parser.add_argument("folder", type=Path, help="what save_pretrained wrote")
    export_parser.add_argument("--onnx", action="store_true", required=True, help="the format")
    export_parser.add_argument("--out", type=Path, help="the file (model.onnx in the folder)")
    command(cache).add_argument("--clear", action="store_true", help="delete everything in it")
    return parser


def _add_approximate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="alias, Hub id or folder")
    parser.add_argument("--data", required=True, help="alias, Hub id or folder of images; labels are optional")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--remove", type=_positive, metavar="K", help="how many blocks go; which, is chosen")
    choice.add_argument("--plan", help='which spans go, for example "2->5"')
    choice.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="as many blocks as lose at most so many points on held-out training images (1, if nothing is said)",
    )
    parser.add_argument(
        "--translator", default="linear", help="what stands in for them (linear); folded leaves no layer"
    )
    parser.add_argument("--features", help="cls, mean or pooler (cls)")
    sizes = {"train": (3000, "training images at most"), "test": (2000, "test images at most")}
    sizes["calibration"] = (500, "training images that the maps are fitted on")
    for name, (size, text) in sizes.items():
        parser.add_argument(f"--{name}-size", type=_positive, default=size, metavar="N", help=f"{text} ({size})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the head (0)")
    parser.add_argument("--out", type=Path, required=True, help="the folder")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _taken(given: dict[str, str], notebook: Path) -> dict[str, Any]:
    """What is given for the parameters that a notebook has, checked."""
    takes = notebook_parameters(notebook)
    return check_parameters(notebook, {name: value for name, value in given.items() if name in takes})


def _execute(runs: list[tuple[Path, dict[str, Any]]], options: argparse.Namespace, resume: bool) -> int:
    """Execute runs, each once; say how they end and where the results lie; 1 if one failed."""
    runs = list({repr(run): run for run in runs}.values())
    waiting = [run for run in runs if not (resume and batch.is_done(*run, options.results_dir))]
    jobs = options.jobs or batch.default_jobs()
    done = f", {len(runs) - len(waiting)} of them done" if len(waiting) < len(runs) else ""
    print(f"{len(runs)} notebook runs{done}; {jobs} at a time", flush=True)
    outcomes, start = [], time.monotonic()
    for outcome in batch.run_notebooks(waiting, options.results_dir, jobs):
        outcomes.append(outcome)
        line = f"[{len(outcomes)}/{len(waiting)}] {outcome.notebook} {outcome.seconds:.0f} s"
        print(f"{line}, failed: {outcome.error}" if outcome.error else line, flush=True)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        print(f"toast: {len(failed)} of {len(outcomes)} runs failed; the others are kept.", file=sys.stderr)
    print(f"Done in {time.monotonic() - start:.0f} s.")
    _say_where(sorted(outcome.folder for outcome in outcomes if not outcome.error))
    return 1 if failed else 0


def _given(options: argparse.Namespace) -> dict[str, str]:
    given = {}
    for assignment in options.parameter:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not a parameter: write -p name=value.")
        given[name] = value
    return given | ({"device": options.device} if options.device else {})


def _say_where(folders: list[Path]) -> None:
    if not folders:
        return
    print("Executed notebooks, tables (results.parquet, results.csv), figures (.png, .svg) and manifests lie in")
    for folder in folders:
        print(f"  {folder}")


if __name__ == "__main__":
    sys.exit(main())
