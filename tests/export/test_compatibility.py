"""`check_model` and ``toast doctor MODEL``: what works is ticked, what does not is told in a clause."""

import pytest
import torch
import transformers
from tiny import letter_tokenizer, make_tiny_model
from torch import nn

from toastlib.cli import main
from toastlib.export import compatibility
from toastlib.export.compatibility import CHECKS, ESSENTIAL, check_model
from toastlib.models.encoder import Encoder

FACTORIES = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, image_size=32, between=0.0):
        super().__init__()
        self.image_size, self.between = image_size, between
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        layer = dict(nhead=2, dim_feedforward=32, batch_first=True)
        self.layers = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(16, **layer) for _ in range(4))

    def forward(self, pixels):
        hidden = self.patches(pixels).flatten(2).mT
        for layer in self.layers:
            hidden = layer(hidden) + self.between * hidden
        return hidden

def skips():
    return Mine(between=0.1)

def broken():
    raise KeyError("lost")

def number():
    return 3
"""


def my_transformer(**settings):
    names = {}
    exec(FACTORIES, names)
    return names["Mine"](**settings)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working folder with a module of factories."""
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    compatibility.sys.modules.pop("my_factories", None)


@pytest.fixture
def without_onnx(monkeypatch):
    """ONNX files take longest, and have tests of their own."""
    monkeypatch.setattr(compatibility, "NEEDED", ("onnx", "nowhere_to_be_found"))


def works(model):
    return check_model(model).set_index("check")["works"]


def test_everything_works_with_a_vit():
    table = check_model(make_tiny_model("vit"))
    assert list(table.columns) == ["check", "works", "detail"]
    assert list(table["check"]) == list(CHECKS)
    assert table["works"].all(), table
    detail = table.set_index("check")["detail"]
    assert detail["blocks found"] == "5 of width 32 at layers"
    assert detail["maps"] == "linear and context for 1->3"
    assert detail["ONNX"].startswith("differs from torch by ")


@pytest.mark.usefixtures("without_onnx")
def test_what_is_not_installed_is_no_failure():
    last = check_model(make_tiny_model("vit", num_hidden_layers=2)).iloc[-1]
    assert tuple(last) == ("ONNX", None, "not installed: nowhere_to_be_found")


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_models_of_texts_are_checked_on_random_tokens(family):
    encoder = Encoder(make_tiny_model(family), features="mean", tokenizer=letter_tokenizer())
    assert works(encoder)[list(ESSENTIAL)].all()


@pytest.mark.usefixtures("without_onnx")
def test_without_a_cls_token_features_are_means():
    table = check_model(make_tiny_model("siglip")).set_index("check")
    assert table.loc["features", "detail"] == "mean, 32 numbers"
    assert table.loc["special tokens", "detail"] == "none before the patches"


@pytest.mark.usefixtures("without_onnx")
def test_a_token_that_only_looks_like_one_before_the_patches_is_found():
    model = make_tiny_model("siglip")
    model.cls_token = nn.Parameter(torch.zeros(1, 1, 32))  # as of a model that adds it after its blocks
    table = check_model(model).set_index("check")
    assert not table.loc["special tokens", "works"]
    assert table.loc["special tokens", "detail"].startswith("1 by name, and 0 that are the same for all images")
    assert table.loc[list(ESSENTIAL), "works"].all()


@pytest.mark.parametrize(
    ("model", "last", "says"),
    [
        (lambda: nn.Linear(2, 2), "blocks found", "No block list found in Linear"),
        (
            lambda: transformers.SwinModel(transformers.SwinConfig(depths=[1, 1])),
            "walk = forward",
            "The blocks of SwinModel do not run",
        ),
        (lambda: my_transformer(between=0.1), "walk = forward", "Mine is more than its blocks one after the other"),
    ],
)
@pytest.mark.usefixtures("without_onnx")
def test_what_cannot_be_done_ends_the_list_with_the_reason(model, last, says):
    table = check_model(model())
    end = table.iloc[-1]
    assert end["check"] == last
    assert end["detail"].startswith(says)


@pytest.mark.usefixtures("without_onnx")
def test_one_block_alone_can_be_replaced_too():
    table = check_model(make_tiny_model("vit", num_hidden_layers=1)).set_index("check")
    assert table.loc["maps", "detail"] == "linear and context for -1->0"
    assert table.loc["fuse", "detail"].startswith("Span -1->0 cannot be folded")


@pytest.mark.usefixtures("without_onnx")
def test_an_unexpected_error_is_a_cross_and_the_others_go_on(monkeypatch):
    def fail(encoder):
        raise ZeroDivisionError("no blocks. At all.")

    monkeypatch.setattr(compatibility, "split_blocks", fail)
    table = check_model(make_tiny_model("vit")).set_index("check")
    assert not table.loc["sublayers", "works"]
    assert table.loc["sublayers", "detail"] == "unexpected ZeroDivisionError: no blocks."
    assert table.index[-1] == "ONNX"


@pytest.mark.usefixtures("without_onnx")
class TestDoctor:
    def test_a_table_of_ticks(self, capsys):
        assert main(["doctor", "vit-mini"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "✓ blocks found     12 of width 96 at layers"
        assert [line[0] for line in lines] == ["✓"] * 8 + ["–"]
        assert {line[18] for line in lines} == {" "}

    def test_a_factory_in_the_working_folder(self, desk, capsys):
        assert main(["doctor", "my_factories:Mine"]) == 0
        assert "✓ walk = forward" in (out := capsys.readouterr().out)
        assert "✗ save and reopen  Mine" in out

    @pytest.mark.parametrize(
        ("factory", "says"),
        [
            ("skips", "✗ walk = forward   Mine is more than its blocks one after the other"),
            ("number", "✗ blocks found     An encoder is made of a torch.nn.Module, not of a int."),
        ],
    )
    def test_a_model_that_is_refused_is_exit_code_1(self, desk, capsys, factory, says):
        assert main(["doctor", f"my_factories:{factory}"]) == 1
        assert capsys.readouterr().out.splitlines()[-1].startswith(says)

    def test_a_checkpoint_that_is_read_and_refused_is_exit_code_1(self, tmp_path, capsys):
        config = transformers.SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
        transformers.SwinModel(config).save_pretrained(tmp_path)
        assert main(["doctor", str(tmp_path)]) == 1
        assert "✗" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("my_factories:broken", "my_factories:broken makes no model: KeyError: 'lost'"),
            ("my_factories:nothing", "my_factories:nothing makes no model: AttributeError: "),
            ("no_such_module:f", "no_such_module:f makes no model: ModuleNotFoundError: "),
            ("vit-mimi", "Unknown model 'vit-mimi': did you mean 'vit-mini'?"),
            ("./nowhere", "There is no model folder './nowhere'"),
        ],
    )
    def test_what_is_not_there_is_exit_code_2(self, desk, capsys, name, says):
        assert main(["doctor", name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"toast: {says}")
        assert len(err.splitlines()) == 1
