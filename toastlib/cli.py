"""The command line: ``toast study``, ``sweep``, ``run``, ``approximate``, ``export``, ``params`` and others."""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import fields
from importlib import metadata
from pathlib import Path

from toastlib.errors import InputError
from toastlib.runs import batch
from toastlib.runs import commands as cli_runs
from toastlib.runs.manifests import VERSIONS
from toastlib.runs.parameters import notebook_parameters


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

    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{p} {metadata.version(p)}" for p in VERSIONS))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(
        f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(f", cuda:{i} ({g})" for i, g in enumerate(gpus))
    )
    print(f"notebooks: {', '.join(batch.notebook_names())}")
    from toastlib.models.loading import load_encoder

    encoder = load_encoder("vit-mini", device="cpu")
    print(f"vit-mini loads: {len(encoder.blocks)} blocks of width {encoder.width}")
    return 0


def approximate(options: argparse.Namespace) -> int:
    """Make a checkpoint smaller: a folder with the model and a page that says what it costs."""
    from toastlib.data.images import load_images
    from toastlib.evaluation.heads import own_classifier
    from toastlib.export.compress import compress, summary
    from toastlib.export.folder import check_folder, save_compressed
    from toastlib.models.loading import load_encoder
    from toastlib.models.sublayers import split_blocks

    out = check_folder(options.out, options.model, options.data)
    encoder = load_encoder(options.model, features=options.features, device=options.device)
    sizes = {"train_size": options.train_size, "test_size": options.test_size, "seed": options.seed}
    images = load_images(options.data, encoder, **sizes, at_most=True)
    if options.sublayers:
        encoder = split_blocks(encoder)
    taken = compress(
        encoder,
        images,
        options.plan,
        options.remove,
        options.max_drop,
        options.translator,
        own_classifier(options.model),
        options.calibration_size,
        options.seed,
    )
    save_compressed(taken, out)
    print(summary(taken))
    print(f"Model and report.html lie in\n  {out}")
    return 0


def moments(options: argparse.Namespace) -> int:
    """Collect the moments of a large image set in shards, by several workers; what is there already is kept."""
    from joblib import Parallel

    from toastlib.runs.cluster import connect, worker_pool
    from toastlib.runs.shards import ShardedJob, collect_shards

    job = ShardedJob(**{setting.name: getattr(options, setting.name) for setting in fields(ShardedJob)})
    jobs = options.jobs or cli_runs.default_jobs()
    options.out.mkdir(parents=True, exist_ok=True)
    cluster = connect(options.dask, jobs, options.out.resolve()) if options.dask else nullcontext()
    with cluster as workers, worker_pool(jobs, workers):
        file = collect_shards(job, options.shards, options.out, Parallel(n_jobs=-1 if workers else jobs))
    print(f"Moments for toastlib.load_moments lie in\n  {file}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a saved model in another format, checked against the original."""
    from toastlib.export.onnx import export_onnx

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
        kept.trim(0)
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

    cli_runs.add_commands(command)
    command(params).add_argument("notebook", nargs="?", help="one notebook; all of them if not given")
    command(doctor)
    _add_approximate(command(approximate))
    _add_moments(command(moments))
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
    choice.add_argument("--remove", type=cli_runs.positive, metavar="K", help="how many blocks go; which, is chosen")
    choice.add_argument("--plan", help='which spans go, for example "2->5"')
    choice.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="as many blocks as lose at most so many points on held-out training images (1, if nothing is said)",
    )
    parser.add_argument(
        "--translator", default="context", help="what stands in: context (default), linear, the paper's, folded, ..."
    )
    parser.add_argument(
        "--sublayers",
        action="store_true",
        help="count attentions and MLPs in place of blocks: 2k is the attention of block k, 2k+1 its MLP",
    )
    parser.add_argument("--features", help="cls, mean or pooler (cls)")
    sizes = {"train": (3000, "training images at most"), "test": (2000, "test images at most")}
    sizes["calibration"] = (500, "training images that the maps are fitted on")
    for name, (size, text) in sizes.items():
        parser.add_argument(
            f"--{name}-size", type=cli_runs.positive, default=size, metavar="N", help=f"{text} ({size})"
        )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the head (0)")
    parser.add_argument("--out", type=Path, required=True, help="the folder")


def _add_moments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="alias, Hub id or folder")
    parser.add_argument("data", help="alias, Hub id or folder of images")
    parser.add_argument("--shards", type=cli_runs.positive, required=True, metavar="N", help="parts of the images")
    parser.add_argument("--jobs", type=cli_runs.positive, metavar="N", help="shards at a time (see sweep)")
    parser.add_argument("--dask", metavar="WHERE", help="a scheduler's address, local, or slurm")
    parser.add_argument("--split", default="train", choices=["train", "test"], help="which images (train)")
    parser.add_argument("--size", type=cli_runs.positive, metavar="N", help="how many of them (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--tokens", default="all", help="what a row is: all, patch, cls or mean (all)")
    parser.add_argument("--features", action="store_true", help="keep the original's features and the labels too")
    parser.add_argument("--batch-size", type=cli_runs.positive, default=32, help="images per forward pass (32)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--out", type=Path, required=True, help="the folder")


if __name__ == "__main__":
    sys.exit(main())
