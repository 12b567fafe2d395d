"""What commands write: whole or not at all, over nothing that is read, and over nothing that somebody else has made."""

import errno
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from small_notebook import write_notebook

from toastlib.cli import main
from toastlib.errors import InputError
from toastlib.output import MARK, check_output, writing


def contents(folder):
    """Every file below a folder, as bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_weights(folder):
    """Four megabytes, by a library whose error is none of the system's."""
    folder.mkdir()
    save_file({"weight": torch.zeros(1_000_000)}, folder / "model.safetensors")


def write(target, text="new", error=None, **settings):
    with writing(target, **settings) as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "weights").write_text(text)
        if error:
            raise error


def test_a_folder_of_our_own_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "some" / "out", "old")
    write(tmp_path / "some" / "out", "new")
    assert (tmp_path / "some" / "out" / "inner" / "weights").read_text() == "new"
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["out"]


def test_an_empty_folder_may_be_written(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / MARK).exists()


@pytest.mark.parametrize("change", ["added", "changed", "linked", "foreign", "a file", "another mark"])
def test_what_somebody_else_made_is_replaced_only_by_force(tmp_path, change):
    out = tmp_path / "out"
    if change == "a file":
        out.write_text("dear")
    elif change in ("foreign", "another mark"):
        out.mkdir()
        if change == "another mark":
            (out / MARK).write_text("not ours")
        (out / "model.safetensors").write_text("tuned")
    else:
        write(out, "old")
        if change == "added":
            (out / "inner" / "letter.txt").write_text("dear")
        elif change == "linked":
            (out / "elsewhere").symlink_to(tmp_path)
        else:
            (out / "inner" / "weights").write_text("tuned")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"(did not write|has been changed).*--force"):
        write(out)
    assert contents(tmp_path) == before
    write(out, force=True)
    assert (out / "inner" / "weights").read_text() == "new"


@pytest.mark.parametrize("named", ["model", "model/inner", ".", "link", "link/new"])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_that_is_read_is_written(tmp_path, named, force):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(InputError, match="which is read"):
        check_output(tmp_path / named, [tmp_path / "model"], force)
    assert check_output(tmp_path / "elsewhere", ["Hub/id", tmp_path / "model"]) == tmp_path / "elsewhere"


def test_the_working_folder_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for named in (".", "..", tmp_path):
        with pytest.raises(InputError, match="working folder"):
            check_output(named, force=True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_breaks_leaves_all_as_it_was(tmp_path, error):
    write(tmp_path / "out", "old")
    before = contents(tmp_path)
    with pytest.raises((InputError, KeyboardInterrupt)) as raised:
        write(tmp_path / "out", error=error)
    assert contents(tmp_path) == before
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(raised.value)


def test_a_swap_that_breaks_leaves_all_as_it_was(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    before, rename = contents(tmp_path), type(tmp_path).rename

    def refuse(self, target):
        if self.name == "out" and target == tmp_path / "out" and self.parent != tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(InputError, match="Input/output error"):
        write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Nothing can be written"):
        check_output(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="Nothing can be written"):
        check_output("/proc/toastlib/out")


def test_a_file_joins_the_folder_that_toastlib_wrote(tmp_path):
    write(tmp_path / "out")
    for text in ("one", "two"):
        with writing(tmp_path / "out" / "model.onnx") as new:
            new.write_text(text)
    assert (tmp_path / "out" / "model.onnx").read_text() == "two"
    write(tmp_path / "out")  # the added file is toastlib's own
    assert not (tmp_path / "out" / "model.onnx").exists()
    (tmp_path / "mine.onnx").write_text("mine")
    with pytest.raises(InputError, match="did not write"), writing(tmp_path / "mine.onnx") as new:
        new.write_text("other")


@pytest.fixture
def places(tmp_path, monkeypatch, tiny_model):
    """A working folder with a checkpoint, pictures, a grid, and somebody's folder with a letter in it."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    tiny_model("vit").save_pretrained(tmp_path / "tuned")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / split / name / "a.png")
    write_notebook(tmp_path / "07_small.ipynb", "size")
    (tmp_path / "grid.yaml").write_text("notebook: 07_small.ipynb\nparameters: {size: [1]}\n")
    for name in ("mine", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter.txt").write_text("dear")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "approximate tuned --data photos --remove 2 --out tuned",
        "approximate tuned --data photos --remove 2 --out tuned/smaller",
        "approximate tuned --data photos --remove 2 --out photos --force",
        "approximate tuned --data photos:label --remove 2 --out photos/train --force",
        "approximate tuned --data photos --remove 2 --out .",
        "approximate tuned --data photos --remove 2 --out mine",
        "approximate vit-mini --data photos --remove 2 --out grid.yaml",
        "export mine --onnx --out mine/letter.txt",
        "export tuned --onnx --out tuned/config.json",
        "collect grid.yaml --out mine",
        "collect grid.yaml --out results",
        "collect grid.yaml --out results --force",
        "moments vit-mini digits --shards 2 --out grid.yaml",
        "moments tuned photos --shards 2 --out photos/train",
        "moments tuned photos --shards 2 --out tuned",
        "run 07_small.ipynb --results-dir grid.yaml",
    ],
)
def test_no_command_writes_over_what_it_did_not_make(places, capsys, command):
    before = contents(places)
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("toast: ")
    assert said.count("\n") == 1
    assert contents(places) == before


KILLED = """
import os, signal, sys
from toastlib.output import writing

with writing(sys.argv[1]) as new:
    new.mkdir()
    (new / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_while_writing_leaves_all_as_it_was(tmp_path):
    write(tmp_path / "out", "old")
    before = contents(tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    assert contents(tmp_path / "out") == before
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "inner" / "weights").read_text() == "new"


@pytest.fixture
def disk(tmp_path):
    """Three megabytes of disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_older_folder(disk):
    write(disk / "out", "x" * 1_000_000)
    before = contents(disk)
    with pytest.raises(InputError, match="No space left"):
        write(disk / "out", "y" * 4_000_000)
    assert contents(disk) == before
    with pytest.raises(InputError, match="No space left"), writing(disk / "out") as new:
        save_weights(new)
    assert contents(disk) == before


def test_a_disk_that_cannot_be_written_is_told_before_anything_is_computed(disk, capsys):
    write(disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = contents(disk)
    command = ["approximate", "vit-mini", "--data", "digits", "--remove", "2", "--out", str(disk / "out")]
    assert main(command) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert contents(disk) == before
