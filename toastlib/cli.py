"""The command line: ``toast study``, ``toast run``, ``toast params``, ``toast doctor``."""

import argparse
import sys
import time
from importlib import metadata
from pathlib import Path

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
    """Execute every notebook of the study."""
    given = _given(options)
    names = batch.notebook_names()
    takes = {name: notebook_parameters(batch.find_notebook(name)) for name in names}
    for parameter in given:
        if not any(parameter in takes[name] for name in names):
            raise InputError(f"No notebook has a parameter {parameter!r}; `toast params` lists them.")
    runs = {name: {key: value for key, value in given.items() if key in takes[name]} for name in names}
    for name, mine in runs.items():  # all of them before the first one starts
        check_parameters(batch.find_notebook(name), mine)
    folders, start = [], time.monotonic()
    jobs = options.jobs or batch.default_jobs()
    print(f"{len(runs)} notebooks, {jobs} at a time", flush=True)
    for name, folder, seconds in batch.run_notebooks(runs, options.results_dir, jobs):
        folders.append(folder)
        print(f"[{len(folders)}/{len(runs)}] {name} {seconds:.0f} s", flush=True)
    print(f"The study is done, in {time.monotonic() - start:.0f} s.")
    _say_where(sorted(folders))
    return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toast", description="Which blocks of a transformer are redundant?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, **options) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__, **options)
        sub.set_defaults(command=function)
        return sub

    study_parser, run_parser = command(study), command(run)
    study_parser.add_argument("--jobs", type=int, help="notebooks at a time (two; one where there is a GPU)")
    run_parser.add_argument("notebook", help="name, number or path: 02, 02_approximation, my.ipynb")
    for sub in (study_parser, run_parser):
        sub.add_argument(
            "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter; repeat"
        )
        sub.add_argument("--device", help="the same as -p device=...")
        sub.add_argument(
            "--results-dir", type=Path, default=Path("results"), help="where the run folders are made (results)"
        )
    command(params).add_argument("notebook", nargs="?", help="one notebook; all of them if not given")
    command(doctor)
    return parser


def _given(options: argparse.Namespace) -> dict[str, str]:
    given = {}
    for assignment in options.parameter:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not a parameter: write -p name=value.")
        given[name] = value
    return given | ({"device": options.device} if options.device else {})


def _say_where(folders: list[Path]) -> None:
    print("Executed notebooks, tables (results.parquet, results.csv), figures (.png, .svg) and manifests lie in")
    for folder in folders:
        print(f"  {folder}")


if __name__ == "__main__":
    sys.exit(main())
