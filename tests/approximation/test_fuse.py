"""Folded maps: the numbers of an independent least squares, in a model that plain transformers opens bit-equal."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import FAMILIES
from torch import nn

import toastlib as toast
from toastlib.approximation.fuse import branch_scale, down_projection, fuse_spans
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs

PLAN = "0->2 3->4"
PREPROCESSING = Preprocessing(resize=(32, 32))


def make_encoder(model, family="vit", **settings):
    features = "mean" if family == "siglip" else "cls"
    return Encoder(model, **{"features": features, "preprocessing": PREPROCESSING, "name": f"tiny-{family}"} | settings)


@pytest.fixture(scope="module")
def folded(tiny_model, tiny_images):
    """Family -> the original, and the same with two spans folded."""
    encoders = {family: make_encoder(tiny_model(family), family) for family in FAMILIES}
    return {family: (original, fuse_spans(original, PLAN, tiny_images.train)) for family, original in encoders.items()}


def pixels(images):
    return torch.cat([pixel_values for pixel_values, _ in images.batches()])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_blocks_are_gone_and_nothing_stands_in_their_place(folded, family):
    original, small = folded[family]
    assert [type(block) for block in small.blocks] == [type(original.blocks[0])] * 2
    assert small.model.config.num_hidden_layers == 2
    assert original.model.config.num_hidden_layers == len(original.blocks) == 5
    removed = sum(p.numel() for k in (1, 2, 4) for p in original.blocks[k].parameters())
    count = [sum(p.numel() for p in encoder.parameters()) for encoder in (original, small)]
    assert count[0] - count[1] == removed
    assert small.original[0] == count[0]


def find_scale(block):
    """The factors by their names in each family: the oracle of what is found without names."""
    if hasattr(block, "layer_scale2"):
        return block.layer_scale2.lambda1
    return getattr(block, "lambda_2", torch.ones(32))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_fold_is_least_squares_on_the_branch(folded, tiny_images, family):
    """r + map(m) with the best affine map of m, found by lstsq on the rows themselves."""
    original, small = folded[family]
    inputs, branch = pixels(tiny_images.train), []
    layer = down_projection(original, 0)
    handle = layer.register_forward_hook(lambda module, args, output: branch.append(output))
    with capture_outputs(original, [0, 2]) as h:
        original(inputs)
    handle.remove()
    scale = find_scale(original.blocks[0]).double()
    torch.testing.assert_close(branch_scale(original, 0), scale)
    m, start, end = (branch[0].double() * scale).flatten(0, 1), h[0].double().flatten(0, 1), h[2].double().flatten(0, 1)
    ones = torch.ones(len(m), 1, dtype=torch.float64)
    rows = torch.cat([m, ones], 1) if layer.bias is not None else m
    rest = start - m
    expected = rest + rows @ torch.linalg.lstsq(rows, end - rest).solution
    with capture_outputs(small, [0]) as h:
        small(inputs)
    torch.testing.assert_close(
        h[0].double().flatten(0, 1), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()
    )


@torch.no_grad()
def test_a_fold_beats_dropping_the_blocks(folded, tiny_images):
    original, small = folded["vit"]
    inputs = pixels(tiny_images.test)
    dropped = copy.deepcopy(original)
    dropped.model.layers = torch.nn.ModuleList(dropped.blocks[k] for k in (0, 3))
    errors = [(encoder(inputs) - original(inputs)).square().mean() for encoder in (small, dropped)]
    assert errors[0] < errors[1]


OPEN_ALL = """
import sys
from pathlib import Path
sys.modules["toastlib"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification
for folder, file in zip(sys.argv[1::2], sys.argv[2::2]):
    expected = load_file(file)
    auto = AutoModelForImageClassification if "logits" in expected else AutoModel
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        output = model.eval()(expected["pixels"])
    for name in expected.keys() - {"pixels"}:
        assert torch.equal(getattr(output, name), expected[name]), (folder, name)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    print(Path(folder).name, type(model).__module__.split(".")[0])
"""
CLASSIFIED = {"vit": "cls", "deit": "cls", "dinov2": "cls", "beit": "pooler"}


def draw_head():
    torch.manual_seed(3)
    return torch.nn.Linear(32, 3)


@torch.no_grad()
@pytest.mark.slow
def test_plain_transformers_opens_every_family_bit_equal(folded, tiny_model, tiny_images, tmp_path, pixel_values):
    arguments, names = [], []
    for family, (_, small) in folded.items():
        small.save_pretrained(tmp_path / family)
        expected = {"pixels": pixel_values, "last_hidden_state": small.model(pixel_values).last_hidden_state}
        names.append((family, expected))
    for family, features in CLASSIFIED.items():
        small = fuse_spans(make_encoder(tiny_model(family), family, features=features), PLAN, tiny_images.train)
        small.save_pretrained(tmp_path / f"{family}-head", head=draw_head(), class_names="abc")
        logits = torch.nn.functional.linear(small(pixel_values), draw_head().weight, draw_head().bias)
        names.append((f"{family}-head", {"pixels": pixel_values, "logits": logits}))
    for name, expected in names:
        save_file({key: value.contiguous() for key, value in expected.items()}, tmp_path / f"{name}.safetensors")
        arguments += [tmp_path / name, tmp_path / f"{name}.safetensors"]
        assert not (tmp_path / name / "modeling_toast.py").exists()
        assert "import toastlib" not in (tmp_path / name / "README.md").read_text()
    done = subprocess.run([sys.executable, "-c", OPEN_ALL, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name} transformers" for name, _ in names]


@torch.no_grad()
def test_a_pipeline_gives_the_labels_of_the_head(tiny_encoder, tiny_images, tmp_path):
    from PIL import Image
    from transformers import pipeline

    small = fuse_spans(tiny_encoder, PLAN, tiny_images.train)
    small.save_pretrained(tmp_path, head=draw_head(), class_names=tiny_images.class_names)
    logits = torch.nn.functional.linear(small(pixels(tiny_images.test)), draw_head().weight, draw_head().bias)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny_images.test.pixels]
    answers = pipeline("image-classification", str(tmp_path))(pictures, top_k=1)
    assert [a[0]["label"] for a in answers] == [tiny_images.class_names[k] for k in logits.argmax(1)]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("-1->1", "Span -1->1 cannot be folded: no block stands before it"),
        ("0->1 1->2", "Span 1->2 cannot be folded: block 1 goes too; write the two as one span"),
        ("4->6", "Span 4->6 leaves the model"),
    ],
)
def test_a_plan_that_cannot_be_folded_is_refused(tiny_encoder, tiny_images, plan, says):
    with pytest.raises(InputError, match=says):
        fuse_spans(tiny_encoder, plan, tiny_images.train)


def test_what_has_no_classifier_in_transformers_is_refused(folded, tmp_path):
    for family in ("clip", "siglip", "dinov3"):
        with pytest.raises(InputError, match=r"No classifier of .* reads the '(cls|mean)' features"):
            folded[family][1].save_pretrained(tmp_path / family, head=draw_head())
        assert not (tmp_path / family).exists()


def test_blocks_without_an_mlp_are_refused(tiny_images):
    model = torch.nn.Sequential(torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3)))
    with pytest.raises(InputError, match="Block 0 of model has no MLP"):
        fuse_spans(Encoder(model, blocks="0", features="mean"), "0->1", tiny_images.train)


def test_no_image_is_refused(tiny_encoder, tiny_images):
    with pytest.raises(InputError, match="There are no images"):
        fuse_spans(tiny_encoder, PLAN, tiny_images.train[:0])


def test_it_is_a_part_of_the_library():
    assert toast.fuse_spans is fuse_spans


class PostNorm(nn.Module):
    """Blocks that norm what they have added, as in the first transformers."""

    def __init__(self, norm_first):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 8, 8)
        layers = (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first) for _ in range(4))
        self.layers = nn.ModuleList(layers)
        self.config = SimpleNamespace(num_hidden_layers=4, hidden_size=32, image_size=32)

    def forward(self, pixel_values):
        hidden = self.patches(pixel_values).flatten(2).mT
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_block_that_norms_what_it_added_cannot_be_fused(tiny_images):
    before, after = (
        Encoder(PostNorm(first), "layers", "mean", preprocessing=PREPROCESSING, name="own") for first in (True, False)
    )
    with pytest.raises(InputError, match="Block 1 of own norms what its MLP has added"):
        fuse_spans(after, "1->2", tiny_images.train)
    assert len(fuse_spans(before, "1->2", tiny_images.train).blocks) == 3


def test_half_precision_and_small_factors_of_a_branch_are_no_norm(tiny_model, tiny_images):
    model = tiny_model("dinov2")
    for layer in model.encoder.layer:
        layer.layer_scale2.lambda1.data.fill_(0.02)
    encoder = make_encoder(model, "dinov2").to(torch.bfloat16)
    images = toast.Images(tiny_images.train.pixels, None, (), PREPROCESSING, dtype=torch.bfloat16)
    assert len(fuse_spans(encoder, "1->2", images).blocks) == 4
