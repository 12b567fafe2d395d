"""Use a wheel as on a fresh machine: its core alone, then with the extra ``study``, each command in an empty folder.

``python scripts/release_check.py WHEEL FOLDER`` makes an environment in FOLDER, installs into it what constraints.txt
pins, and prints what that takes. It ends with 1 where a command does not do what it should.
"""

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
APPROXIMATE = "toastlib.cli approximate vit-mini --data digits --remove 1 --out smaller"


def main(wheel: Path, folder: Path) -> None:
    """Install and use a wheel in a new folder."""
    environment, empty = folder / "environment", folder / "empty"
    empty.mkdir(parents=True)
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"

    def run(module: str, *arguments: str, expected: int = 0) -> str:
        """Output of a module as a program, in the empty folder."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [python, "-m", *module.split(), *arguments], cwd=empty, env=clean, capture_output=True, text=True
        )
        print(f"$ {module} {' '.join(arguments)}", flush=True)
        if done.returncode != expected:
            sys.exit(f"It ended with {done.returncode}, not {expected}:\n{done.stderr}")
        return done.stdout + done.stderr

    def install(requirement: str) -> None:
        start = time.monotonic()
        run("pip install -q -c", str(CONSTRAINTS), requirement)
        seconds = time.monotonic() - start
        packages = len(run("pip list --format=freeze").splitlines())
        size = sum(file.lstat().st_size for file in environment.rglob("*") if not file.is_symlink()) / 1e6
        print(f"  {packages} packages, {size:,.0f} MB, installed in {seconds:.0f} s")

    install(str(wheel))
    print(run(APPROXIMATE))
    print(run("toastlib.cli run 00", expected=2))  # one sentence: the core does not run notebooks
    install(f"{wheel}[study]")
    run("toastlib.cli run 00")
    run("toastlib.cli notebooks here")
    run("papermill here/00_quickstart.ipynb out.ipynb")
    for made in ("smaller/report.html", "results/00_quickstart/manifest.json", "out.ipynb"):
        if not (empty / made).is_file():
            sys.exit(f"{made} was not made.")
    print("The release check passes.")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
