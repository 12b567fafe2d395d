"""Saved folders as ONNX files: what onnxruntime computes, and what is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from tiny import SIZES

from toastlib.approximation.fuse import fuse_spans
from toastlib.approximation.replace import replace_spans
from toastlib.data.images import Images
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.export.onnx import TOLERANCE, export_onnx
from toastlib.plan import Plan

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture
def folder(request, tmp_path, tiny_encoder):
    """A saved smaller encoder, with a classifier where a test asks for one."""
    torch.manual_seed(2)
    width = SIZES["hidden_size"]
    maps = {span: torch.nn.Linear(width, width, bias=False) for span in Plan.parse("0->2 3->4")}
    small = replace_spans(tiny_encoder, maps)
    head = torch.nn.Linear(width, 3) if getattr(request, "param", "encoder") == "classifier" else None
    small.preprocessing = Preprocessing(resize=(32, 32))
    small.save_pretrained(tmp_path / "smaller", head=head)
    return tmp_path / "smaller"


@pytest.mark.skipif(HAS_ONNX, reason="onnx, onnxscript and onnxruntime are here")
def test_without_onnx_it_says_what_to_install(folder):
    with pytest.raises(InputError, match=r"ONNX needs .*: pip install 'toastlib\[onnx\]'"):
        export_onnx(folder)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
@pytest.mark.parametrize("folder", ["classifier", "encoder"], indirect=True)
def test_onnxruntime_computes_what_torch_does(folder, tmp_path):
    _, difference, use = export_onnx(folder, tmp_path / "small.onnx")
    assert difference <= TOLERANCE
    names = {"pixels": np.zeros((3, 3, 32, 32), np.float32)}
    exec(use, names)
    assert len(names.get("logits", names.get("pooler_output"))) == 3


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
@pytest.mark.parametrize("kind", ["classifier", "encoder", "fused"])
def test_any_model_of_images_is_exported(tiny_model, tiny_encoder, tmp_path, kind):
    from transformers import ViTForImageClassification

    if kind == "classifier":
        ViTForImageClassification(tiny_model("vit").config).half().save_pretrained(tmp_path / "one")
    elif kind == "encoder":
        tiny_model("vit").save_pretrained(tmp_path / "one")
    else:
        images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
        pictures = Images(images, None, (), preprocessing=Preprocessing(resize=(32, 32)))
        tiny_encoder.preprocessing = Preprocessing(resize=(32, 32))
        fuse_spans(tiny_encoder, "0->2", pictures).save_pretrained(tmp_path / "one")
    file, difference, _ = export_onnx(tmp_path / "one")
    assert (file, difference <= TOLERANCE) == (tmp_path / "one" / "model.onnx", True)


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
def test_what_is_no_model_of_images_is_refused(tiny_model, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="reads texts"):
        export_onnx(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        export_onnx(tmp_path / "empty")
