"""Models of texts pass what models of images pass, and padding counts nowhere."""

import copy

import pytest
import torch
from tiny import DECODERS, TEXT_FAMILIES
from torch import nn

from toastlib.approximation.replace import approximate
from toastlib.data.texts import Texts, TextSet
from toastlib.data.tokens import TOKENS, select_tokens, token_mask
from toastlib.errors import InputError
from toastlib.evaluation.costs import plan_costs
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.costs import flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs, collect_activations
from toastlib.models.layers import shorten_config
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.moments import Moments, all_pairs
from toastlib.statistics.similarity import similarity

BLOCK_LISTS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
    "modernbert": "layers",
    "gpt2": "h",
    "llama": "layers",
    "gemma2": "layers",
}
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
LENGTHS = [7, 12, 3, 9]
CASES = [
    *((family, kind, "right") for family in ENCODERS for kind in ("cls", "mean")),
    *((family, kind, side) for family in DECODERS for kind in ("last", "mean") for side in ("right", "left")),
    ("bert", "pooler", "right"),
]


@pytest.fixture(params=TEXT_FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def encoder(tiny_model, family):
    return Encoder(tiny_model(family), features="mean", name="tiny")


@pytest.fixture
def texts(token_batch):
    """24 texts of 3 to 20 tokens, in two classes."""
    tokens = token_batch([3 + 5 * k % 18 for k in range(24)])
    return Texts(tokens, torch.arange(24) % 2, ("odd", "even"))


def alone(tokens):
    """Each text of a batch by itself, without padding."""
    for row, mask in enumerate(tokens.attention_mask.bool()):
        text = tokens[row : row + 1]
        yield type(tokens)(text.input_ids[:, mask], text.attention_mask[:, mask])


def states_alone(encoder, tokens, blocks=range(-1, 5)):
    """Block -> the states of all texts' tokens, computed text by text: (tokens of all texts, width)."""
    rows = {block: [] for block in blocks}
    for text in alone(tokens):
        with torch.no_grad(), capture_outputs(encoder, blocks) as h:
            encoder(text)
        for block in blocks:
            rows[block].append(h[block][0])
    return {block: torch.cat(parts) for block, parts in rows.items()}


def test_blocks_and_what_kind_of_model_it_is_are_found(encoder, family):
    assert (encoder.blocks_path, len(encoder.blocks), encoder.width) == (BLOCK_LISTS[family], 5, 32)
    assert encoder.reads_text
    assert encoder.is_causal == (family in DECODERS)
    assert encoder.special_tokens == (0 if family in DECODERS else 1)


@torch.no_grad()
def test_the_hidden_states_of_the_plain_model_are_recorded(encoder, family, token_batch):
    tokens = token_batch(LENGTHS)
    with capture_outputs(encoder, range(-1, 5)) as h:
        encoder(tokens)
    plain = encoder.model(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
    )
    real = tokens.attention_mask.bool()
    for block in range(-1, 4):
        assert torch.equal(h[block][real], plain.hidden_states[block + 1][real])
    norm = {"gpt2": "ln_f", "llama": "norm", "gemma2": "norm", "modernbert": "final_norm"}.get(family)
    last = h[4] if norm is None else encoder.model.get_submodule(norm)(h[4])
    assert torch.equal(last[real], plain.last_hidden_state[real])


@torch.no_grad()
def test_start_every_block_and_finish_make_the_features(encoder, token_batch):
    tokens = token_batch(LENGTHS)
    shared = encoder.embed(tokens)
    hidden = shared.hidden
    for block in range(len(encoder.blocks)):
        hidden = encoder.run_block(block, hidden, shared)
    assert torch.equal(encoder.pool(hidden, tokens), encoder(tokens))


@pytest.mark.parametrize(("family", "features", "side"), CASES)
@torch.no_grad()
def test_a_padded_batch_gives_what_its_texts_give_one_by_one(tiny_model, token_batch, family, features, side):
    encoder = Encoder(tiny_model(family), features=features)
    tokens = token_batch(LENGTHS, side)
    expected = torch.cat([encoder(text) for text in alone(tokens)])
    assert torch.pdist(expected).min() > 0.01
    torch.testing.assert_close(encoder(tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "features"), [("bert", "cls"), ("distilbert", "mean"), ("gpt2", "last")])
@torch.no_grad()
def test_features_are_rows_of_what_the_plain_model_returns(tiny_model, token_batch, family, features):
    encoder = Encoder(tiny_model(family), features=features)
    (text,) = alone(token_batch([9]))
    hidden = encoder.model(input_ids=text.input_ids).last_hidden_state[0]
    expected = {"cls": hidden[0], "mean": hidden[1:].mean(0), "last": hidden[-1]}[features]
    torch.testing.assert_close(encoder(text)[0], expected)


@pytest.mark.parametrize("tokens", [kind for kind in TOKENS if kind not in ("cls", "positions")])
def test_moments_are_those_of_the_tokens_without_padding(encoder, texts, tokens):
    if tokens == "special" and not encoder.special_tokens:
        return
    moments = collect_moments(encoder, texts, folds=0, tokens=tokens, batch_size=5)
    rows = {block: [] for block in range(-1, 5)}
    for text in alone(texts.tokens):
        for block, states in states_alone(encoder, text).items():
            rows[block].append(select_tokens(states[None], tokens, encoder.special_tokens))
    direct = Moments.of({block: torch.cat(parts) for block, parts in rows.items()}, all_pairs(5))
    assert moments.count == direct.count
    if tokens == "all":
        assert moments.count == texts.tokens.attention_mask.sum()
    torch.testing.assert_close(moments.inner, direct.inner, rtol=1e-4, atol=1e-3)
    for pair, product in direct.products.items():
        torch.testing.assert_close(moments.products[pair], product, rtol=1e-4, atol=1e-3)


def test_folds_keep_the_cls_token_apart_and_add_up(encoder, texts):
    folds = collect_moments(encoder, texts, batch_size=5, folds=5)
    assert folds.parts.keys() == ({"patch"} if encoder.is_causal else {"special", "patch"})
    if "special" in folds.parts:
        assert sum(part.count for part in folds.parts["special"]) == len(texts)
    whole = collect_moments(encoder, texts, batch_size=24, folds=0)
    assert folds.whole.count == whole.count
    torch.testing.assert_close(folds.whole.inner, whole.inner, rtol=1e-5, atol=1e-3)


def test_activations_are_kept_without_padding(encoder, texts):
    kept = collect_activations(encoder, texts, [1, 4], tokens="all", batch_size=7)
    for block, rows in states_alone(encoder, texts.tokens, [1, 4]).items():
        torch.testing.assert_close(kept[block], rows, rtol=1e-4, atol=1e-5)


def test_similarity_is_one_of_each_block_with_itself(encoder, texts):
    frame = similarity(collect_moments(encoder, texts, folds=0), "cka")
    same = frame[frame["first"] == frame["second"]]["value"]
    assert len(frame) == 36
    assert same.to_numpy() == pytest.approx(1)


@pytest.mark.parametrize("plan", ["-1->0", "1->3", "0->1 3->4"])
@torch.no_grad()
def test_a_span_dropped_leaves_the_model_that_never_had_its_blocks(encoder, texts, token_batch, plan):
    smaller = approximate(encoder, plan, collect_moments(encoder, texts, folds=0), translator="identity")
    removed, tokens = Plan.parse(plan).removed, token_batch(LENGTHS)
    kept = [k for k in range(5) if k not in removed]
    never = copy.deepcopy(encoder)
    shorten_config(never.model.config, kept)  # Gemma's names there how each block attends
    with never.block_list([never.blocks[k] for k in kept]):
        expected = never(tokens)
    assert torch.equal(smaller(tokens), expected)
    assert not torch.allclose(expected, encoder(tokens), atol=1e-2)
    blocks = sum(parameter_count(encoder.blocks[k]) for k in removed)
    assert parameter_count(encoder) - parameter_count(smaller) == blocks


class Matrix(nn.Module):
    """A block that is a matrix."""

    attention_type = "full_attention"  # ModernBERT asks its blocks for it

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, hidden, *args, **kwargs):
        return hidden @ self.weight


@torch.no_grad()
def test_a_block_that_is_a_matrix_is_mapped_exactly_wherever_padding_stands(encoder, texts, token_batch):
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(4)) / 6
    encoder.blocks[2] = Matrix(weight)
    smaller = approximate(encoder, "1->2", collect_moments(encoder, texts, batch_size=24, folds=0), translator="linear")
    torch.testing.assert_close(smaller.blocks[2].translation.weight.mT, weight, rtol=1e-3, atol=1e-4)
    tokens = token_batch(LENGTHS)
    torch.testing.assert_close(smaller(tokens), encoder(tokens), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_same_moments_give_the_same_smaller_model(encoder, texts, token_batch):
    first, second = (
        approximate(encoder, "1->3", collect_moments(encoder, texts, folds=0), translator="linear") for _ in range(2)
    )
    assert torch.equal(first(token_batch(LENGTHS)), second(token_batch(LENGTHS)))


def test_the_blocks_left_are_numbered_by_their_place(encoder, texts, family):
    smaller = approximate(encoder, "-1->0 2->3", collect_moments(encoder, texts, folds=0), translator="identity")

    def numbers(some):
        return [part.layer_idx for part in some.blocks.modules() if hasattr(part, "layer_idx")]

    each = {"distilbert": 0, "modernbert": 2}.get(family, 1)  # of ModernBERT a block and its attention have one
    if family in DECODERS:  # a map stands at 0, another one at 2
        assert numbers(smaller) == [0, 1, 2, 3, 4][: len(smaller.blocks)]
    assert numbers(encoder) == [number for number in range(5) for _ in range(each)]


def test_texts_with_labels_go_through_a_sweep(encoder, texts):
    config = HeadConfig(seeds=[0], min_steps=0)
    data = TextSet("tiny", texts, texts[:10])
    table = evaluate_plans(encoder, data, "1->2", calibration=20, head=config, batch_size=4).table
    assert list(table["plan"]) == ["original", "1->2", "1->2"]
    assert (table["images"] == 10).all()
    assert (table["gflops"].diff().dropna() != 0).all()


def test_flops_are_those_of_as_many_tokens_without_padding(encoder, token_batch):
    padded, full = token_batch([3, 12]), token_batch([12, 12])
    assert flops(encoder, padded) == flops(encoder, full) > 2 * 24 * 5 * 32 * 32
    costs = plan_costs(encoder, [Plan.parse("1->2")], ["identity"], inputs=full[:1])
    assert costs["gflops"].item() == pytest.approx(0.8 * flops(encoder, full[:1]) / 1e9, rel=0.01)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_chosen_by_the_mask(side, token_batch):
    mask = token_batch([2, 3], side).attention_mask
    hidden = torch.arange(6.0).view(2, 3, 1)
    kinds = [kind for kind in TOKENS if kind not in ("cls", "positions")]
    rows = {kind: select_tokens(hidden, kind, 1, mask=mask).flatten().tolist() for kind in kinds}
    first, second = (0.0, 1.0) if side == "right" else (1.0, 2.0)
    assert rows == {
        "all": [first, second, 3, 4, 5],
        "special": [first, 3],
        "patch": [second, 4, 5],
        "last": [second, 5],
        "mean": [second, 4.5],
    }


def test_images_have_no_mask(pixel_values):
    assert token_mask(pixel_values) is None


@pytest.mark.parametrize("family", ENCODERS)
def test_texts_padded_before_their_cls_token_are_refused(encoder, token_batch):
    with pytest.raises(InputError, match=r"^tiny reads its CLS token first: pad texts on the right\.$"):
        encoder(token_batch([3, 5], "left"))


@pytest.mark.parametrize(
    ("family", "features", "says"),
    [
        ("gpt2", "cls", "tiny has no CLS token: take features='mean' or features='last'."),
        ("llama", "cls", "tiny has no CLS token: take features='mean' or features='last'."),
        ("bert", "last", "tiny is no decoder, and its last token says nothing: take features='mean'."),
        ("vit", "last", "tiny is no decoder, and its last token says nothing: take features='mean'."),
    ],
)
def test_features_that_the_model_has_not_are_refused(tiny_model, family, features, says):
    with pytest.raises(InputError) as error:
        Encoder(tiny_model(family), features=features, name="tiny")
    assert str(error.value) == says


def test_a_decoder_has_no_pooler(tiny_model, token_batch):
    with pytest.raises(InputError, match="tiny has no pooler: take features='last' or features='mean'"):
        Encoder(tiny_model("gpt2"), features="pooler", name="tiny")(token_batch([3]))
