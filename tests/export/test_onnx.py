"""Saved folders as ONNX files: what onnxruntime computes, and what is refused."""

import importlib.util

import pytest
import torch
from tiny import SIZES

from toastlib.approximation.replace import replace_spans
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
    file, difference = export_onnx(folder, tmp_path / "small.onnx")
    assert file.is_file()
    assert difference <= TOLERANCE


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
def test_a_foreign_folder_is_not_exported(tiny_model, tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no folder of a saved smaller model: its model type is 'vit'"):
        export_onnx(tmp_path)
