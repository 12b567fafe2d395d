"""Blocks in two sublayers: nothing changes until one of them is replaced, whatever the family."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import FAMILIES, SIZES, TEXT_FAMILIES, make_language_model

from toastlib.approximation.fuse import fuse_spans
from toastlib.approximation.replace import approximate
from toastlib.cache import fingerprint
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.language import load_language_model
from toastlib.evaluation.probe import HeadConfig
from toastlib.export.compress import compress
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.loading import load_encoder
from toastlib.models.model_card import ModelCardData, model_card, task_of
from toastlib.models.saving import saved_form
from toastlib.models.sublayer_split import block_name
from toastlib.models.sublayers import split_blocks
from toastlib.plan import Plan, plan_of
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.similarity import similarity

FIRST_OF_THE_MLP = {
    "vit": "layernorm_after",
    "deit": "layernorm_after",
    "dinov2": "norm2",
    "dinov2-registers": "norm2",
    "dinov3": "norm2",
    "clip": "layer_norm2",
    "siglip": "layer_norm2",
    "beit": "layernorm_after",
    "beit-cls": "layernorm_after",
    "bert": "intermediate",
    "roberta": "intermediate",
    "gpt2": "ln_2",
    "llama": "post_attention_layernorm",
}
"""Family -> the child of a block that reads what lies between its sublayers."""
LAST_OF_THE_MLP = {"vit": "mlp.fc2", "dinov2": "mlp.fc2", "clip": "mlp.fc2", "gpt2": "mlp.c_proj"}
LAST_OF_THE_ATTENTION = {
    "vit": "attention.o_proj",
    "dinov2": "attention.o_proj",
    "clip": "self_attn.out_proj",
    "gpt2": "attn.c_proj",
}


def make_encoder(model, family):
    features = "cls" if family in FAMILIES and family != "siglip" else "mean"
    return Encoder(model, features=features, preprocessing=Preprocessing(resize=(32, 32)), name=f"tiny-{family}")


@pytest.fixture(params=FIRST_OF_THE_MLP)
def family(request):
    return request.param


@pytest.fixture
def encoder(tiny_model, family):
    return make_encoder(tiny_model(family), family)


@pytest.fixture
def inputs(family, pixel_values, token_batch):
    return token_batch([7, 12, 3]) if family in TEXT_FAMILIES else pixel_values


@torch.inference_mode()
def test_features_are_the_same_bit_for_bit(encoder, inputs):
    before = encoder(inputs)
    sublayers = split_blocks(encoder)
    assert len(sublayers.blocks) == 2 * len(encoder.blocks)
    assert torch.equal(sublayers(inputs), before)
    assert torch.equal(encoder(inputs), before)


@torch.inference_mode()
def test_states_lie_between_attention_and_mlp_and_behind_both(encoder, family, inputs):
    middles = []
    for block in encoder.blocks:
        child = block.get_submodule(FIRST_OF_THE_MLP[family])
        child.register_forward_pre_hook(lambda module, args: middles.append(args[0]))
    with capture_outputs(encoder, range(-1, 5)) as whole:
        encoder(inputs)
    expected = copy.copy(middles)
    sublayers = split_blocks(encoder)
    with capture_outputs(sublayers, range(-1, 10)) as parts:
        sublayers(inputs)
    assert torch.equal(parts[-1], whole[-1])
    for block in range(5):
        assert torch.equal(parts[2 * block], expected[block])
        assert torch.equal(parts[2 * block + 1], whole[block])


def test_parameters_are_shared_and_each_is_a_part_of_one_sublayer(encoder):
    sublayers = split_blocks(encoder)
    assert parameter_count(sublayers) == parameter_count(encoder)
    assert {id(p) for p in sublayers.parameters()} == {id(p) for p in encoder.parameters()}
    attention, mlp = ({id(p) for p in sublayers.blocks[k].parameters()} for k in (4, 5))
    assert not attention & mlp
    assert attention | mlp == {id(p) for p in encoder.blocks[2].parameters()}


@pytest.mark.parametrize("plan", ["4->5", "3->4", "2->5 6->8", "-1->1"])
def test_counted_parameters_are_those_that_go(encoder, inputs, plan):
    sublayers = split_blocks(encoder)
    anything = {block: torch.randn(40, encoder.width) for span in Plan.parse(plan) for block in span}
    smaller = approximate(sublayers, plan, anything, translator="linear")
    gone = parameter_count(encoder) - parameter_count(smaller)
    counted = plan_costs(sublayers, [Plan.parse(plan)], ["linear"], inputs=inputs[:1])
    assert counted["removed_parameters"].item() == gone
    assert counted["parameters"].item() == parameter_count(smaller)


@pytest.mark.parametrize("family", LAST_OF_THE_MLP, indirect=True)
@pytest.mark.parametrize(("plan", "last"), [("4->5", LAST_OF_THE_MLP), ("3->4", LAST_OF_THE_ATTENTION)])
@torch.inference_mode()
def test_a_dropped_sublayer_adds_nothing(encoder, family, inputs, plan, last):
    anything = {block: torch.randn(4, encoder.width) for block in range(10)}
    features = approximate(split_blocks(encoder), plan, anything, translator="identity")(inputs)
    silent = copy.deepcopy(encoder)
    for parameter in silent.blocks[2].get_submodule(last[family]).parameters():
        parameter.zero_()
    torch.testing.assert_close(features, silent(inputs))  # the same sums, some of them of zeros
    assert not torch.allclose(features, encoder(inputs))


@torch.inference_mode()
def test_a_span_of_whole_blocks_is_the_same_span(tiny_encoder, tiny_images, pixel_values):
    sublayers = split_blocks(tiny_encoder)
    whole = approximate(
        tiny_encoder, "1->3", collect_moments(tiny_encoder, tiny_images.train, folds=5), translator="context"
    )
    parts = approximate(sublayers, "3->7", collect_moments(sublayers, tiny_images.train, folds=5), translator="context")
    assert torch.equal(whole(pixel_values), parts(pixel_values))


def test_similarities_of_whole_blocks_are_the_same(tiny_encoder, tiny_images):
    encoders = tiny_encoder, split_blocks(tiny_encoder)
    whole, parts = (similarity(collect_moments(encoder, tiny_images.train, folds=0), "cka") for encoder in encoders)
    later = parts[parts["first"].isin([-1, *range(1, 12, 2)]) & parts["second"].isin([-1, *range(1, 12, 2)])]
    # The same products in other groups: float64 sums in another order.
    np.testing.assert_allclose(later["value"], whole["value"], rtol=1e-12)


def test_an_evaluation_takes_them_like_blocks(tiny_encoder, tiny_images):
    sublayers = split_blocks(tiny_encoder)
    head = HeadConfig("frozen", seeds=[0], min_steps=0)
    settings = {"translators": ["identity", "ridge"], "calibration": 60, "head": head}
    table = evaluate_plans(sublayers, tiny_images, ["3->4", "5->6 7->9"], **settings).table
    whole = evaluate_plans(tiny_encoder, tiny_images, ["0->1"], **settings).table
    assert list(table["plan"]) == ["original", "3->4", "3->4", "5->6 7->9", "5->6 7->9"]
    assert set(table["model"]) == {"tiny in sublayers"}  # not to be taken for the paper's plans
    assert table["accuracy"][0] == whole["accuracy"][0]
    assert table["parameters"][0] == whole["parameters"][0]
    assert table["gflops"][0] == whole["gflops"][0]


def test_flops_of_an_mlp_and_of_an_attention(tiny_encoder, pixel_values):
    sublayers, tokens, width = split_blocks(tiny_encoder), 17, 32
    plans = [Plan(), Plan.parse("4->5"), Plan.parse("3->4")]
    original, mlp, attention = plan_costs(sublayers, plans, ["identity"], inputs=pixel_values[:1])["gflops"] * 1e9
    assert original - mlp == pytest.approx(2 * tokens * 2 * width * 64)
    assert original - attention == pytest.approx(2 * tokens * 4 * width**2 + 4 * tokens**2 * width)


def test_what_is_kept_on_disk_is_never_mixed_up(tiny_model):
    encoder = make_encoder(tiny_model("vit"), "vit")  # an encoder of library code alone is kept
    assert fingerprint(encoder) not in (None, fingerprint(split_blocks(encoder)))


@pytest.mark.parametrize(
    ("family", "translator"), [*((family, "linear") for family in FAMILIES), ("vit", "context")], indirect=["family"]
)
@torch.inference_mode()
def test_a_saved_folder_opens_to_the_same_numbers(encoder, tiny_images, pixel_values, tmp_path, translator):
    sublayers = split_blocks(encoder)
    plan = plan_of([1, 5, 6, 9])
    smaller = approximate(
        sublayers, plan, collect_moments(sublayers, tiny_images.train, folds=5), translator=translator
    )
    smaller.save_pretrained(tmp_path / "smaller")
    opened = load_encoder(str(tmp_path / "smaller"), device="cpu")
    assert all(map(torch.equal, opened.state_dict().values(), smaller.state_dict().values()))
    # Products round otherwise where weights lie otherwise in memory, as those that were read from a file may.
    torch.testing.assert_close(opened(pixel_values), smaller(pixel_values), rtol=1e-4, atol=1e-5)
    assert (opened.sublayer_split, len(opened.blocks)) == (sublayers.sublayer_split, 9)
    opened.save_pretrained(tmp_path / "again")
    again = load_encoder(str(tmp_path / "again"), device="cpu")
    assert all(map(torch.equal, again.state_dict().values(), smaller.state_dict().values()))
    with pytest.raises(InputError, match="are sublayers already"):
        split_blocks(opened)


@pytest.mark.slow
def test_another_process_opens_it_without_toastlib(tiny_encoder, pixel_values, tmp_path):
    anything = {block: torch.randn(40, 32) for block in (4, 5)}
    smaller = approximate(split_blocks(tiny_encoder), "4->5", anything, translator="linear")
    smaller.save_pretrained(tmp_path / "smaller")
    save_file({"pixels": pixel_values}, tmp_path / "pixels.safetensors")
    program = """
from safetensors.torch import load_file
from transformers import AutoModel
model = AutoModel.from_pretrained("smaller", trust_remote_code=True).eval().requires_grad_(False)
assert type(model).__module__.startswith("transformers_modules")
print(model(load_file("pixels.safetensors")["pixels"]).pooler_output.double().sum().item())
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    # The sum of 96 features whose last bits depend on where the weights lie in memory.
    assert float(done.stdout) == pytest.approx(smaller(pixel_values).double().sum().item(), abs=1e-4)


def test_the_saved_form_counts_what_it_is(tiny_encoder):
    anything = {block: torch.randn(40, 32) for block in (4, 5)}
    smaller = approximate(split_blocks(tiny_encoder), "4->5", anything, translator="linear")
    assert parameter_count(saved_form(smaller)) == parameter_count(smaller)


def test_a_card_says_what_was_replaced():
    card, plan = ModelCardData("google/vit in sublayers"), Plan.parse("-1->0 6->7")
    text = model_card(card, plan, ["a map", "a map"], features="cls", task=task_of(False, None), sublayers=True)
    assert "base_model: google/vit\n" in text
    assert "- `-1->0`: the attention of block 0 removed; a map takes the output of the embedding to" in text
    assert "- `6->7`: the MLP of block 3 removed; a map takes the output of the attention of block 3 to" in text


def test_names_of_blocks():
    assert [block_name(k, True) for k in (-1, 0, 7)] == [
        "the embedding",
        "the attention of block 0",
        "the MLP of block 3",
    ]
    assert block_name(7, sublayers=False) == "block 7"


def test_shrink_takes_sublayers(tiny_encoder, tiny_images, tmp_path):
    taken = compress(split_blocks(tiny_encoder), tiny_images, remove=3, translator="linear", calibration=30)
    assert len(taken.plan.removed) == 3
    assert taken.card.sizes.parameters[1] < taken.card.sizes.parameters[0]


class TestLanguage:
    @pytest.fixture(params=["gpt2", "llama"])
    def language(self, request):
        return make_language_model(request.param)

    def test_what_is_written_is_the_same(self, language):
        before = language.generate(["to be", "or"], 20)
        finer = language.on(split_blocks(language.encoder))
        assert finer.generate(["to be", "or"], 20) == before
        assert finer.generate(["to be", "or"], 20, use_cache=False) == before

    def test_without_a_sublayer_the_cache_changes_nothing(self, language):
        sublayers = split_blocks(language.encoder)
        anything = {block: torch.randn(4, 32) for block in range(-1, 10)}
        smaller = language.on(approximate(sublayers, "-1->0 4->5", anything, translator="identity"))
        written = smaller.generate(["to be", "or"], 20)
        assert written != language.generate(["to be", "or"], 20)
        assert smaller.generate(["to be", "or"], 20, use_cache=False) == written

    def test_a_saved_one_writes_the_same(self, language, tmp_path):
        sublayers = split_blocks(language.encoder)
        anything = {block: torch.randn(4, 32) for block in range(-1, 10)}
        smaller = language.on(approximate(sublayers, "-1->0 4->5", anything, translator="linear"))
        smaller.save_pretrained(tmp_path / "folder")
        opened = load_language_model(str(tmp_path / "folder"), device="cpu")
        assert opened.encoder.sublayer_split == sublayers.sublayer_split
        assert opened.generate(["to be", "or"], 20) == smaller.generate(["to be", "or"], 20)


def test_what_cannot_be_split_is_refused(tiny_encoder, tiny_model, tiny_images):
    sublayers = split_blocks(tiny_encoder)
    with pytest.raises(InputError, match="The blocks of tiny in sublayers are sublayers already"):
        split_blocks(sublayers)
    anything = {block: torch.randn(40, 32) for block in (1, 2)}
    with pytest.raises(InputError, match="was made smaller already: split the original"):
        split_blocks(approximate(tiny_encoder, "1->2", anything, translator="linear"))
    with pytest.raises(InputError, match="TransformerBlocks, are no attention followed by an MLP"):
        split_blocks(make_encoder(tiny_model("distilbert"), "distilbert"))
    with pytest.raises(InputError, match="Sublayers cannot be folded"):
        fuse_spans(sublayers, "5->6", tiny_images.train)


@pytest.mark.parametrize(("name", "settings"), [("DPT", {"backbone_out_indices": [0, 1, 2, 3]}), ("Yolos", {})])
def test_blocks_whose_mlp_lies_in_parts_are_refused_in_one_sentence(name, settings):
    import transformers

    sizes = SIZES | {"image_size": [32, 32] if name == "Yolos" else 32}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes, **settings))
    encoder = Encoder(model, preprocessing=Preprocessing(resize=(32, 32)), name=name)
    with pytest.raises(InputError, match=f"The blocks of {name}, .*s, are no attention followed by an MLP"):
        split_blocks(encoder)


@torch.no_grad()
def test_a_decoder_that_looks_up_the_kind_of_each_block_is_split_too(token_batch):
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    heads = {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    encoder = Encoder(Qwen2Model(Qwen2Config(**SIZES, vocab_size=50, **heads)), features="mean")
    assert torch.equal(split_blocks(encoder)(token_batch([7, 12])), encoder(token_batch([7, 12])))


def test_blocks_whose_code_looks_into_their_parts_are_refused():
    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image_size, self.patches = 32, torch.nn.Conv2d(3, 16, 8, 8)
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in "ab"
            )

        def forward(self, pixels):
            hidden = self.patches(pixels).flatten(2).mT
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    with pytest.raises(
        InputError, match="The blocks of mine, TransformerEncoderLayers, are no attention followed by an"
    ):
        split_blocks(Encoder(Patches(), name="mine"))
