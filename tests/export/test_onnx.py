"""Saved folders as ONNX files: what onnxruntime computes, and what is refused."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SIZES, letter_tokenizer

from toastlib.approximation.fuse import fuse_spans
from toastlib.approximation.replace import replace_spans
from toastlib.data.images import Images
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.export.onnx import TOLERANCES, _use, export_onnx, in_onnxruntime
from toastlib.models.saving import saved_form
from toastlib.output import MARK
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
def test_onnxruntime_computes_what_torch_does(folder, tmp_path, monkeypatch):
    _, difference, use = export_onnx(folder, tmp_path / "small.onnx")
    assert difference <= TOLERANCES["float32"]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((40, 50, 3), 7, np.uint8)).save("image.png")
    names = {}
    exec(use, names)
    assert len(names.get("logits", names.get("pooler_output"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
@pytest.mark.parametrize("kind", ["classifier", "encoder", "fused", "CLIP", "Siglip", "Dinov2", "BEiT"])
def test_any_model_of_images_is_exported(tiny_model, tiny_encoder, tmp_path, monkeypatch, kind):
    import transformers
    from transformers import ViTForImageClassification

    if kind == "classifier":
        ViTForImageClassification(tiny_model("vit").config).half().save_pretrained(tmp_path / "one")
    elif kind in ("CLIP", "Siglip", "Dinov2"):
        config = tiny_model(kind.lower()).config
        whole = config if kind == "Dinov2" else getattr(transformers, f"{kind}Config")(vision_config=config)
        getattr(transformers, f"{kind}ForImageClassification")(whole).save_pretrained(tmp_path / "one")
    elif kind == "BEiT":  # of which the exporter cannot write the fused attention
        tiny_model("beit", use_relative_position_bias=True).save_pretrained(tmp_path / "one")
    elif kind == "encoder":
        tiny_model("vit").save_pretrained(tmp_path / "one")
    else:
        images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
        pictures = Images(images, None, (), preprocessing=Preprocessing(resize=(32, 32)))
        tiny_encoder.preprocessing = Preprocessing(resize=(32, 32))
        fuse_spans(tiny_encoder, "0->2", pictures).save_pretrained(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    file, difference, use = export_onnx(tmp_path / "one")
    assert (file, difference <= TOLERANCES["float32"]) == (Path("model.onnx"), True)
    (tmp_path / "one" / MARK).write_text("{}")  # what toastlib wrote takes the file in
    assert export_onnx(tmp_path / "one")[0] == tmp_path / "one" / "model.onnx"
    assert ("(logits,)" in use) == (kind not in ("encoder", "fused", "BEiT"))


def test_what_the_exporter_cannot_write_is_refused_in_one_sentence(tiny_encoder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("Failed.\n\n## Exception summary\n\n<class 'ValueError'>: no view\n\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    model = saved_form(tiny_encoder)
    with pytest.raises(InputError, match=r"^torch cannot write a ToastModel as ONNX with an open batch size: no view$"):
        in_onnxruntime(model, torch.zeros(1, 3, 32, 32), "float32")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_smaller_precision_makes_a_smaller_file_of_the_same_model(precision, tmp_path):
    whole, _, _ = export_onnx("vit-mini", tmp_path / "float32.onnx")
    file, difference, _ = export_onnx("vit-mini", tmp_path / "small.onnx", precision=precision)
    assert file.stat().st_size < 0.6 * whole.stat().st_size
    assert TOLERANCES["float32"] < difference <= TOLERANCES[precision]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
@pytest.mark.parametrize("kind", ["BertModel", "BertForSequenceClassification", "GPT2LMHeadModel"])
def test_a_model_of_texts_is_exported_for_any_length_and_padding(tiny_model, tmp_path, kind):
    import transformers

    model = getattr(transformers, kind)(tiny_model("gpt2" if "GPT2" in kind else "bert").config)
    model.save_pretrained(tmp_path / "text")
    letter_tokenizer().save_pretrained(tmp_path / "text")
    _, difference, use = export_onnx(tmp_path / "text", tmp_path / "one.onnx")
    assert difference <= TOLERANCES["float32"]
    names = {}
    exec(use, names)
    with torch.no_grad():
        output = model.eval()(torch.from_numpy(names["inputs"]["input_ids"]))
    name = "last_hidden_state" if kind == "BertModel" else "logits"
    torch.testing.assert_close(torch.from_numpy(names[name]), output[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
def test_a_model_in_onnxruntime_is_called_as_transformers_is(tiny_encoder):
    model, example = saved_form(tiny_encoder), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(example).pooler_output
    found = in_onnxruntime(model, example, "float32")(example)
    assert "logits" not in found
    torch.testing.assert_close(found.pooler_output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not here")
def test_what_is_no_model_or_no_precision_is_refused(tmp_path):
    with pytest.raises(InputError, match="Unknown precision 'int4'"):
        export_onnx("vit-mini", tmp_path / "one.onnx", precision="int4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        export_onnx(tmp_path / "empty")


@pytest.mark.parametrize(("path", "where"), [("owner/name@v1", '"owner/name", revision="v1"'), ("saved", '"saved"')])
@pytest.mark.parametrize(("shapes", "reader"), [({"pixel_values": (3, 8, 8)}, "Image"), ({"input_ids": ()}, "Token")])
def test_the_lines_that_use_a_file_name_the_revision(path, where, shapes, reader):
    traced = SimpleNamespace(reads_images=reader == "Image", inputs=shapes, output="logits")
    assert f"from_pretrained({where})" in _use(traced, path, Path("model.onnx"))
