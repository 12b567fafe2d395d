"""A notebook run again, against its first run: what was computed is read.

python -m benchmarks.rerun [--notebook 02] [-p NAME=VALUE ...]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.table import HEADER, Row, show


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebook", default="02")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    print(HEADER)
    show(against_the_first(options.notebook, options.p))


def against_the_first(notebook: str, parameters: list[str]) -> list[Row]:
    """Seconds of the second run as a share of the first one's, both from the shell, with a cache of their own."""
    given = [part for parameter in parameters for part in ("-p", parameter)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "toastlib.cli", "run", notebook, *given, "--results-dir", f"{folder}/results"]
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(
                command, check=True, capture_output=True, env=os.environ | {"TOAST_CACHE": f"{folder}/cache"}
            )
            seconds.append(time.perf_counter() - start)
    return [Row(f"notebook {notebook} again / its first run", seconds[1] / seconds[0], 0.2)]


if __name__ == "__main__":
    main()
