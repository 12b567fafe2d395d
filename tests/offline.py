"""No network, and a cache in a temporary folder: the Hugging Face libraries read this when they are imported."""

import os
import sys
import tempfile

assert "huggingface_hub" not in sys.modules
CACHE = tempfile.TemporaryDirectory(prefix="toastlib-tests-")
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=CACHE.name, HF_DATASETS_CACHE=f"{CACHE.name}/datasets", TOAST_CACHE="off")
