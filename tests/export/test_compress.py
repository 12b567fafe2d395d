"""One call from a checkpoint and images to a folder: what it reports is what the folder computes."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from toastlib.approximation.align import align_features
from toastlib.approximation.replace import approximate
from toastlib.data.images import ImageSet
from toastlib.errors import InputError
from toastlib.evaluation.costs import map_costs
from toastlib.evaluation.heads import answers, choose_head, form, new_confusions
from toastlib.evaluation.probe import Probe
from toastlib.export.compress import compress
from toastlib.export.folder import compare_folders, report
from toastlib.models.base_architecture import match_labels, own_classifier
from toastlib.models.costs import parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder
from toastlib.models.saving import saved_form
from toastlib.models.sublayers import split_blocks
from toastlib.plan import Plan
from toastlib.selection.plans import every_plan
from toastlib.selection.rerank import run_plans
from toastlib.statistics.collect import collect_moments
from toastlib.translators.base import RECOMMENDED
from toastlib.translators.linear import Linear

CORRECTED = "A map that corrects the features is multiplied into its weights."


def unlabelled(dataset):
    parts = [replace(part, labels=None, class_names=()) for part in (dataset.train, dataset.test)]
    return ImageSet(dataset.name, *parts)


@pytest.mark.parametrize("translator", ["linear", "ridge", "fused", "identity+align", "fused+align"])
def test_the_folder_computes_what_is_reported(tiny_encoder, tiny_images, tmp_path, translator):
    from transformers import AutoModelForImageClassification

    taken = compress(tiny_encoder, tiny_images, remove="0->2 3->4", translator=translator, calibration=40)
    taken.save(tmp_path / "smaller")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "smaller").eval()
    with torch.no_grad():
        found = torch.cat([model(x).logits.argmax(1) for x, _ in tiny_images.test.batches()])
    assert taken.card.after[0] == pytest.approx(100 * (found == tiny_images.test.labels).double().mean().item())
    assert model.config.id2label == {0: "one", 1: "two", 2: "three"}
    assert sum(p.numel() for p in model.parameters()) == taken.card.sizes.parameters[1]
    classes = taken.classes
    assert (classes["after"] * classes["images"]).sum() / classes["images"].sum() == pytest.approx(taken.card.after[0])
    assert taken.lost[0] == pytest.approx(taken.card.before[0] - taken.card.after[0])
    assert {file.name for file in (tmp_path / "smaller").iterdir()} >= {"README.md", "report.html", "config.json"}
    assert [file.name for file in tmp_path.iterdir()] == ["smaller"]


def test_the_default_map_is_aligned_where_a_head_can_absorb_it(tiny_encoder, tiny_images):
    named, unnamed = (
        compress(tiny_encoder, images, remove="1->2", calibration=40)
        for images in (tiny_images, unlabelled(tiny_images))
    )
    assert (named.translator, unnamed.translator) == (f"{RECOMMENDED}+align", RECOMMENDED)


@pytest.mark.parametrize("translator", ["linear", "fused"])
def test_remove_takes_a_number_of_blocks(tiny_encoder, tiny_images, translator):
    taken = compress(tiny_encoder, tiny_images, remove=3, translator=translator, calibration=40)
    assert len(taken.plan.removed) == 3
    if translator == "fused":
        assert all(span.start >= 0 for span in taken.plan)


def test_max_drop_bounds_the_upper_end_of_the_interval(tiny_encoder, tiny_images):
    taken = compress(tiny_encoder, tiny_images, max_drop=99, calibration=40)
    assert len(taken.plan.removed) == 5
    assert list(taken.search["removed"]) == [1, 2, 3, 4, 5]
    assert (taken.search["high"] > taken.search["lost"]).all()
    assert (taken.search["high"] <= 99).all()
    assert set(taken.search["held_out"]) == {30}
    assert list(taken.search["tried"]) == [6, 15, 20, 15, 6]  # of these sizes there are no more plans
    assert set(taken.search["tried_on"]) == {20}
    assert "30 other training images" in taken.summary()
    assert "the promise is " in taken.summary()
    for wrong in (-1, 0, 100, float("nan")):
        with pytest.raises(InputError, match="removes nothing"):
            compress(tiny_encoder, tiny_images, remove="original", calibration=40)
        with pytest.raises(InputError, match="between 0 and 100"):
            compress(tiny_encoder, tiny_images, max_drop=wrong, calibration=40)


def test_too_few_images_for_a_promise_are_told(tiny_encoder, tiny_images):
    """Where no block is worth anything, nothing is lost, and still 30 images cannot tell one point."""
    with torch.no_grad():
        for block in tiny_encoder.blocks:
            for weight in block.parameters():
                weight.mul_(1e-3)
    with pytest.raises(InputError, match=r"cannot be told from 30 held-out .* Some 3[89]\d held-out images would tell"):
        compress(tiny_encoder, tiny_images, max_drop=1, translator="identity", calibration=40)


def test_trial_images_are_never_none(tiny_encoder, tiny_images):
    taken = compress(tiny_encoder, tiny_images, remove=2, calibration=500)
    row = taken.search.iloc[0]
    assert (row["tried"], row["tried_on"], len(taken.search)) == (15, 30, 1)
    assert "60 training images" in taken.card.calibration
    assert "Of 15 plans that were run on up to 30 training images" in taken.summary()


@pytest.mark.slow
def test_test_images_do_not_choose(tiny_encoder, tiny_images):
    other = replace(tiny_images, test=tiny_images.test[:5])
    plans = [compress(tiny_encoder, d, max_drop=20, calibration=40).plan for d in (tiny_images, other)]
    assert plans[0] == plans[1]


def test_without_labels_features_are_compared(tiny_encoder, tiny_images, tmp_path):
    taken = compress(tiny_encoder, unlabelled(tiny_images), remove=1, calibration=40)
    assert (taken.head.module, taken.head.measure, taken.classes) == (None, "similarity", None)
    assert taken.card.before is None
    assert 0 < taken.card.after[0] < 100
    taken.save(tmp_path / "smaller")
    assert "cosine similarity" in (tmp_path / "smaller" / "report.html").read_text()


@pytest.fixture
def classifier(tiny_encoder):
    from transformers import ViTForImageClassification

    config = type(tiny_encoder.model.config)(**tiny_encoder.model.config.to_dict())
    config.id2label = {0: "Two", 1: "one", 2: "three"}
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    tiny_encoder.model.pooler = None
    model.vit = tiny_encoder.model
    return model


@pytest.mark.parametrize("translator", ["linear", "fused"])
def test_without_labels_a_classifier_must_agree_with_itself(
    tiny_encoder, tiny_images, classifier, tmp_path, translator
):
    from transformers import AutoModelForImageClassification

    settings = {"remove": "0->1", "head": classifier, "translator": translator, "calibration": 40}
    taken = compress(tiny_encoder, unlabelled(tiny_images), **settings)
    assert (taken.head.measure, taken.card.before) == ("agreement", None)
    taken.save(tmp_path / "smaller")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "smaller")
    assert opened.config.id2label == {0: "Two", 1: "one", 2: "three"}


def test_a_classifier_of_the_same_names_is_kept_in_its_own_order(tiny_encoder, tiny_images, classifier):
    head = choose_head(tiny_encoder, tiny_images, classifier, seed=0)
    assert (head.module, head.measure) == (classifier, "accuracy")
    with torch.no_grad():
        found = torch.cat([classifier(x).logits.argmax(1) for x, _ in tiny_images.test.batches()])
    names = [head.class_names[k].lower() for k in found]
    expected = [tiny_images.class_names[k] for k in tiny_images.test.labels]
    taken = compress(tiny_encoder, tiny_images, remove="0->1", head=classifier, calibration=40)
    assert taken.card.before[0] == pytest.approx(100 * sum(map(str.__eq__, names, expected)) / len(names))


def test_a_feature_alignment_is_absorbed_by_the_checkpoints_classifier(tiny_encoder, tiny_images, classifier):
    settings = {"remove": "0->2", "head": classifier, "translator": "identity+align", "calibration": 40}
    taken = compress(tiny_encoder, tiny_images, **settings)
    assert taken.head.class_names == ("Two", "one", "three")
    order = torch.randperm(len(tiny_images.train), generator=torch.Generator().manual_seed(0))
    calibration = tiny_images.train[order].sample(90, 0)[:40]
    fit = align_features(taken.encoder, tiny_encoder, calibration)
    pixel_values, _ = next(tiny_images.test.batches())
    with torch.no_grad():
        expected = classifier.classifier(fit.module()(taken.encoder(pixel_values)))
        torch.testing.assert_close(taken.head.module(taken.encoder(pixel_values)), expected, rtol=1e-4, atol=1e-4)


def test_a_feature_alignment_needs_a_head_that_reads_the_features(tiny_encoder, tiny_images, classifier):
    settings = {"remove": "0->2", "translator": "identity+align", "calibration": 40}
    with pytest.raises(InputError, match="take a translator without"):
        compress(tiny_encoder, unlabelled(tiny_images), **settings)
    classifier.classifier = torch.nn.Sequential(classifier.classifier)
    with pytest.raises(InputError, match="take a translator without"):
        compress(tiny_encoder, tiny_images, head=classifier, **settings)


def test_a_checkpoints_classifier_is_found(classifier, tiny_model, tmp_path):
    classifier.save_pretrained(tmp_path / "with")
    tiny_model("vit").save_pretrained(tmp_path / "without")
    assert type(own_classifier(str(tmp_path / "with"))) is type(classifier)
    assert own_classifier(str(tmp_path / "without")) is None
    assert own_classifier("vit-mini") is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_drop": 1, "remove": 2}, "Give remove or max_drop, not both"),
        ({"remove": 6}, "6 blocks cannot be removed: the model has 6, and keeps one"),
        ({"translator": "linaer"}, "did you mean 'linear'?"),
        ({"translator": Linear()}, "The name of a translator is needed here, not a Linear."),
        ({"remove": "-1->1", "translator": "fused"}, "Span -1->1 cannot be folded"),
        ({"remove": "0->9"}, "Span 0->9 leaves the model"),
    ],
)
def test_wrong_input_is_one_sentence(tiny_encoder, tiny_images, settings, says):
    with pytest.raises(InputError, match=re.escape(says)):
        compress(tiny_encoder, tiny_images, calibration=40, **settings)


def test_a_smaller_encoder_is_not_made_smaller_again(taken, tiny_images):
    with pytest.raises(InputError, match="was made smaller already"):
        compress(taken.encoder, tiny_images, remove=1)


def test_the_summary_says_what_went_and_what_it_cost(taken):
    assert repr(taken) == f"CompressionResult(0->2 3->4, {taken.translator}: {taken.verdict()})"
    lines = taken.summary().splitlines()
    assert lines[0] == f"A new linear classifier is trained on 90 training images. {CORRECTED}"
    assert lines[1] == (
        f"Removed: blocks 1, 2 and 4 (plan 0->2 3->4). In place of each span: {RECOMMENDED}+align, fitted on 40 "
        "training images of tiny, seed 0."
    )
    assert [line.split("  ")[0] for line in lines[-5:]] == [
        "accuracy before",
        "accuracy after",
        "points lost",
        "size",
        "time",
    ]
    before, after = taken.card.sizes.parameters
    assert f"{before:,} to {after:,} parameters ({100 * (after / before - 1):+.0f} %)" in lines[-2]
    assert f"{4 * after / 1e6:.3g} MB on disk" in lines[-2]


@pytest.mark.parametrize(
    ("labels", "names", "places"),
    [
        (["Ankle boot", "T-shirt/top", "Bag"], ["ankle_boot", "t-shirt/top", "bag"], [0, 1, 2]),
        (["ankle-boot", "Bag"], ["Bag", "Ankle Boot"], [1, 0]),
        (["T-shirt/top", "Bag"], ["T-shirt-top", "bag"], [0, 1]),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["tinca_tinca", "goldfish"], [0, 1]),
        (["crane", "crane", "Bag"], ["crane", "bag"], [None, 2]),  # two birds and machines of one name
        (["Cat", "cat"], ["cat", "Cat", "CAT"], [1, 0, None]),
        (["cat", "dog"], ["cat", "Cat"], [None, None]),  # two folders for one label
        (["cat", "dog"], ["cats", "LABEL_0"], [None, None]),
        (["c", "c++", "c#"], ["C++", "c", "C#"], [1, 0, 2]),
    ],
)
def test_a_class_is_a_label_by_name(labels, names, places):
    from transformers import ViTConfig

    config = ViTConfig(id2label=dict(enumerate(labels)))
    config.label2id = {label: k for k, label in enumerate(labels)}
    assert match_labels(config, names) == places


def test_other_names_of_a_label_are_in_label2id():
    from transformers import ViTConfig

    config = ViTConfig(id2label={0: "sneaker", 1: "bag"})
    config.label2id = {"sneaker": 0, "Running shoe": 0, "bag": 1}
    assert match_labels(config, ["running_shoe", "bag"]) == [0, 1]


def named(images, *names):
    """The images' first classes alone, under other names."""
    parts = []
    for part in (images.train, images.test):
        some = part[(part.labels < len(names)).nonzero().flatten()]
        parts.append(replace(some, class_names=names))
    return ImageSet(images.name, *parts)


def test_a_classifier_is_kept_for_some_of_its_labels_and_tested_on_those(tiny_encoder, tiny_images, classifier):
    taken = compress(tiny_encoder, named(tiny_images, "ONE", "t_w o"), remove="0->1", head=classifier, calibration=40)
    assert taken.head.class_names == ("Two", "one", "three")
    head = "The checkpoint's own classifier is kept, and tested on 2 of its 3 labels."
    assert taken.card.head == f"{head} {CORRECTED}"
    assert set(taken.classes["class"]) == {"one", "Two"}, "classes have the checkpoint's names"
    part = named(tiny_images, "ONE", "t_w o").test
    with torch.no_grad():
        found = torch.cat([classifier(x).logits.argmax(1) for x, _ in part.batches()])
    right = (found == torch.tensor([1, 0])[part.labels]).double().mean().item()
    assert taken.card.before[0] == pytest.approx(100 * right)
    assert taken.summary().startswith("The checkpoint's own classifier is kept")


def test_a_classifier_that_does_not_know_a_class_stops_and_says_which(tiny_encoder, tiny_images, classifier):
    strange = named(tiny_images, "one", "zebra", "three")
    for wanted in (None, "own"):
        with pytest.raises(InputError, match=r"no label for 'zebra' of the 3 classes .* 'Two', 'one', 'three'.*new"):
            choose_head(tiny_encoder, strange, classifier, 0, wanted)
    head = choose_head(tiny_encoder, strange, classifier, 0, "new")
    assert (type(head.module), head.class_names, head.own) == (Probe, ("one", "zebra", "three"), False)


def test_a_head_that_cannot_be_had_is_refused(tiny_encoder, tiny_images, classifier):
    with pytest.raises(InputError, match="no classifier of its own"):
        compress(tiny_encoder, tiny_images, remove=1, head="own")
    with pytest.raises(InputError, match="needs labels"):
        choose_head(tiny_encoder, unlabelled(tiny_images), classifier, 0, "new")
    with pytest.raises(InputError, match="Unknown head 'mine'"):
        compress(tiny_encoder, tiny_images, remove=1, head="mine")


@pytest.fixture
def tuned(tiny_model, tiny_images, tmp_path):
    """The folder of a fine-tuned classifier, as people have it."""
    from transformers import ViTForImageClassification

    torch.manual_seed(0)
    config = tiny_model("vit").config
    config.id2label, config.label2id = {0: "one", 1: "two", 2: "three"}, {"one": 0, "two": 1, "three": 2}
    ViTForImageClassification(config).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "preprocessor_config.json").write_text(json.dumps(tiny_images.test.preprocessing.to_config()))
    return tmp_path / "tuned"


@pytest.mark.parametrize("translator", ["linear", "fused"])
def test_a_smaller_model_of_a_classifier_is_saved_as_a_classifier(tuned, tiny_images, tmp_path, translator):
    from transformers import AutoModelForImageClassification

    encoder = load_encoder(str(tuned), device="cpu")
    taken = compress(encoder, tiny_images, remove="0->2", translator=translator, calibration=40)
    assert taken.card.head == "The checkpoint's own classifier is kept."
    taken.encoder.save_pretrained(tmp_path / "smaller")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "smaller").eval()
    assert opened.config.id2label == {0: "one", 1: "two", 2: "three"}
    pixels = torch.randn(2, 3, *tiny_images.test.preprocessing.resize)
    with torch.no_grad():
        torch.testing.assert_close(opened(pixels).logits, taken.head.module.classifier(taken.encoder(pixels)))
    taken.encoder.save_pretrained(tmp_path / "features", head=None)
    assert "head" not in (tmp_path / "features" / "README.md").read_text()
    new = compress(encoder, tiny_images, remove="0->2", head="new", calibration=40)
    assert (
        new.card.head
        == f"A new linear classifier is trained on 90 training images, in place of the checkpoint's own. {CORRECTED}"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("translator", ["linear", "fused", "context+align"])
def test_a_checkpoint_of_half_precision_stays_one(tuned, tiny_images, tmp_path, dtype, translator):
    from transformers import AutoModelForImageClassification

    precision = getattr(torch, dtype)
    AutoModelForImageClassification.from_pretrained(tuned).to(precision).save_pretrained(tmp_path / "half")
    shutil.copy(tuned / "preprocessor_config.json", tmp_path / "half")
    encoder = load_encoder(str(tmp_path / "half"), device="cpu")
    taken = compress(encoder, tiny_images, remove="0->2", translator=translator, calibration=40)
    folder = taken.save(tmp_path / "smaller")
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {precision}
    assert taken.card.sizes.bytes[1] == sum(weight.nbytes for weight in weights.values())
    whole = load_file(tmp_path / "half" / "model.safetensors")
    assert taken.card.sizes.bytes[0] == sum(weight.nbytes for weight in whole.values())
    opened = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = torch.cat([opened(x).logits.argmax(1) for x, _ in tiny_images.test.batches()])
    assert taken.card.after[0] == pytest.approx(100 * (found == tiny_images.test.labels).double().mean().item())


def test_the_maps_that_matter_are_compared_on_the_same_images(tiny_encoder, tiny_images):
    taken = compress(tiny_encoder, tiny_images, remove="0->2 3->4", calibration=40)
    names = ["context+align", "linear+align", "fused+align", "identity+align"]
    assert list(taken.maps["translator"]) == ["original", *names]
    assert taken.translator == names[0]
    for name, row in zip(names, taken.maps[1:].itertuples(), strict=True):
        alone = compress(tiny_encoder, tiny_images, remove="0->2 3->4", translator=name, calibration=40)
        assert (row.lost, row.low, row.high) == pytest.approx(alone.lost)
        assert row.lost == pytest.approx(100 * (row.worse - row.better) / len(tiny_images.test))
        assert row.megabytes == pytest.approx(alone.card.sizes.bytes[1] / 1e6)
        assert row.ms_low_1 <= row.ms_1 <= row.ms_high_1
    assert taken.maps["opens"][3] == "transformers"
    smallest = compress(tiny_encoder, tiny_images, remove="0->2 3->4", translator="size", calibration=40)
    assert list(smallest.maps["translator"]) == ["original", *names[2::-1], names[3]]
    assert f"{names[3]} puts nothing in place of the blocks." in smallest.summary()
    assert "--prefer accuracy takes context+align." in smallest.summary()
    assert smallest.fused
    assert smallest.card.sizes.parameters[1] == min(taken.maps["megabytes"]) * 1e6 / 4


def test_a_map_that_cannot_be_had_says_why(tiny_encoder, tiny_images):
    taken = compress(tiny_encoder, tiny_images, remove="-1->1", translator="speed", calibration=40)
    assert taken.translator == "linear+align"
    last = taken.maps.iloc[-1]
    assert (last["translator"], last["worse"] != last["worse"]) == ("fused+align", True)
    assert "no block stands before it" in last["why"]
    assert "no block stands before it" in taken.summary()
    with pytest.raises(InputError, match="no block stands before it"):
        compress(tiny_encoder, tiny_images, remove="-1->1", translator="fused", calibration=40)


def test_sublayers_take_a_map_that_is_smaller_than_they_are(tiny_encoder, tiny_images):
    taken = compress(split_blocks(tiny_encoder), tiny_images, remove="2->3 4->5", calibration=40)
    assert list(taken.maps["translator"]) == ["original", "linear+align", "context+align", "identity+align"]
    assert taken.card.sizes.parameters[1] < taken.card.sizes.parameters[0]
    large = compress(split_blocks(tiny_encoder), tiny_images, remove="2->3 4->5", translator="context", calibration=40)
    assert large.card.sizes.parameters[1] > 0.99 * large.card.sizes.parameters[0]
    assert "as many parameters" in large.verdict()
    assert taken.about_maps()[-1] == "linear+align was taken; --prefer accuracy takes context+align."
    energies = taken.maps["millijoules"]
    said = "Energy: unknown on this machine."
    assert (said in taken.summary()) == (said in report(taken)) == energies.isna().all()
    assert said not in replace(taken, maps=taken.maps.assign(millijoules=2.0)).summary()


@pytest.mark.parametrize("translator", ["per-position", "mlp"])
def test_maps_that_are_fitted_on_activations_are_taken(tiny_encoder, tiny_images, translator):
    taken = compress(tiny_encoder, tiny_images, remove=2, translator=translator, calibration=40)
    kept = sum(parameter_count(tiny_encoder.blocks[k]) for k in range(6) if k not in taken.plan.removed)
    of_maps = len(taken.plan) * map_costs(translator, 32, 17)[0]
    without_blocks = parameter_count(tiny_encoder) - parameter_count(tiny_encoder.blocks)
    assert parameter_count(taken.encoder) == without_blocks + kept + of_maps
    assert len(taken.plan.removed) == 2


def test_the_card_and_the_report_are_of_one_mind_about_times(taken):
    asked = (*taken.card.latency, "pipeline")
    assert taken.card.unclear == tuple(batch for batch in asked if taken.time(batch)[0] == "not clear")


def test_the_verdict_names_what_is_won_and_what_it_costs(taken):
    row = dict.fromkeys(("ms_low_1", "ms_low_32", "ms_high_1", "ms_high_32"), 1.0)
    same = replace(taken, maps=taken.maps.assign(**row), lost=(2.0, 0.5, 3.5))
    size = 100 * (1 - taken.card.sizes.parameters[1] / taken.card.sizes.parameters[0])
    time = "Faster at batch 32: not clear, the two times overlap"
    assert same.verdict() == f"Smaller: yes, {size:.0f} % fewer parameters. {time}. Points lost: 2.0 [0.5, 3.5]."
    times = taken.maps.copy()
    times.loc[1, ["ms_low_32", "ms_high_32"]] = 1e6
    slower = replace(taken, maps=times, card=replace(taken.card, latency={32: (1.0, 1.5)}, sizes=taken.card.sizes))
    assert "Faster at batch 32: no, 50 % MORE time. " in slower.verdict()
    larger = replace(same, card=replace(taken.card, sizes=taken.card.sizes._replace(parameters=(100, 120))))
    assert larger.verdict().startswith("Not worth it. Smaller: no, 20 % MORE parameters. ")
    sizes = taken.card.sizes._replace(parameters=(100, 100))
    nothing = replace(same, card=replace(taken.card, sizes=sizes), lost=(0.5, -0.5, 1.5))
    assert nothing.verdict() == (
        f"Not worth it. Smaller: no, as many parameters. {time}. "
        "Points lost: 0.5 [-0.5, 1.5], which cannot be distinguished from none."
    )


def test_what_breaks_is_counted_by_class_and_by_confusion(taken, tiny_images):
    lost = taken.classes
    assert lost["images"].sum() == len(tiny_images.test)
    assert ((lost["low"] <= lost["lost"]) & (lost["lost"] <= lost["high"])).all()
    assert lost["lost"].to_numpy() == pytest.approx((lost["before"] - lost["after"]).to_numpy())
    assert len(taken.flips) == taken.maps["worse"][1]
    assert all(flip.before == flip.label != flip.after for flip in taken.flips)
    confusions = new_confusions(taken.flips)
    assert confusions["images"].sum() == len(taken.flips)
    assert confusions["images"].is_monotonic_decreasing


def test_the_answers_of_the_checkpoints_own_classifier_choose(tiny_encoder, tiny_images, classifier):
    taken = compress(tiny_encoder, tiny_images, remove=2, translator="linear", head=classifier, calibration=40)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    drawn = tiny_images.train[order].sample(90, 0)
    moments = collect_moments(tiny_encoder, drawn[:40])
    settings = {"calibration": moments, "head": classifier.classifier}
    costs = run_plans(tiny_encoder, drawn[40:], every_plan(6, 2), measures=["divergence"], **settings)["divergence"]
    assert costs.rank()[str(taken.plan)] <= 3  # a race of 15 plans on 50 images
    assert f"its cost in the race is {costs[str(taken.plan)]:.2g}, " in taken.summary()


def test_a_classifier_that_reads_more_than_the_features_chooses_by_its_answers_too(tiny_model, tiny_images):
    """DINOv2's reads the CLS token and the mean of the patches."""
    from transformers import Dinov2ForImageClassification

    torch.manual_seed(0)
    config = tiny_model("dinov2").config
    config.id2label = {0: "one", 1: "two", 2: "three"}
    whole = Dinov2ForImageClassification(config).eval()
    encoder = Encoder(whole.dinov2, preprocessing=tiny_images.train.preprocessing)
    taken = compress(encoder, tiny_images, remove=2, translator="linear", head=whole, calibration=40)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    drawn, costs = tiny_images.train[order].sample(90, 0), {}
    moments = collect_moments(encoder, drawn[:40])
    pixels, _ = next(drawn[40:].batches(50))
    with torch.no_grad():
        expected = whole(pixels).logits.log_softmax(-1)
        for plan in every_plan(5, 2):
            small = saved_form(approximate(encoder, plan, moments, translator="linear"), whole)
            found = small(pixels).logits.log_softmax(-1)
            costs[plan] = torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean").item()
    assert taken.plan in sorted(costs, key=costs.get)[:3]  # a race of 15 plans on 50 images
    assert f"its cost in the race is {costs[taken.plan]:.2g}, " in taken.summary()


def test_answers_that_changed_are_all_those_that_differ(taken, tiny_encoder, tiny_images):
    assert taken.maps["changed"][0] == 0
    row = taken.maps.iloc[1]
    assert row["worse"] + row["better"] <= row["changed"] <= len(tiny_images.test)
    unaligned = compress(tiny_encoder, tiny_images, remove=taken.plan, translator="linear", calibration=40)
    models = [form(one, unaligned.head) for one in (tiny_encoder, unaligned.encoder)]
    before, after = (answers(model, tiny_images.test).argmax(1) for model in models)
    assert unaligned.maps["changed"][1] == (before != after).sum()


def test_without_labels_nothing_is_called_points_or_right(tiny_encoder, tiny_images, classifier, tmp_path):
    settings = {"remove": 2, "translator": "linear", "calibration": 40}
    taken = compress(tiny_encoder, unlabelled(tiny_images), head=classifier, **settings)
    assert "% of answers changed: " in taken.verdict()
    folder = taken.save(tmp_path / "smaller")
    for text in (taken.summary(), (folder / "report.html").read_text()):
        assert not re.search(r"points lost|turn wrong|turn right|worse", text)
        assert "% of answers changed" in text
    assert "% of answers changed" in compare_folders([folder])[0].index


def test_remove_shows_where_to_stop(tiny_encoder, tiny_images, monkeypatch):
    monkeypatch.setattr("toastlib.export.compress.TRIED_ON", 15)
    taken = compress(tiny_encoder, tiny_images, remove=3, translator="linear", calibration=40)
    assert list(taken.search["removed"]) == [1, 2, 3]
    assert set(taken.search["held_out"]) == {30}
    assert (taken.search["low"] <= taken.search["lost"]).all()
    assert taken.search["parameters"].is_monotonic_decreasing
    assert taken.plan == Plan.parse(taken.search["plan"].iloc[-1])
    assert list(taken.ladder()["blocks removed"]) == ["1", "2", "3 (taken)"]
    assert "points lost, 30 held out" in taken.summary()
    without = compress(tiny_encoder, tiny_images, remove=3, translator="linear", calibration=80)
    assert without.ladder().empty


@pytest.mark.slow
def test_onnxruntime_and_int8_are_rows_of_the_table(tiny_encoder, tiny_images):
    pytest.importorskip("onnxscript")
    taken = compress(tiny_encoder, tiny_images, remove="0->2", translator="linear", calibration=40, onnx=True)
    rows = taken.maps.set_index(["translator", "opens"])
    assert list(rows.index) == [
        ("original", "transformers"),
        ("linear", "transformers with toastlib"),
        *((name, f"onnxruntime, {kind}") for name in ("original", "linear") for kind in ("float32", "int8")),
    ]
    same = rows.loc["linear", "transformers with toastlib"], rows.loc["linear", "onnxruntime, float32"]
    assert same[0]["lost"] == same[1]["lost"]
    assert rows.loc["linear", "onnxruntime, int8"]["megabytes"] < same[1]["megabytes"]
    assert (rows["ms_1"] > 0).all()
    assert "In onnxruntime with int8 weights, batch" in taken.summary()
    assert "--prefer" not in taken.summary()


@pytest.mark.parametrize(
    ("translator", "labelled"), [("linear", True), ("fused", True), ("context+align", True), ("linear", False)]
)
def test_fine_tuning_is_measured_against_the_maps_as_they_were_fitted(
    tiny_encoder, tiny_images, tmp_path, translator, labelled
):
    from transformers import AutoModelForImageClassification

    data = tiny_images if labelled else unlabelled(tiny_images)
    plain, tuned = (
        compress(tiny_encoder, data, remove="0->2 3->4", translator=translator, calibration=40, finetune=epochs)
        for epochs in (0, 40)
    )
    assert list(tuned.maps["translator"]) == ["original", f"{translator}, fine-tuned", translator]
    same = ["translator", "lost", "low", "high", "worse", "better", "megabytes", "opens"]
    assert tuned.maps[same].iloc[2].equals(plain.maps[same].iloc[1])
    said = tuned.card.head.removeprefix(plain.card.head)
    how = "by their labels" if labelled else "to the original's features"
    assert said.startswith(f" Then the model is fine-tuned for 40 epochs on 90 training images {how}: ")
    before, after, won = re.search(r"([\d.]+) % before it, ([\d.]+) % after, ([+-][\d.]+) points", said).groups()
    assert float(before) == pytest.approx(plain.card.after[0], abs=0.051)
    assert float(after) == pytest.approx(tuned.card.after[0], abs=0.051)
    assert float(won) > 0
    tuned.save(tmp_path / "tuned")
    page = (tmp_path / "tuned" / "report.html").read_text()
    assert "fine-tuned for 40 epochs" in page
    assert "as it was" not in page
    assert "fine-tuned for 40 epochs" in (tmp_path / "tuned" / "README.md").read_text()
    assert f"--prefer accuracy takes {translator}" not in tuned.summary()
    if labelled:
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
        with torch.no_grad():
            found = torch.cat([model(x).logits.argmax(1) for x, _ in data.test.batches()])
        right = 100 * (found == data.test.labels).double().mean().item()
        assert right == pytest.approx(tuned.card.after[0])


def test_an_own_classifier_is_fine_tuned_under_its_own_labels(tiny_encoder, tiny_images, classifier):
    settings = {"remove": "0->2 3->4", "translator": "linear", "calibration": 40, "head": classifier}
    plain, tuned = (compress(tiny_encoder, tiny_images, finetune=epochs, **settings) for epochs in (0, 40))
    assert tuned.head.own
    assert tuned.card.after[0] > plain.card.after[0] + 10
    assert tuned.head.module.config.id2label == {0: "Two", 1: "one", 2: "three"}
    assert classifier.classifier.weight is not tuned.head.module.classifier.weight


def test_a_promise_is_not_fine_tuned(tiny_encoder, tiny_images):
    for settings in ({}, {"max_drop": 5}):
        with pytest.raises(InputError, match="as they are fitted"):
            compress(tiny_encoder, tiny_images, finetune=1, **settings)
