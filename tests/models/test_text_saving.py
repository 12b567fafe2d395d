"""Models of texts with maps: every family runs, is saved, and is opened again with what it computed before."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LinearRegression, Ridge
from tiny import (
    DECODERS,
    MORE_DECODERS,
    MORE_ENCODERS,
    TEXT_FAMILIES,
    environment_without_toastlib,
    letter_tokenizer,
    make_language_model,
    make_tiny_model,
)
from torch import nn
from transformers import MambaConfig, MambaModel

from toastlib.approximation.engine import Variant, forward_plans
from toastlib.approximation.fuse import fuse_spans
from toastlib.approximation.prepare import prepare
from toastlib.approximation.replace import approximate
from toastlib.data.texts import Texts, TextSet, tokenised
from toastlib.data.tokens import Tokens
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.language import LanguageModel, evaluate_language_model, load_language_model
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.layers import AddRunningContext, context_of, running_context, running_sums
from toastlib.models.loading import load_encoder
from toastlib.models.sublayers import split_blocks
from toastlib.models.walk import check_walk
from toastlib.plan import Plan, Span
from toastlib.statistics.collect import collect_moments
from toastlib.statistics.similarity import similarity
from toastlib.translators.per_token import PooledContext

ENCODERS = [family for family in TEXT_FAMILIES if family not in DECODERS] + list(MORE_ENCODERS)
EVERY = [*TEXT_FAMILIES, *MORE_ENCODERS, *MORE_DECODERS]
PROMPTS = ["be", "a rose, by any other name", "Fie!"]
PLAN = "-1->0 1->3"


@pytest.fixture
def texts(token_batch):
    """24 texts of 3 to 20 tokens."""
    return Texts(token_batch([3 + 5 * k % 18 for k in range(24)]))


def stacked(language, prompts=PROMPTS):
    """Prompts as one batch, padded before each text."""
    return tokenised(language.encoder.tokenizer, prompts, 60, side="left")


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_the_walk_and_the_smaller_model_compute_what_the_model_does(family, texts):
    encoder = Encoder(make_tiny_model(family), features="mean", name=family)
    check_walk(encoder, texts.tokens)
    for translator in ("linear", "context"):
        ready = prepare(encoder, None, [PLAN], translators=[translator], calibration=texts, batch_size=24)
        engine = forward_plans(encoder, texts.tokens, ready.variants, ready.maps)
        torch.testing.assert_close(engine[ready.variants[0]], encoder(texts.tokens))
        smaller = approximate(encoder, PLAN, texts, translator=translator, batch_size=24)
        assert len(smaller.blocks) == 4
        torch.testing.assert_close(smaller(texts.tokens), engine[Variant(Plan.parse(PLAN), translator)])


@pytest.mark.parametrize("family", [*MORE_ENCODERS, *MORE_DECODERS])
def test_similarity_and_a_sweep_take_every_family(family, texts):
    encoder = Encoder(make_tiny_model(family), features="mean", name=family)
    frame = similarity(collect_moments(encoder, texts, folds=0), "cka")
    assert frame[frame["first"] == frame["second"]]["value"].to_numpy() == pytest.approx(1)
    labelled = replace(texts, labels=torch.arange(24) % 2, class_names=("odd", "even"))
    data, config = TextSet("tiny", labelled, labelled[:10]), HeadConfig(seeds=[0], min_steps=0)
    table = evaluate_plans(encoder, data, "1->2", calibration=20, head=config, batch_size=4).table
    assert list(table["plan"]) == ["original", *["1->2"] * (len(table) - 1)]
    assert (table["gflops"] > 0).all()


@pytest.mark.parametrize("translator", ["linear", "context"])
@pytest.mark.parametrize("family", [*DECODERS, *MORE_DECODERS])
def test_a_decoder_with_maps_writes_the_same_with_and_without_a_cache_and_once_it_is_saved(
    family, translator, texts, tmp_path
):
    from transformers import AutoModelForCausalLM

    language = make_language_model(family)
    smaller = language.on(approximate(language.encoder, PLAN, texts, translator=translator))
    written = smaller.generate(PROMPTS, 16)
    assert written != language.generate(PROMPTS, 16)
    assert smaller.generate(PROMPTS, 16, use_cache=False) == written
    assert [smaller.generate(prompt, 16)[0] for prompt in PROMPTS] == written
    smaller.save_pretrained(tmp_path / "saved")
    opened = load_language_model(str(tmp_path / "saved"), device="cpu")
    assert opened.generate(PROMPTS, 16) == written
    tokens = stacked(language)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    out = model.generate(**vars(tokens), max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert (
        language.encoder.tokenizer.batch_decode(out[:, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        == written
    )
    opened.save_pretrained(tmp_path / "again")
    assert load_language_model(str(tmp_path / "again"), device="cpu").generate(PROMPTS, 16) == written


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_beams_and_samples_keep_their_own_running_sums(family, texts):
    language = make_language_model(family)
    smaller = language.on(approximate(language.encoder, PLAN, texts, translator="context"))
    options = {"num_beams": 3}
    assert smaller.generate(PROMPTS, 12, **options) == smaller.generate(PROMPTS, 12, use_cache=False, **options)


@pytest.mark.parametrize(
    ("saved", "auto"),
    [
        ("language", "SequenceClassification"),
        ("language", "ImageClassification"),
        ("classifier", "CausalLM"),
        ("classifier", "ImageClassification"),
        ("features", "CausalLM"),
    ],
)
def test_a_folder_opens_as_what_it_is_alone(saved, auto, texts, tmp_path):
    import transformers

    language = make_language_model("gpt2")
    smaller = language.on(approximate(language.encoder, PLAN, texts, translator="linear"))
    if saved == "language":
        smaller.save_pretrained(tmp_path)
    else:
        smaller.encoder.save_pretrained(tmp_path, head=nn.Linear(32, 3) if saved == "classifier" else None)
    with pytest.raises(ValueError, match=f"^This is no ToastFor{auto} but a Toast"):
        getattr(transformers, f"AutoModelFor{auto}").from_pretrained(tmp_path)
    if saved != "language":
        with pytest.raises(InputError, match="This is no ToastForCausalLM"):
            load_language_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        (
            "qwen3-moe",
            {"mlp_only_layers": [0, 2], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ),
    ],
)
def test_a_model_whose_blocks_compute_by_their_number_keeps_them_when_spans_are_dropped(
    family, settings, texts, tmp_path
):
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": False}
    head = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    model = make_tiny_model(family, head=head, **settings | special)
    encoder = Encoder(model.base_model, features="mean", name="tiny", tokenizer=letter_tokenizer())
    language = LanguageModel(encoder, model)
    smaller = language.on(approximate(encoder, "-1->0", texts, translator="identity"))
    smaller.save_pretrained(tmp_path)
    opened = load_language_model(str(tmp_path), device="cpu")
    data = TextSet("", texts, texts[:6])
    expected = evaluate_language_model(language, data, "-1->0", translators=["identity"]).bits[1]
    assert evaluate_language_model(opened, data, []).bits[0] == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_of_half_precision_stays_one(texts, tmp_path):
    language = load_language_model("gpt-mini", device="cpu")
    for translator in ("context", "identity"):
        smaller = language.on(approximate(language.encoder, "1->2", texts, translator=translator))
        smaller.save_pretrained(tmp_path / translator)
        kept = load_file(tmp_path / translator / "model.safetensors").values()
        assert {weight.dtype for weight in kept} == {torch.float16}


def test_a_cache_of_ones_own_and_an_assistant_are_taken(texts):
    from transformers import DynamicCache

    language = load_language_model("gpt-mini", device="cpu")
    smaller = language.on(approximate(language.encoder, "1->2", texts, translator="context"))
    ids, model = torch.arange(2, 12)[None], smaller.form()
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, past_key_values=DynamicCache(), **settings), expected)
    assert torch.equal(model.generate(ids, assistant_model=language.model, **settings), expected)
    original = language.model.generate(ids, **settings)
    assert torch.equal(language.model.generate(ids, assistant_model=model, **settings), original)


def test_sublayers_of_blocks_that_are_not_all_alike_are_saved(texts, tmp_path):
    encoder = Encoder(make_tiny_model("modernbert"), features="mean", name="tiny", tokenizer=letter_tokenizer())
    sublayers = split_blocks(encoder)
    assert torch.equal(sublayers(texts.tokens), encoder(texts.tokens))
    smaller = approximate(sublayers, "2->3", texts, translator="linear")
    smaller.save_pretrained(tmp_path)
    opened = load_encoder(str(tmp_path), device="cpu")
    torch.testing.assert_close(opened(texts.tokens), smaller(texts.tokens))


def test_a_smaller_model_is_not_fused(texts):
    encoder = Encoder(make_tiny_model("llama"), features="mean", name="tiny")
    with pytest.raises(InputError, match="tiny was made smaller already: start from the original"):
        fuse_spans(approximate(encoder, "1->2", texts, translator="linear"), "0->1", texts)


def test_a_head_that_is_the_embedding_stays_it(texts, tmp_path):
    language = load_language_model("gpt-mini", device="cpu")
    smaller = language.on(approximate(language.encoder, PLAN, texts, translator="context"))
    gone = parameter_count(language.encoder) - parameter_count(smaller.encoder)
    assert parameter_count(smaller.model) == parameter_count(language.model) - gone
    smaller.save_pretrained(tmp_path)
    kept = [name for name in load_file(tmp_path / "model.safetensors") if "lm_head" in name or "wte" in name]
    assert kept == ["toast.base.transformer.wte.weight"]
    opened = load_language_model(str(tmp_path), device="cpu")
    assert opened.model.lm_head.weight is opened.model.transformer.wte.weight
    assert opened.generate("And God", 20) == smaller.generate("And God", 20)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_static_cache_is_for_maps_of_single_tokens(family, texts):
    language = make_language_model(family)
    linear, context = (
        language.on(approximate(language.encoder, PLAN, texts, translator=name)) for name in ("linear", "context")
    )
    assert linear.generate(PROMPTS, 12, cache_implementation="static") == linear.generate(PROMPTS, 12)
    with pytest.raises(ValueError, match=r"A context map takes an attention mask of shape \(batch, tokens\)"):
        context.generate(PROMPTS, 12, cache_implementation="static")


def test_a_model_of_states_without_a_cache_of_tokens_is_saved_with_maps_of_single_tokens(texts, tmp_path):
    config = MambaConfig(hidden_size=32, num_hidden_layers=6, state_size=4, vocab_size=50)
    encoder = Encoder(MambaModel(config), features="last", name="mamba", tokenizer=letter_tokenizer())
    smaller = approximate(encoder, PLAN, texts, translator="linear")
    smaller.save_pretrained(tmp_path)
    assert torch.equal(load_encoder(str(tmp_path), device="cpu")(texts.tokens), smaller(texts.tokens))
    with pytest.raises(InputError, match="mamba cannot be saved: a context map keeps its sums in a cache"):
        approximate(encoder, PLAN, texts, translator="context").save_pretrained(tmp_path / "context")


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@torch.no_grad()
def test_the_hidden_states_of_a_saved_decoder_can_be_read_and_its_loss_has_gradients(family, texts, tmp_path):
    from transformers import AutoModelForCausalLM

    language = make_language_model(family)
    smaller = language.on(approximate(language.encoder, PLAN, texts, translator="context"))
    smaller.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    inputs = vars(texts.tokens[:2])
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 5
    with torch.enable_grad():
        model(**inputs, labels=texts.tokens.input_ids[:2]).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in model.toast.blocks[0].parameters())


@pytest.mark.parametrize("features", ["cls", "mean"])
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_with_maps_is_saved_with_and_without_a_classifier(family, features, texts, tmp_path):
    from transformers import AutoModel, AutoModelForSequenceClassification

    encoder = Encoder(make_tiny_model(family), features=features, name=family, tokenizer=letter_tokenizer())
    smaller = approximate(encoder, PLAN, texts, translator="context")
    expected = smaller(texts.tokens)
    smaller.save_pretrained(tmp_path / "features")
    opened = load_encoder(str(tmp_path / "features"), device="cpu")
    torch.testing.assert_close(opened(texts.tokens), expected)  # other addresses, other last bits
    model = AutoModel.from_pretrained(tmp_path / "features")
    with torch.no_grad():
        torch.testing.assert_close(model(**vars(texts.tokens)).pooler_output, expected)
    head = nn.Linear(32, 3)
    smaller.save_pretrained(tmp_path / "classifier", head=head, class_names=["a", "b", "c"])
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        torch.testing.assert_close(classifier(**vars(texts.tokens)).logits, head(expected))
    assert classifier.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("family", ["bert", "deberta", "gpt2"])
def test_a_checkpoints_own_classifier_of_texts_is_kept(family, texts, tmp_path):
    from transformers import AutoModelForSequenceClassification

    whole = make_tiny_model(family, head="ForSequenceClassification", num_labels=3, pad_token_id=0)
    features = "last" if family == "gpt2" else "cls"
    encoder = Encoder(getattr(whole, whole.base_model_prefix), features=features, name=family)
    smaller = approximate(encoder, PLAN, texts, translator="linear")
    smaller.save_pretrained(tmp_path, head=whole)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = opened(**vars(texts.tokens)).logits
        original = whole(**vars(texts.tokens)).logits
    assert logits.shape == (24, 3)
    assert not torch.allclose(logits, original, atol=1e-2)
    for mapped, block in zip(opened.toast.blocks, smaller.blocks, strict=True):
        assert all(map(torch.equal, mapped.parameters(), block.parameters()))


@pytest.mark.slow
def test_a_decoder_with_maps_writes_the_same_in_a_process_without_toastlib(texts, tmp_path):
    python = environment_without_toastlib(tmp_path / "environment")
    for family in ("gpt2", "gemma2"):
        language = make_language_model(family)
        smaller = language.on(approximate(language.encoder, PLAN, texts, translator="context"))
        smaller.save_pretrained(tmp_path / family)
        code = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "toastlib" not in sys.modules
folder = {str(tmp_path / family)!r}
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)({PROMPTS!r}, return_tensors="pt", padding=True,
    padding_side="left")
for cache in (True, False):
    out = model.generate(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, max_new_tokens=16,
        do_sample=False, use_cache=cache, pad_token_id=0)
    print(out[:, tokens.input_ids.shape[1]:].tolist())
assert "toastlib" not in sys.modules
"""
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr[-2000:]
        with_cache, without = map(json.loads, run.stdout.strip().splitlines()[-2:])
        assert with_cache == without
        decoded = language.encoder.tokenizer.batch_decode(with_cache, skip_special_tokens=True)
        assert decoded == smaller.generate(PROMPTS, 16)


class TestRunningContext:
    def test_it_is_the_mean_and_deviation_of_the_tokens_up_to_each(self):
        hidden = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
        found = running_context(running_sums(hidden))
        for token in range(7):
            torch.testing.assert_close(
                found[:, token].float(), context_of(hidden[:, : token + 1]), rtol=1e-4, atol=1e-4
            )

    def test_padding_on_either_side_counts_nowhere(self):
        hidden = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
        expected = running_context(running_sums(hidden))
        for left in (0, 2):
            padded = torch.cat([torch.full((1, left, 5), 9.0), hidden, torch.full((1, 2 - left, 5), 9.0)], 1)
            mask = torch.zeros(1, 6, dtype=torch.int64)
            mask[:, left : left + 4] = 1
            assert torch.equal(running_context(running_sums(padded, mask))[:, left : left + 4], expected)
            torch.testing.assert_close(context_of(padded, mask), context_of(hidden))

    def test_it_has_finite_gradients_where_nothing_varies(self):
        hidden = torch.ones(1, 3, 4, requires_grad=True)
        running_context(running_sums(hidden)).sum().backward()
        assert torch.isfinite(hidden.grad).all()

    @pytest.mark.parametrize("alpha", [0.0, 1e-3])
    def test_its_map_is_the_ridge_of_scikit_learn_on_rows_written_out(self, alpha, texts):
        encoder = Encoder(make_tiny_model("llama").double(), features="mean", name="tiny")
        moments = collect_moments(encoder, texts, [(0, 0), (0, 2)], batch_size=5)
        fit = PooledContext(alpha=alpha).fit_moments(moments, Span(0, 2))
        rows, targets = [], []
        for text, mask in zip(texts.tokens.input_ids, texts.tokens.attention_mask.bool(), strict=True):
            one = Tokens(text[mask][None], torch.ones_like(text[mask])[None])
            with torch.no_grad(), capture_outputs(encoder, [0, 2]) as h:
                encoder(one)
            for token in range(h[0].shape[1]):
                seen = h[0][0, : token + 1]
                rows.append(torch.cat([h[0][0, token], seen.mean(0), seen.std(0, correction=0)]))
                targets.append(h[2][0, token])
        x, y = torch.stack(rows).numpy(), torch.stack(targets).numpy()
        goal = y - x[:, :32]  # shrunk to the identity
        centred = x - x.mean(0)
        penalty = alpha * (centred**2).sum() / 96
        model = (Ridge(alpha=penalty) if alpha else LinearRegression()).fit(x, goal)
        module = fit.module().double()
        assert isinstance(module, AddRunningContext)
        weight = torch.cat([module.tokens.weight, module.context.weight], 1).numpy()
        expected = model.coef_.copy()
        expected[:, :32] += torch.eye(32).numpy()
        predicted = x @ weight.T + module.tokens.bias.numpy()
        assert abs(predicted - (x[:, :32] + model.predict(x))).max() < 1e-4 * abs(y).max()
        if alpha:
            assert abs(weight - expected).max() < 1e-3 * abs(expected).max()

    def test_moments_without_context_say_so(self, texts):
        encoder = Encoder(make_tiny_model("llama"), features="mean", name="tiny")
        moments = collect_moments(encoder, texts, [(0, 0), (0, 2)], context=False)
        with pytest.raises(InputError, match="needs moments of the context: leave context=True in collect_moments"):
            PooledContext().fit_moments(moments, Span(0, 2))
