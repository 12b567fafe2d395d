"""Command line: ``toast run``, ``study``, ``sweep``, ``approximate``, ``export``, ``params`` and others."""

import argparse
import os
import re
import sys
import warnings
from importlib import metadata
from pathlib import Path

from toastlib.cli import commands, models
from toastlib.errors import InputError, unknown
from toastlib.plugins import load_named
from toastlib.runs.execute import TIMEOUT


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, 1 if a notebook failed, 2 if the input cannot be used, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has none
            stream.reconfigure(errors="replace")  # Windows writes to a file in an encoding that lacks most signs
    parser = _parser()
    options, extra = parser.parse_known_args(arguments)
    if extra:
        known = [name for name in re.split(r"[ |]+", COMMANDS[options.command]) if name.startswith("-")]
        parser.error(str(unknown("argument", extra[0].partition("=")[0], known)))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"toast: {message}", file=sys.stderr)
            load_named()
            return options.command(options)
    except (InputError, RuntimeError) as error:
        print(f"toast: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # the reader, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
        return 0
    except KeyboardInterrupt:
        print("toast: interrupted; finished runs are kept.", file=sys.stderr)
        return 130


def positive(text: str) -> int:
    """Whole number above 0, for argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def blocks(text: str) -> list[int]:
    """Numbers of blocks, for argparse."""
    numbers = {int(number) for number in text.split(",")}
    if min(numbers) < 0:
        raise ValueError(text)
    return sorted(numbers)


COUNT = {"type": positive, "metavar": "N"}
ARGUMENTS = {  # settings of each argument; those after a command's name are for that command alone
    "grid": {"help": "a YAML file, for example grids/demo.yaml"},
    "work": {"nargs": "+", "metavar": "GRID|NOTEBOOK", "help": "YAML files, and names, numbers or paths of notebooks"},
    "run notebook": {"help": "name, number or path: 02, 02_approximation, my.ipynb"},
    "params notebook": {"nargs": "?", "help": "one notebook; all of them by default"},
    "folder": {"type": Path, "help": "a new folder"},
    "folders": {"nargs": "+", "metavar": "FOLDER", "help": "folders that approximate wrote"},
    "doctor model": {"nargs": "?", "help": "alias, Hub id, folder, timm:NAME, or module:function that makes one"},
    "model": {"help": "alias, Hub id, folder or timm:NAME"},
    "name": {"help": "a grid, or vit-s14-focus, a ViT-S/14 with 22 million parameters (90 MB)"},
    "moments data": {"help": "alias, Hub id or folder of images"},
    "--data": {"required": True, "help": "alias, Hub id or folder of images; labels are optional"},
    "--parameter": {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": "a notebook parameter; repeat"},
    "run --device": {"help": "the same as -p device=..."},
    "estimate --device": {"help": "the same as -p device=..."},
    "study --device": {"help": "the same as -p device=..."},
    "--device": {"default": "auto", "help": "auto, cpu or cuda (auto)"},
    "--full": {"action": "store_true", "help": "the paper's grid: every table; what is done is skipped"},
    "--table": {"action": "append", "metavar": "N", "help": "a table of the paper's grid; repeat"},
    "moments --jobs": COUNT | {"help": "shards in parallel (see sweep)"},
    "--jobs": COUNT | {"help": "notebooks in parallel (one for each GPU; without GPUs two)"},
    "--dask": {"metavar": "WHERE", "help": "a scheduler's address, local, or slurm"},
    "run --dry-run": {"action": "store_true", "help": "say with which parameters, where, and what it would take"},
    "--dry-run": {"action": "store_true", "help": "say what would run; with --dask slurm, as which job"},
    "--timeout": {"type": positive, "default": TIMEOUT, "metavar": "S", "help": "seconds for a run (a day)"},
    "--results-dir": {"type": lambda to: Path(to).resolve(), "default": "results", "help": "where runs lie (results)"},
    "export --out": {"type": Path, "help": "the file (model.onnx in a folder that toastlib wrote, or here)"},
    "--out": {"type": Path, "required": True, "help": "the folder to write"},
    "--sort": {"default": "label", "metavar": "COLUMN", "help": "column of runs.csv that orders the rows (label)"},
    "--force": {"action": "store_true", "help": "replace what toastlib did not write, or what has changed since"},
    "export --onnx": {"action": "store_true", "required": True, "help": "the format"},
    "--onnx": {"action": "store_true", "help": "measure in onnxruntime too, and with int8 weights"},
    "--skip-broken": {"action": "store_true", "help": "leave out images that do not decode, and say how many"},
    "--fp16": {"action": "store_true", "help": "weights and arithmetic of half precision"},
    "--int8": {"action": "store_true", "help": "weights of 8 bits (onnxruntime's dynamic quantisation)"},
    "--remove": COUNT | {"metavar": "K", "help": "number of blocks to remove; which, is chosen"},
    "--plan": {"help": 'spans to remove, for example 2..5 or "2->5": blocks 3, 4 and 5'},
    "--remove-blocks": {"type": blocks, "metavar": "K,K", "help": "the blocks to remove, for example 2,3,7"},
    "--max-drop": {
        "type": float,
        "metavar": "POINTS",
        "help": "remove as many blocks as surely (upper end of the 95 %% interval) lose at most this many points (1)",
    },
    "--translator": {"help": "one map alone: linear, context, fused, ..., with +align behind it or without"},
    "--prefer": {
        "choices": ["accuracy", "size", "speed"],
        "help": "compare context, linear and fused maps, and take the first or the last (accuracy; size for sublayers)",
    },
    "--head": {"choices": ["own", "new"], "help": "the checkpoint's classifier, or a new one (own if there is one)"},
    "--finetune": COUNT | {"metavar": "EPOCHS", "help": "then train the maps on the training images (not at all)"},
    "--sublayers": {"action": "store_true", "help": "count attentions (2k for block k) and MLPs (2k+1), not blocks"},
    "moments --features": {"action": "store_true", "help": "keep the original's features and the labels too"},
    "--features": {"help": "cls, mean or pooler (cls)"},
    "--image-size": COUNT | {"metavar": "PX", "help": "height and width of the images (the checkpoint's own)"},
    "--train-size": COUNT | {"default": 3000, "help": "training images at most (3000)"},
    "--test-size": COUNT | {"default": 2000, "help": "test images at most (2000)"},
    "--calibration-size": COUNT | {"default": 500, "help": "training images that the maps are fitted on (500)"},
    "--seed": {"type": int, "default": 0, "help": "seed of the draws and of the head (0)"},
    "--shards": COUNT | {"required": True, "help": "parts of the images"},
    "--split": {"default": "train", "choices": ["train", "test"], "help": "which images (train)"},
    "--size": COUNT | {"help": "how many of them (all)"},
    "--tokens": {"default": "all", "help": "what a row is: all, patch, cls or mean (all)"},
    "--batch-size": COUNT | {"default": 32, "help": "images per forward pass (32)"},
    "--clear": {"action": "store_true", "help": "delete everything in it"},
}
COMMANDS = {  # arguments of each command; | separates those of which only one may be given
    commands.run: "notebook --parameter --device --dry-run --timeout --results-dir",
    commands.study: "--full|--table --jobs --dask --parameter --device --timeout --results-dir",
    commands.sweep: "grid --jobs --dask --dry-run --timeout --results-dir",
    commands.estimate: "work --parameter --device --jobs --results-dir",
    commands.status: "grid --results-dir",
    commands.collect: "grid --results-dir --out --sort --force",
    commands.notebooks: "folder",
    commands.params: "notebook",
    models.doctor: "model",
    models.approximate: "model --data --remove|--remove-blocks|--plan|--max-drop --translator|--prefer"
    " --head --sublayers --features --image-size --train-size --test-size --calibration-size --device --seed --out"
    " --skip-broken --onnx --finetune --force",
    models.compare: "folders",
    models.fetch: "name",
    commands.moments: "model data --shards --jobs --dask --split --size --seed --tokens --features --batch-size"
    " --device --out",
    models.export: "model --onnx --fp16|--int8 --out --force",
    commands.cache: "--clear",
}


def _version() -> str:
    try:
        return metadata.version("toastlib")
    except metadata.PackageNotFoundError:  # a checkout on the path works as well
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toast", description="Which blocks of a transformer are redundant?")
    parser.add_argument("--version", action="version", version=f"toastlib {_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, arguments in COMMANDS.items():
        command, text = function.__name__, function.__doc__
        sub = subparsers.add_parser(command, help=text, description=text)
        sub.set_defaults(command=function)
        for names in arguments.split():
            group = sub.add_mutually_exclusive_group() if "|" in names else sub
            for name in names.split("|"):
                short = ["-p"] if name == "--parameter" else []
                group.add_argument(*short, name, **ARGUMENTS.get(f"{command} {name}") or ARGUMENTS[name])
    return parser
