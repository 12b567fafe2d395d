"""Language models: bits per token as transformers counts them, and the same text written with a cache and without."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import DECODERS, letter_tokenizer, make_language_model, make_tiny_model

from toastlib.approximation.replace import approximate
from toastlib.data.texts import Texts, TextSet
from toastlib.errors import InputError
from toastlib.evaluation.language import LanguageEvaluation, evaluate_language_model, load_language_model
from toastlib.models.layers import number_blocks, shorten_config
from toastlib.plan import Plan
from toastlib.statistics.collect import collect_moments


@pytest.fixture(params=DECODERS)
def language(request):
    return make_language_model(request.param)


@pytest.fixture
def texts(token_batch):
    """16 texts of 4 to 20 tokens, the first 12 for training."""
    tokens = token_batch([4 + 5 * k % 17 for k in range(16)])
    return TextSet("tiny", Texts(tokens[:12]), Texts(tokens[12:]))


def smaller(language, texts, plan, translator="linear"):
    moments = collect_moments(language.encoder, texts.train, folds=0)
    return language.on(approximate(language.encoder, plan, moments, translator=translator))


def cost(language, tokens):
    """Bits of each text, as transformers' own loss has it, text by text without padding."""
    bits = []
    for ids, mask in zip(tokens.input_ids, tokens.attention_mask.bool()):
        with torch.no_grad():
            loss = language.model(ids[mask][None], labels=ids[mask][None]).loss
        bits.append(loss.item() * (mask.sum().item() - 1) / np.log(2))
    return bits


def written_without_cache(language, prompt, count):
    """Token after token, the whole text read anew each time."""
    ids = torch.tensor([language.encoder.tokenizer(prompt)["input_ids"]])
    start = ids.shape[1]
    for _ in range(count):
        with torch.no_grad():
            whole = language.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        ids = torch.cat([ids, whole.logits[0, -1].argmax().view(1, 1)], dim=1)
    return language.encoder.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


class TestEvaluate:
    def test_the_original_costs_what_transformers_loss_says(self, language, texts):
        scores = evaluate_language_model(language, texts, [], batch_size=3)
        assert scores.bits[0] == pytest.approx(cost(language, texts.test.tokens), rel=1e-5)
        assert (scores.tokens == texts.test.tokens.attention_mask.sum(1).numpy() - 1).all()

    @pytest.mark.parametrize("translator", ["identity", "linear"])
    @pytest.mark.parametrize("plan", ["-1->0", "1->3", "0->1 3->4"])
    def test_a_plan_costs_what_its_smaller_model_costs(self, language, texts, plan, translator):
        scores = evaluate_language_model(
            language, texts, plan, translators=[translator], calibration=texts.train, batch_size=3
        )
        approximated = smaller(language, texts, plan, translator)
        assert scores.bits[1] == pytest.approx(cost(approximated, texts.test.tokens), rel=1e-3)
        assert scores.bits[1] != pytest.approx(scores.bits[0], rel=1e-2)
        assert repr(scores) == f"LanguageEvaluation(translators: 1, plans: 1, test texts: {len(texts.test)})"

    def test_a_dropped_span_costs_what_the_model_without_its_blocks_costs(self, language, texts):
        scores, encoder = evaluate_language_model(language, texts, "0->2", translators=["identity"]), language.encoder
        shorten_config(encoder.model.config, [0, 3, 4])
        with encoder.block_list([encoder.blocks[k] for k in (0, 3, 4)]):
            number_blocks(encoder.blocks)
            expected = cost(language, texts.test.tokens)
        assert scores.bits[1] == pytest.approx(expected, rel=1e-5)

    def test_padding_on_the_left_costs_nothing_either(self, language, token_batch):
        left, right = (TextSet("", Texts(t), Texts(t)) for t in (token_batch([3, 9, 5], s) for s in ("left", "right")))
        calls = [next(t.test.batches(3))[0] for t in (left, right)]
        states = []
        for tokens in calls:
            shared = language.encoder.embed(tokens)
            hidden = shared.hidden
            for block in range(5):
                hidden = language.encoder.run_block(block, hidden, shared)
            states.append(language.nll(hidden, tokens))
        torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-4)

    def test_the_batch_size_changes_nothing(self, language, texts):
        one, all_ = (
            evaluate_language_model(language, texts, "1->2", calibration=texts.train, batch_size=size)
            for size in (1, 16)
        )
        np.testing.assert_allclose(one.bits, all_.bits, rtol=1e-3)

    def test_rows_are_the_original_and_each_plan_with_each_translator(self, language, texts):
        names = ["identity", "linear", "affine"]
        scores = evaluate_language_model(language, texts, ["1->2", "2->4"], translators=names, calibration=12)
        assert scores.bits.shape == (7, 4)
        assert list(scores.variants["plan"]) == ["original", *3 * ["1->2"], *3 * ["2->4"]]
        assert list(scores.variants["translator"]) == ["original", *names, *names]
        assert list(scores.table)[:3] == ["translator", "plan", "perplexity"]

    def test_names_may_come_one_by_one(self, language, texts):
        scores = evaluate_language_model(
            language, texts, "1->2", translators=iter(["identity", "linear"]), calibration=12
        )
        assert list(scores.variants["translator"]) == ["original", "identity", "linear"]

    def test_maps_of_several_calibration_sets_have_a_row_for_each(self, language, texts):
        sets = {"all": 12, "few": texts.train[:6]}
        both = evaluate_language_model(language, texts, "1->2", calibration=sets)
        assert both.variants.to_numpy().tolist() == [
            ["original", "", "original"],
            ["identity", "", "1->2"],
            ["linear", "all", "1->2"],
            ["linear", "few", "1->2"],
        ]
        for row, calibration in ((2, texts.train.sample(12, seed=0)), (3, texts.train[:6])):
            alone = evaluate_language_model(language, texts, "1->2", calibration=calibration)
            np.testing.assert_allclose(both.bits[row], alone.bits[2], rtol=1e-6)

    @pytest.mark.parametrize(
        ("plan", "translators", "says"),
        [
            ("1->7", ["linear"], "Span 1->7 leaves the model"),
            ("1->2", ["liner"], "Unknown translator 'liner': did you mean 'linear'"),
            ("1->2", ["linear+align"], "'linear[+]align' aligns the features of an image or text; a language"),
        ],
    )
    def test_what_cannot_be_scored_is_refused(self, language, texts, plan, translators, says):
        with pytest.raises(InputError, match=says):
            evaluate_language_model(language, texts, plan, translators=translators)


class TestTable:
    BITS = np.array([[10.0, 30.0], [14.0, 36.0]])
    VARIANTS = pd.DataFrame({"translator": ["original", "linear"], "plan": ["original", "0->1"]})

    def test_tokens_weigh_alike_whatever_text_they_are_in(self):
        table = LanguageEvaluation(self.VARIANTS, self.BITS, np.array([10, 10])).table
        assert list(table["bits"]) == [2, 2.5]
        assert list(table["perplexity"]) == pytest.approx([4, 2**2.5])
        assert list(table["lost"]) == [0, 0.5]
        uneven = LanguageEvaluation(self.VARIANTS, self.BITS, np.array([5, 35])).table
        assert list(uneven["bits"]) == [1, 1.25]

    def test_intervals_are_of_the_difference_for_the_same_texts(self):
        draw = np.random.default_rng(0)
        base = draw.normal(200, 40, 50)
        bits = np.vstack([base, base + 100 + draw.normal(0, 5, 50)])
        table = LanguageEvaluation(self.VARIANTS, bits, np.full(50, 100)).table
        linear = table.iloc[1]
        assert linear["lost_low"] < 1 < linear["lost_high"]
        assert linear["lost_high"] - linear["lost_low"] == pytest.approx(2 * 1.96 * 0.05 / 50**0.5, rel=0.4)
        assert linear["bits_high"] - linear["bits_low"] == pytest.approx(2 * 1.96 * 0.4 / 50**0.5, rel=0.4)
        assert (table.iloc[0][["lost", "lost_low", "lost_high"]] == 0).all()


class TestGenerate:
    PROMPTS = ("be", "a rose, by any other name", "Fie!")

    @pytest.mark.parametrize("plan", ["original", "-1->0", "0->2", "3->4", "-1->1 2->3"])
    @pytest.mark.parametrize("translator", ["identity", "linear"])
    def test_the_cache_changes_no_token_whatever_was_removed(self, language, texts, plan, translator):
        approximated = smaller(language, texts, plan, translator) if Plan.parse(plan) else language
        expected = [written_without_cache(approximated, prompt, 20) for prompt in self.PROMPTS]
        assert len(set(expected)) == 3
        assert len(set("".join(expected))) > 2
        assert approximated.generate(self.PROMPTS, 20) == expected
        assert [approximated.generate(prompt, 20)[0] for prompt in self.PROMPTS] == expected
        assert approximated.generate(self.PROMPTS, 20, use_cache=False) == expected

    @pytest.mark.parametrize("plan", ["-1->0", "0->2", "-1->1 2->3"])
    @torch.no_grad()
    def test_what_is_in_the_cache_predicts_as_the_whole_text_does(self, language, texts, token_batch, plan):
        approximated, tokens = smaller(language, texts, plan), token_batch([6, 9, 4], "left")
        whole = approximated.encoder.run(approximated.model, tokens).logits
        cache, parts = None, []
        for part in (slice(0, 6), slice(6, 7), slice(7, 9)):
            output = approximated.form()(
                input_ids=tokens.input_ids[:, part],
                attention_mask=tokens.attention_mask[:, : part.stop],
                position_ids=tokens.positions[:, part],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            parts.append(output.logits)
        real = tokens.attention_mask.bool()
        torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], rtol=1e-3, atol=1e-4)

    def test_the_cache_holds_as_many_blocks_and_maps_as_there_are(self, language, texts, token_batch):
        approximated, tokens = smaller(language, texts, "-1->1"), token_batch([6])
        cache = approximated.form()(input_ids=tokens.input_ids, use_cache=True).past_key_values
        assert [cache.get_seq_length(k) for k in range(5)] == [6, 6, 6, 6, 0]

    def test_the_original_is_left_as_it_is(self, language, texts):
        before = language.generate(self.PROMPTS, 20)
        approximated = smaller(language, texts, "-1->1")
        assert approximated.generate(self.PROMPTS, 20) != before
        assert language.generate(self.PROMPTS, 20) == before

    def test_options_are_transformers_own(self, language):
        torch.manual_seed(0)
        first = language.generate("be", 20, do_sample=True)
        torch.manual_seed(1)
        assert language.generate("be", 20, do_sample=True) != first

    def test_more_than_the_model_can_read_is_refused(self, language):
        with pytest.raises(
            InputError, match="tiny reads 66 tokens at most: a prompt of 2 leaves 64 to be written, not 65"
        ):
            language.generate("be", 65)
        assert len(language.generate("be", 64)) == 1

    def test_an_empty_prompt_is_refused(self, language):
        with pytest.raises(InputError, match=r"^Text 1 has no tokens\.$"):
            language.generate(["be", ""], 5)


class TestCheckpoints:
    @pytest.fixture(params=DECODERS)
    def folder(self, request, tmp_path):
        language = make_language_model(request.param)
        language.model.save_pretrained(tmp_path / "tiny-lm")
        language.encoder.tokenizer.save_pretrained(tmp_path / "tiny-lm")
        return tmp_path / "tiny-lm", language

    def test_a_saved_decoder_opens_with_its_head_and_tokenizer(self, folder):
        path, language = folder
        loaded = load_language_model(str(path), device="cpu")
        assert loaded.encoder.name == "tiny-lm"
        assert loaded.generate("a rose", 20) == language.generate("a rose", 20)

    @pytest.mark.parametrize("plan", ["original", "-1->0", "0->2 3->4"])
    def test_dropped_blocks_are_gone_from_the_saved_model_too(self, language, texts, tmp_path, plan):
        dropped = smaller(language, texts, plan, "identity") if Plan.parse(plan) else language
        dropped.save_pretrained(tmp_path / "saved")
        loaded = load_language_model(str(tmp_path / "saved"), device="cpu")
        assert len(loaded.encoder.blocks) == loaded.model.config.num_hidden_layers == 5 - len(Plan.parse(plan).removed)
        assert loaded.generate(TestGenerate.PROMPTS, 20) == dropped.generate(TestGenerate.PROMPTS, 20)
        assert cost(loaded, texts.test.tokens) == pytest.approx(cost(dropped, texts.test.tokens), rel=1e-6)
        assert len(language.encoder.blocks) == language.model.config.num_hidden_layers == 5

    def test_a_shorter_configuration_names_as_many_kinds_of_attention_as_blocks(self, tmp_path):
        from transformers import AutoConfig, Qwen2Config

        config = Qwen2Config(num_hidden_layers=5)
        shorten_config(config, [0, 2, 4])
        config.save_pretrained(tmp_path)  # it is refused unless the numbers agree
        assert len(AutoConfig.from_pretrained(tmp_path).layer_types) == 3

    def test_it_computes_in_the_type_that_is_asked_for(self, folder):
        loaded = load_language_model(str(folder[0]), device="cpu", dtype="bfloat16")
        assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16} == {loaded.encoder.dtype}
        assert len(loaded.generate("a rose", 5)[0])

    def test_a_tokenizer_without_padding_pads_with_another_token(self, folder):
        path, language = folder
        letter_tokenizer(pad_token=None, eos_token="I").save_pretrained(path)
        loaded = load_language_model(str(path), device="cpu")
        assert loaded.encoder.tokenizer.pad_token == "I"
        expected = [written.replace("I", "") for written in language.generate(["a rose", "b"], 20)]
        assert loaded.generate(["a rose", "b"], 20) == expected

    def test_an_encoder_is_no_language_model(self, tmp_path):
        model = make_tiny_model("bert", head="LMHeadModel")
        model.save_pretrained(tmp_path / "tiny-bert")
        letter_tokenizer().save_pretrained(tmp_path / "tiny-bert")
        with pytest.raises(
            InputError, match=r"^tiny-bert is no decoder: its tokens see those that they should predict\.$"
        ):
            load_language_model(str(tmp_path / "tiny-bert"), device="cpu")

    def test_images_are_no_language(self):
        with pytest.raises(InputError, match="vit-mini"):
            load_language_model("vit-mini", device="cpu")
