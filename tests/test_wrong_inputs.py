"""What is wrong for a public function ends in one `InputError`, of one sentence, or in Python's own `TypeError`."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tiny_model
from torch import nn

import toastlib as toast
from toastlib.errors import InputError
from toastlib.plan import Plan, Span, parse_plans

NAN, ROWS, LABELS = math.nan, torch.eye(9, 4), torch.arange(9) % 3
OTHERS = [None, "x", 5, [], {}, object(), ROWS, ROWS.numpy(), nn.Linear(3, 3)]
"""What is neither an encoder, nor images, nor a set of them."""
COUNTS = [0, -1, 1.5, NAN, "3", None, [], True]
PLANS = [
    5,
    "x->y",
    "1>2",
    [1, 2, 3],
    [(1,)],
    [(1, 2, 3)],
    {"a": 1},
    "1->9",
    "3->1",
    "1->1",
    "-2->1",
    [(1.5, 2)],
    b"1->2",
]
PLANS += [NAN, [None], "1->2,3->4", [(1, 3), (2, 4)], True, object()]
MAPS = ["", "lin", "linear+", "+align", object(), 5]
HEADS = {
    "protocol": ["x", [], ["frozen", "x"], 5],
    "seeds": [0, -1, "3", [], 1.5, [1.5], ["a"], [-1], True],
    "learning_rate": [0, -1, "x", None, NAN, math.inf],
    "min_steps": [-1, "x", 1.5, None, NAN],
    "epochs": [-1, "x", 1.5, None],
    "batch_size": COUNTS,
}
PREPROCESSINGS = {
    "resize": [-1, (0, 5), "x", 1.5, (1, 2, 3), ()],
    "crop": [(1,), 5, "x", (-1, 3)],
    "mode": ["x", None, 3],
    "scale": ["x", NAN, 0, None],
    "mean": [(0.5,), 0.5, "abc", (NAN,) * 3],
    "std": [(0, 0, 0), (1, 1), None],
}
PAIRS = [([1, 0], [1]), ([], []), ([[1, 0]], [1, 0]), (["x"], ["y"]), (5, 6), (None, None)]
UNEVEN = [(ROWS, ROWS[1:]), (ROWS, ROWS[:, 1:]), (ROWS[:0],) * 2, (ROWS[0],) * 2, (NAN * ROWS,) * 2, ("x", "y")]
UNEVEN += [(torch.zeros(2, 3, 4, 5),) * 2, (ROWS, None)]

CALLS = {
    "Plan.parse": (lambda t, x: Plan.parse(x), [x for x in PLANS if x != "1->9"]),
    "approximate, plan": (lambda t, x: toast.approximate(t.encoder, x, t.moments), PLANS),
    "approximate, encoder": (lambda t, x: toast.approximate(x, "2->4", t.moments), OTHERS),
    "approximate, calibration": (lambda t, x: toast.approximate(t.encoder, "2->4", x), [*OTHERS, *COUNTS]),
    "approximate, translator": (lambda t, x: toast.approximate(t.encoder, "2->4", t.moments, translator=x), MAPS),
    "approximate, batch_size": (lambda t, x: toast.approximate(t.encoder, "2->4", t.images, batch_size=x), COUNTS),
    "evaluate_plans, plans": (lambda t, x: t.evaluate(plans=x), PLANS),
    "evaluate_plans, encoder": (lambda t, x: t.evaluate(encoder=x), OTHERS),
    "evaluate_plans, data": (lambda t, x: t.evaluate(data=x), OTHERS),
    "evaluate_plans, calibration": (
        lambda t, x: t.evaluate(calibration=x),
        ["x", [], {}, object(), ROWS, *COUNTS, 1000],
    ),
    "evaluate_plans, translators": (lambda t, x: t.evaluate(translators=x), [*MAPS, ["nope"], {"a": "nope"}]),
    "evaluate_plans, no labels": (lambda t, x: t.evaluate(data=t.bare), [None]),
    "sample_size_curve, data": (lambda t, x: toast.sample_size_curve(t.encoder, x, "2->4"), OTHERS),
    "sample_size_curve, no labels": (lambda t, x: toast.sample_size_curve(t.encoder, t.bare, "2->4"), [None]),
    "sample_size_curve, sizes": (lambda t, x: t.curve(sizes=x), [[], [0], ["x"], [1.5], [-1], 5]),
    "sample_size_curve, draws": (lambda t, x: t.curve(draws=x), [[], ["x"], [1.5], [-1], 5]),
    "variance_split": (lambda t, x: toast.variance_split(x), [pd.DataFrame(), None, "x"]),
    "saturation": (lambda t, x: toast.saturation(x), [pd.DataFrame(), None, "x"]),
    "run_plans, images": (lambda t, x: toast.run_plans(t.encoder, x, ["2->4"], calibration=t.moments), OTHERS),
    "run_plans, calibration": (lambda t, x: toast.run_plans(t.encoder, t.images, ["2->4"], calibration=x), COUNTS),
    "run_plans, measures": (lambda t, x: t.run(measures=x), ["x", ["x"], ["divergence"], ["loss"], 5]),
    "evaluate_dense, data": (lambda t, x: toast.evaluate_dense(t.encoder, x, "2->4"), OTHERS),
    "Playground, data": (lambda t, x: toast.Playground(t.encoder, x, t.moments), OTHERS),
    "Playground, no labels": (lambda t, x: toast.Playground(t.encoder, t.bare, t.moments), [None]),
    "fuse_spans, images": (lambda t, x: toast.fuse_spans(t.encoder, "2->4", x), OTHERS),
    "split_blocks": (lambda t, x: toast.split_blocks(x), OTHERS),
    "replace_spans": (
        lambda t, x: toast.replace_spans(t.encoder, x),
        [
            {"2->4": nn.Identity()},
            {Span(2, 9): nn.Identity()},
            {Span(1, 3): nn.Identity(), Span(2, 4): nn.Identity()},
            {Span(1, 3): None},
        ],
    ),
    "fit_spans": (lambda t, x: toast.fit_spans(x, "linear", t.moments), [[Span(1, 9)], ["1->3"], 5]),
    "compress, encoder": (lambda t, x: toast.compress(x, t.data, remove=1), OTHERS),
    "compress, data": (lambda t, x: toast.compress(t.encoder, x, remove=1), OTHERS),
    "compress, remove": (lambda t, x: t.compress(remove=x), [0, 5, -1, "2", "x", "1->9"]),
    "compress, max_drop": (lambda t, x: toast.compress(t.encoder, t.data, max_drop=x), [0, -1, 100, NAN, "x", []]),
    "compress, translator": (lambda t, x: t.compress(translator=x), ["x", 5, [], "linear+"]),
    "compress, calibration": (lambda t, x: t.compress(calibration=x), COUNTS),
    "compress, head": (lambda t, x: t.compress(head=x), ["x", 5, "own", nn.Linear(3, 2)]),
    "collect_moments, encoder": (lambda t, x: toast.collect_moments(x, t.images), OTHERS),
    "collect_moments, images": (lambda t, x: toast.collect_moments(t.encoder, x), [*OTHERS, "data", ["a.png"]]),
    "collect_moments, batch_size": (lambda t, x: toast.collect_moments(t.encoder, t.images, batch_size=x), COUNTS),
    "collect_moments, folds": (lambda t, x: toast.collect_moments(t.encoder, t.images, folds=x), [1, -1, 61, 1.5, "5"]),
    "collect_moments, tokens": (lambda t, x: toast.collect_moments(t.encoder, t.images, tokens=x), ["x", None, 5, ""]),
    "collect_moments, pairs": (
        lambda t, x: toast.collect_moments(t.encoder, t.images, x),
        [[(0, 9)], [0, 1], "ab", 5, [], [("a", "b")], [(-2, 0)]],
    ),
    "collect_activations, images": (lambda t, x: toast.collect_activations(t.encoder, x), OTHERS),
    "collect_activations, tokens": (lambda t, x: toast.collect_activations(t.encoder, t.images, tokens=x), ["x", 5]),
    "similarity": (lambda t, x: toast.similarity(t.moments, x), ["x", None, 5, ["cka"], ""]),
    "span_costs": (lambda t, x: toast.span_costs(t.moments, x), ["x", None, 5, ["cka"], ""]),
    "select, remove": (lambda t, x: toast.select(t.moments, x), [None, 6, -1, 1.5, "2", NAN, True]),
    "select, budget": (lambda t, x: toast.select(t.moments, budget=x), [NAN, "x", None]),
    "select, both": (lambda t, x: toast.select(t.moments, 2, budget=x), [1.0]),
    "best_plans": (lambda t, x: toast.best_plans(toast.span_costs(t.moments), x, 2), COUNTS),
    "random_plans, remove": (lambda t, x: toast.random_plans(5, x, 3), [-1, 6, 1.5, "2", None, NAN]),
    "random_plans, n": (lambda t, x: toast.random_plans(5, 2, x), [*COUNTS, 11]),
    "plan_costs": (lambda t, x: toast.plan_costs(t.encoder, [Plan.parse("2->4")], x, inputs=t.pixels), MAPS),
    "map_costs": (lambda t, x: toast.map_costs(x, 32, 17), ["", "lin", 5, None]),
    "pareto_front": (lambda t, x: toast.pareto_front(*x), [(pd.DataFrame({"a": [1]}), "x", "a"), (None, "a", "b")]),
    "relative_throughput": (lambda t, x: toast.relative_throughput(*x), [({}, ROWS), ({"a": nn.Identity()}, ROWS, 0)]),
    "parameter_count": (lambda t, x: toast.parameter_count(x), [None, "x", 5]),
    "plan_pairs": (lambda t, x: toast.plan_pairs(x), [5, "x", ["x"], None, [None]]),
    "paired_difference": (lambda t, x: toast.paired_difference(*x), PAIRS),
    "paired_difference, confidence": (lambda t, x: toast.paired_difference([1, 0], [0, 1], x), [0, 2, -1, NAN]),
    "cka_from_samples": (
        lambda t, x: toast.cka_from_samples(*x),
        [(ROWS, ROWS[1:]), (ROWS[0],) * 2, ("x", "y"), (5, 6)],
    ),
    "similarity_between": (
        lambda t, x: toast.similarity_between(x, {0: ROWS}),
        [None, "x", 5, [], object(), ROWS, ROWS.numpy()],
    ),
    "similarity_between, rows": (lambda t, x: toast.similarity_between({0: x[0]}, {0: x[1]}), UNEVEN[:1] + UNEVEN[2:4]),
    "similarity_between, metric": (
        lambda t, x: toast.similarity_between({0: ROWS}, {0: ROWS}, x),
        ["x", None, ["rsa"]],
    ),
    "Moments.of": (lambda t, x: toast.Moments.of(dict(enumerate(x)), [(0, 1)]), [*UNEVEN[:4], (ROWS,), ()]),
    "Linear.predict": (lambda t, x: toast.Linear().fit(ROWS, ROWS).predict(x), [None, "x", ROWS[:, 1:]]),
    "Linear.predict, not fitted": (lambda t, x: toast.Linear().predict(ROWS), [None]),
    "Ridge": (lambda t, x: toast.Ridge(alpha=x), [-1, NAN, "x", math.inf]),
    "Probe": (lambda t, x: toast.Probe(x), [0, -1, "x", None, 1.5]),
    "Probe.fit": (
        lambda t, x: toast.Probe(3).fit(*x),
        [
            *[(ROWS, LABELS[1:]), (ROWS, LABELS + 1), (ROWS, LABELS - 1), (ROWS, LABELS.float())],
            *[(ROWS[:0], LABELS[:0]), (ROWS, None), (ROWS, "x")],
        ],
    ),
    "Probe.predict, not fitted": (lambda t, x: toast.Probe(3).predict(ROWS), [None]),
    "Images.sample, n": (lambda t, x: t.images.sample(x, seed=0), [-1, "x", None, 1.5, 61]),
    "Images.sample, seed": (lambda t, x: t.images.sample(3, seed=x), [-1, "x", None, 1.5]),
    "Images.batches": (lambda t, x: list(t.images.batches(x)), COUNTS),
    "Augmentation": (
        lambda t, x: toast.Augmentation(**x)(t.images),
        [{"copies": -1}, {"copies": "x"}, {"copies": 1.5}, {"seed": "x"}, {"seed": -1}],
    ),
    "Encoder": (lambda t, x: toast.Encoder(x), [None, "x", nn.Linear(3, 3)]),
    "Encoder, blocks": (lambda t, x: toast.Encoder(make_tiny_model("vit"), x), ["x"]),
    "Encoder, features": (lambda t, x: toast.Encoder(make_tiny_model("vit"), features=x), ["x", None, 5, "last"]),
    "Encoder.features": (
        lambda t, x: t.encoder.features(x),
        [
            None,
            "x",
            torch.zeros(2, 32, 32, 3),
            np.zeros((2, 3, 32, 32)),
            torch.zeros(3, 32, 32),
            torch.zeros(2, 3, 40, 40),
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        ],
    ),
    "Encoder.encode": (lambda t, x: t.encoder.encode(x), OTHERS),
    "no images": (
        lambda t, call: call(t, t.images[:0]),
        [
            lambda t, none: t.encoder.encode(none),
            lambda t, none: toast.collect_moments(t.encoder, none),
            lambda t, none: toast.collect_activations(t.encoder, none),
            lambda t, none: toast.fuse_spans(t.encoder, "2->4", none),
            lambda t, none: toast.run_plans(t.encoder, none, ["2->4"], calibration=t.moments),
            lambda t, none: t.evaluate(data=toast.ImageSet("none", t.images, none)),
            lambda t, none: t.evaluate(data=toast.ImageSet("none", none, t.images)),
        ],
    ),
    "Encoder.save_pretrained": (lambda t, x: t.encoder.save_pretrained(x), [None, __file__, 5]),
    "load_encoder": (lambda t, x: toast.load_encoder(x), ["nope", "", "a/b/c", "./x", "vit-min", None, 5]),
    "load_encoder, features": (lambda t, x: toast.load_encoder("vit-mini", features=x), ["x", 5, "last"]),
    "load_encoder, device": (lambda t, x: toast.load_encoder("vit-mini", device=x), ["x", 5, "cuda:77", None]),
    "load_encoder, dtype": (lambda t, x: toast.load_encoder("vit-mini", dtype=x), ["x", 5, None]),
    "load_encoder, image_size": (lambda t, x: toast.load_encoder("vit-mini", image_size=x), [-1, 33, "x", 1.5, 7]),
    "load_encoder, blocks": (lambda t, x: toast.load_encoder("vit-mini", blocks=x), ["x", 5]),
    "load_images": (lambda t, x: toast.load_images(x, t.encoder), ["nope", "", "a/b/c", "./x", "digit", None, 5]),
    "load_images, encoder": (lambda t, x: toast.load_images("digits", x), OTHERS),
    "load_images, train_size": (
        lambda t, x: toast.load_images("digits", t.encoder, train_size=x),
        [-1, 10**6, "x", 1.5],
    ),
    "load_images, test_size": (lambda t, x: toast.load_images("digits", t.encoder, test_size=x), [-1, 10**6, "x", 1.5]),
    "load_images, image_column": (lambda t, x: toast.load_images("digits", t.encoder, image_column=x), ["x"]),
    "load_images, seed": (lambda t, x: toast.load_images("digits", t.encoder, train_size=5, seed=x), [-1, "x", 1.5]),
    "load_texts": (lambda t, x: toast.load_texts(x, t.encoder), ["nope", "gpl-3", None]),
    "load_language_model": (lambda t, x: toast.load_language_model(x), ["nope", "vit-mini", None]),
    "paper.published": (lambda t, x: toast.paper.published(x), ["table 99", "x", 99, 1.5, ""]),
    "paper.read_plans": (lambda t, x: toast.paper.read_plans(x, 12), ["x", "1->99", "", None, 5, "table 99"]),
    "reference": (lambda t, x: toast.reference(x), ["x", "", 99, None]),
    "run_notebook": (lambda t, x: toast.run_notebook(x, {"nope": 1}), ["nope", "00", "", None, 5]),
    "Results.table": (lambda t, x: toast.Results().table(x), [None, 5, "x"]),
    "Results.figure": (lambda t, x: toast.Results().figure(x, "x"), [None, 5, "x", np.empty(0)]),
    "plots.similarity": (lambda t, x: toast.plots.similarity(x), [None, "x", ROWS, pd.DataFrame({"a": [1]})]),
    "plots.intervals": (lambda t, x: toast.plots.intervals(pd.DataFrame({"a": [1]}), x=x, y="a"), ["b"]),
    **{f"HeadConfig, {name}": (lambda t, x, name=name: toast.HeadConfig(**{name: x}), HEADS[name]) for name in HEADS},
    **{
        f"Preprocessing, {name}": (lambda t, x, name=name: toast.Preprocessing(**{name: x}), values)
        for name, values in PREPROCESSINGS.items()
    },
    **{
        f"{kind}.fit": (lambda t, x, kind=kind: getattr(toast, kind)().fit(*x), UNEVEN)
        for kind in ("Identity", "Linear", "Affine", "Ridge", "PerTokenType", "PooledContext")
    },
}
"""Name -> function of the things below and of a value, and values that are wrong there."""


@pytest.fixture(scope="module")
def things(tiny_images):
    """An encoder, sets of images with and without labels, moments, and calls that are right but for one argument."""
    encoder = toast.Encoder(make_tiny_model("vit"), preprocessing=tiny_images.train.preprocessing, name="tiny")
    bare = [toast.Images(part.pixels, None, ()) for part in (tiny_images.train, tiny_images.test)]
    images, head = tiny_images.train[:60], toast.HeadConfig(seeds=1, min_steps=1, epochs=1)
    data = toast.ImageSet("tiny", images, tiny_images.test)
    moments = toast.collect_moments(encoder, images)

    def evaluate(encoder=encoder, data=data, plans="2->4", **options):
        return toast.evaluate_plans(encoder, data, plans, **{"calibration": moments, "head": head} | options)

    return SimpleNamespace(
        encoder=encoder,
        images=images,
        data=data,
        bare=toast.ImageSet("bare", *bare),
        moments=moments,
        pixels=torch.zeros(1, 3, 32, 32),
        evaluate=evaluate,
        curve=lambda **x: toast.sample_size_curve(
            encoder, data, "2->4", **{"sizes": [9], "draws": [0], "head": head} | x
        ),
        run=lambda **x: toast.run_plans(encoder, toast.ImageSet("", *bare).test, ["2->4"], calibration=moments, **x),
        compress=lambda **x: toast.compress(encoder, data, **{"remove": 1, "calibration": 20} | x),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_what_is_wrong_is_refused_in_one_sentence(things, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, values = CALLS[call]
    for value in values:
        with pytest.raises((InputError, TypeError)) as caught:
            function(things, value)
        assert len(str(caught.value).splitlines()) == 1 or caught.type is TypeError, (value, str(caught.value))


SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(st.one_of(st.text("0123->. ,+", max_size=9), st.lists(st.tuples(st.integers(-3, 9), st.integers(-3, 20)))))
def test_a_plan_is_read_and_written_the_same_or_refused(text):
    try:
        plan = Plan.parse(text)
    except InputError:
        return
    assert Plan.parse(str(plan)) == plan
    assert list(plan.removed) == sorted(set(plan.removed))
    assert parse_plans([text]) == [plan]
