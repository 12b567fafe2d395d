"""Saved folders: the same numbers in another process, with and without toastlib, or one clear sentence."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, SIZES, environment_without_toastlib

import toastlib as toast
from toastlib.approximation.replace import replace_spans
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.evaluation.probe import HeadConfig, Probe
from toastlib.models.encoder import Encoder
from toastlib.models.hooks import capture_outputs
from toastlib.models.layers import CODE
from toastlib.models.loading import load_encoder
from toastlib.models.model_card import ModelCardData
from toastlib.models.saving import count, saved_form
from toastlib.plan import Plan, Span
from toastlib.translators.linear import Identity, Linear
from toastlib.translators.trained import MLP, ResMLP, WarmStartMLP

PREPROCESSING = Preprocessing(resize=(32, 32))
PLAN = Plan.parse("0->2 3->4")
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", *CODE}
WITHOUT_CLASSIFIER = {"dinov3"}
TEXT = SIZES | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES = [Identity(), Linear(), MLP(), ResMLP(), WarmStartMLP()]
MAP = "1.translation.weight"


def make_encoder(model, family="vit", **settings):
    features = "mean" if family == "siglip" else "cls"
    return Encoder(model, **{"features": features, "preprocessing": PREPROCESSING, "name": f"tiny-{family}"} | settings)


def make_smaller(encoder, translator=None, plan=PLAN):
    """Random maps in place of the plan's spans: what they approximate does not matter here."""
    torch.manual_seed(2)
    translator = translator or Linear()
    return replace_spans(encoder, {span: translator.build(encoder.width).eval() for span in plan})


def draw_head(classes=3):
    torch.manual_seed(3)
    return torch.nn.Linear(SIZES["hidden_size"], classes)


def open_model(folder, **settings):
    """Frozen as encoders are: torch rounds the pooling of others differently on some CPUs."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, **settings).eval().requires_grad_(False)


def open_classifier(folder, **settings):
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(folder, **settings).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model):
    """Family -> a smaller encoder with a linear head, and the folder that it was saved in."""
    folders = {}
    for family in FAMILIES:
        small = make_smaller(make_encoder(tiny_model(family), family))
        folders[family] = small, tmp_path_factory.mktemp("saved") / family
        small.save_pretrained(folders[family][1], head=draw_head(), class_names=("one", "two", "three"))
    return folders


@pytest.fixture
def folder(tmp_path, tiny_encoder):
    """A smaller encoder alone, saved: to be spoilt."""
    make_smaller(tiny_encoder).save_pretrained(tmp_path / "smaller")
    return tmp_path / "smaller"


def edit_weights(folder, edit):
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def edit_config(folder, edit):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_folder_opens_to_the_same_numbers(saved, pixel_values, family):
    small, folder = saved[family]
    features = small(pixel_values)
    assert torch.equal(open_model(folder)(pixel_values).pooler_output, features)
    logits = torch.nn.functional.linear(features, draw_head().weight, draw_head().bias)
    assert torch.equal(open_classifier(folder)(pixel_values).logits, logits)
    assert torch.equal(load_encoder(str(folder), device="cpu")(pixel_values), features)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_holds_what_was_counted_and_no_removed_block(saved, family):
    small, folder = saved[family]
    tensors = load_file(folder / "model.safetensors")
    counted = sum(p.numel() for p in small.parameters()) + sum(p.numel() for p in draw_head().parameters())
    assert sum(t.numel() for t in tensors.values()) == counted
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert (folder / "model.safetensors").stat().st_size == 4 * counted + header
    assert sum("translation" in name for name in tensors) == len(PLAN)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_file_is_a_pickle(saved, family):
    folder = saved[family][1]
    assert {file.name for file in folder.iterdir()} == FILES
    for file in folder.iterdir():
        content = file.read_bytes()
        assert content[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # torch.save writes zip or pickle
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.loads(content)
    code = (folder / "modeling_toast.py").read_text()
    assert "pickle" not in code.replace("no pickle", "")
    assert "torch.load" not in code


OPEN_ALL = """
import sys
from pathlib import Path
{first}
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification
for folder, expected in zip(sys.argv[1::2], sys.argv[2::2]):
    expected = load_file(expected)
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder{trust}).eval()(expected["pixels"]).pooler_output
        model = AutoModelForImageClassification.from_pretrained(folder{trust}).eval()
        logits = model(expected["pixels"]).logits
    assert torch.equal(features, expected["features"]) and torch.equal(logits, expected["logits"]), folder
    print(Path(folder).name, type(model).__module__.split(".")[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "trust", "module"),
    [
        ("import toastlib", "", "toastlib"),
        (
            "import importlib.util; assert not importlib.util.find_spec('toastlib')",
            ", trust_remote_code=True",
            "transformers_modules",
        ),
    ],
    ids=["with", "without"],
)
@torch.no_grad()
def test_another_process_computes_the_same_with_and_without_toastlib(
    saved, tmp_path, pixel_values, first, trust, module
):
    python = environment_without_toastlib(tmp_path / "venv") if trust else sys.executable
    arguments = []
    for family, (small, folder) in saved.items():
        features = small(pixel_values)
        logits = torch.nn.functional.linear(features, draw_head().weight, draw_head().bias)
        file = tmp_path / f"{family}.safetensors"
        save_file({"pixels": pixel_values, "features": features.contiguous(), "logits": logits}, file)
        arguments += [folder, file]
    program = OPEN_ALL.format(first=first, trust=trust)
    environment = {name: value for name, value in os.environ.items() if not trust or name != "PYTHONPATH"}
    command = [python, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{family} {module}" for family in FAMILIES]


def test_importing_toastlib_imports_neither_torch_nor_transformers():
    program = "import sys, toastlib; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_toastlib_after_transformers_registers_at_once(saved):
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from toastlib.models.registration import register_saved_form

    assert AutoModel.__module__ in sys.modules
    finders = list(sys.meta_path)
    CONFIG_MAPPING._extra_content.pop("toast")
    register_saved_form()
    assert CONFIG_MAPPING["toast"].__module__ == "toastlib.models.configuration_toast"
    assert sys.meta_path == finders


def test_without_toastlib_and_without_trust_it_says_what_to_pass(saved, monkeypatch):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "toast")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        open_model(saved["vit"][1])


@pytest.mark.parametrize("translator", ARCHITECTURES, ids=lambda translator: translator.name)
@torch.no_grad()
def test_every_translators_map_is_saved(tiny_encoder, tmp_path, pixel_values, translator):
    small = make_smaller(tiny_encoder, translator)
    small.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values))


@torch.no_grad()
def test_affine_and_low_rank_maps_are_saved(tiny_encoder, tmp_path, pixel_values):
    maps = {
        Span(0, 2): torch.nn.Linear(32, 32),
        Span(3, 4): torch.nn.Sequential(torch.nn.Linear(32, 4, bias=False), torch.nn.Linear(4, 32)),
    }
    small = replace_spans(tiny_encoder, maps)
    small.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values))


@pytest.mark.parametrize(
    "name", ["affine", "ridge", "separate", "context", "low-rank", "orthogonal", "diagonal", "scalar"]
)
@torch.no_grad()
def test_every_closed_form_is_saved(tiny_encoder, tiny_images, tmp_path, pixel_values, name):
    small = toast.approximate(
        tiny_encoder, "0->2 3->4", toast.collect_moments(tiny_encoder, tiny_images.train, folds=5), translator=name
    )
    small.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert sum(map(torch.Tensor.numel, opened.parameters())) == toast.parameter_count(small)
    # Not to the bit: one token at a time is multiplied otherwise where the weights lie on another boundary.
    torch.testing.assert_close(opened(pixel_values).pooler_output, small(pixel_values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_maps_in_context_are_saved_whatever_stands_before_the_patches(
    tiny_model, tiny_images, tmp_path, pixel_values, family
):
    encoder = make_encoder(tiny_model(family), family)
    small = toast.approximate(
        encoder, "0->2", toast.collect_moments(encoder, tiny_images.train, folds=5), translator="context"
    )
    small.save_pretrained(tmp_path)
    torch.testing.assert_close(
        open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values), rtol=1e-5, atol=1e-6
    )
    assert "a map" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", [torch.nn.Sequential, torch.nn.ModuleList])
def test_a_block_list_that_is_called_stays_one(kind):
    from toastlib.models.layers import shorten

    blocks = [torch.nn.Identity() for _ in range(4)]
    before = kind(*blocks) if kind is torch.nn.Sequential else kind(blocks)
    short = shorten(before, {(0, 2): torch.nn.Identity()}, 0)
    assert type(short) is kind
    assert [short[0], short[2]] == [blocks[0], blocks[3]]


def test_a_map_of_unknown_layers_is_refused(tiny_encoder, tmp_path):
    small = replace_spans(tiny_encoder, {Span(0, 2): torch.nn.Bilinear(2, 2, 2)})
    with pytest.raises(InputError, match=r"a layer of class Bilinear cannot be saved; known are Identity, Linear"):
        small.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@torch.no_grad()
def test_an_original_encoder_is_saved_as_it_is(tiny_encoder, tmp_path, pixel_values):
    tiny_encoder.save_pretrained(tmp_path)
    assert torch.equal(load_encoder(str(tmp_path), device="cpu")(pixel_values), tiny_encoder(pixel_values))


@pytest.mark.parametrize("features", ["mean", "pooler"])
@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "clip", "siglip"])
@torch.no_grad()
def test_the_features_are_those_that_were_saved(tiny_model, tmp_path, pixel_values, family, features):
    small = make_smaller(make_encoder(tiny_model(family), family, features=features))
    small.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values))
    opened = load_encoder(str(tmp_path), device="cpu")
    assert opened.feature_kind == features
    assert torch.equal(opened(pixel_values), small(pixel_values))
    assert load_encoder(str(tmp_path), device="cpu", features="mean").feature_kind == "mean"


@torch.no_grad()
def test_an_opened_encoder_is_measured_and_saved_like_any_other(saved, tmp_path, tiny_images, pixel_values):
    small, folder = saved["vit"]
    opened = load_encoder(str(folder), device="cpu")
    assert (opened.name, opened.preprocessing) == ("vit", PREPROCESSING)
    assert len(opened.blocks) == 4
    moments = toast.collect_moments(opened, tiny_images.train, folds=0)
    assert moments.blocks == toast.collect_moments(small, tiny_images.train, folds=0).blocks
    opened.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values))
    assert "`0->2`" in (tmp_path / "README.md").read_text()


@torch.no_grad()
def test_an_opened_model_saves_itself_with_everything_that_belongs_to_it(saved, tmp_path, pixel_values):
    model = open_classifier(saved["vit"][1])
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    assert torch.equal(open_classifier(tmp_path)(pixel_values).logits, model(pixel_values).logits)


def test_pushing_uploads_everything_that_belongs_to_it(saved, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, token):
            uploaded["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded.update(repo=repo_id, files={file.name for file in Path(folder_path).iterdir()})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    open_model(saved["vit"][1]).push_to_hub("smaller", token="mine", commit_message="smaller")
    assert uploaded == {"token": "mine", "repo": "me/smaller", "files": FILES}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_type(tiny_encoder, tmp_path, dtype):
    make_smaller(tiny_encoder.to(dtype)).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert open_model(tmp_path).dtype == dtype
    assert load_encoder(str(tmp_path), device="cpu").dtype == torch.float32


@torch.no_grad()
def test_a_pooler_that_the_original_lacks_stays_away(tiny_encoder, tmp_path, pixel_values):
    tiny_encoder.model.pooler = None
    small = make_smaller(tiny_encoder)
    small.save_pretrained(tmp_path)
    assert not any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))
    assert torch.equal(open_model(tmp_path)(pixel_values).pooler_output, small(pixel_values))


def make_classifier(family):
    """A classifier of transformers with random weights; of DeiT, the one with two heads."""
    import transformers

    prefix, settings = FAMILIES[family]
    settings = SIZES | settings | {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}
    if family in ("clip", "siglip"):
        name = {"clip": "CLIP", "siglip": "Siglip"}[family]
        config = getattr(transformers, f"{name}Config")(
            text_config=TEXT, vision_config=SIZES, id2label=settings["id2label"]
        )
    else:
        name = prefix
        config = getattr(transformers, f"{name}Config")(**settings)
    name += "ForImageClassification" + ("WithTeacher" if family == "deit" else "")
    config.architectures = [name]
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_CLASSIFIER])
@torch.no_grad()
def test_a_checkpoints_own_classifier_is_kept(tmp_path, pixel_values, family):
    classifier = make_classifier(family)
    tower = next(m for _, m in classifier.named_modules() if type(m).__name__ == f"{FAMILIES[family][0]}Model")
    small = make_smaller(make_encoder(copy.deepcopy(tower), family))
    before = copy.deepcopy(classifier)
    small.save_pretrained(tmp_path, head=classifier)

    opened = open_classifier(tmp_path)
    assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}
    tower.set_submodule(small.blocks_path, small.blocks)  # the oracle: surgery on the classifier itself
    assert torch.equal(opened(pixel_values).logits, classifier(pixel_values).logits)
    assert not torch.equal(opened(pixel_values).logits, before(pixel_values).logits)
    assert torch.equal(load_encoder(str(tmp_path), device="cpu")(pixel_values), small(pixel_values))


def test_the_classifier_of_another_family_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="The classifier of a Dinov2ForImageClassification is not for a ViTModel"):
        tiny_encoder.save_pretrained(tmp_path, head=make_classifier("dinov2"))


def test_a_pipeline_gives_the_labels_of_the_probe(tiny_encoder, tiny_images, tmp_path):
    from PIL import Image
    from transformers import pipeline

    small = make_smaller(tiny_encoder)
    with torch.no_grad():
        train, test = (
            torch.cat([small(x) for x, _ in part.batches()]) for part in (tiny_images.train, tiny_images.test)
        )
    probe = Probe(3, HeadConfig(seeds=[0], min_steps=50)).fit(train[None], tiny_images.train.labels)
    names = tiny_images.class_names
    small.save_pretrained(tmp_path, head=probe, class_names=names)

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in tiny_images.test.pixels]
    answers = pipeline("image-classification", str(tmp_path))(pictures, top_k=1)
    expected = [names[index] for index in probe.predict(test[None])[0, 0]]
    assert [answer[0]["label"] for answer in answers] == expected
    assert len(set(expected)) > 1


def test_a_probe_of_several_heads_is_refused(tiny_encoder, tmp_path):
    probe = Probe(3, HeadConfig(seeds=[0, 1])).fit(torch.randn(1, 9, 32), torch.arange(9) % 3)
    with pytest.raises(InputError, match="The probe holds 2 heads"):
        tiny_encoder.save_pretrained(tmp_path, head=probe)


def test_a_head_that_does_not_fit_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="The head is for features of 8 values, and tiny has 32"):
        tiny_encoder.save_pretrained(tmp_path, head=torch.nn.Linear(8, 3))
    with pytest.raises(InputError, match="There are 2 class names for 3 classes"):
        tiny_encoder.save_pretrained(tmp_path, head=draw_head(), class_names=("one", "two"))
    with pytest.raises(InputError, match="not a GELU"):
        tiny_encoder.save_pretrained(tmp_path, head=torch.nn.GELU())


def test_labels_train_the_model(saved, pixel_values):
    model = open_classifier(saved["vit"][1]).train()
    labels = torch.tensor([0, 1, 2])
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "translation" in name)


def test_what_cannot_be_opened_again_is_refused(tiny_encoder, tiny_model, tmp_path):
    import transformers

    plain = Encoder(torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(4, 4)])), blocks="0", features="mean")
    with pytest.raises(InputError, match="is no transformers model"):
        plain.save_pretrained(tmp_path)
    twice = make_smaller(make_smaller(tiny_encoder), plan=Plan.parse("2->3"))
    with pytest.raises(InputError, match="made smaller in several steps"):
        twice.save_pretrained(tmp_path)
    tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SIZES))
    with pytest.raises(InputError, match="CLIPVisionModelWithProjection is more than an encoder: pass its part"):
        make_encoder(tower, blocks="vision_model.encoder.layers")
    wider = make_encoder(tiny_model("vit"))
    wider.model.layernorm = torch.nn.Identity()
    with pytest.raises(InputError, match=r"is not what its configuration makes: base\.layernorm\.bias differs"):
        wider.save_pretrained(tmp_path)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_the_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_the_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_map(folder):
    edit_weights(folder, lambda tensors: {name: t for name, t in tensors.items() if not name.endswith(MAP)})


def reshape_a_map(folder):
    edit_weights(folder, lambda tensors: {n: t[:16].clone() if n.endswith(MAP) else t for n, t in tensors.items()})


def add_a_weight(folder):
    edit_weights(folder, lambda tensors: tensors | {"surplus": torch.ones(1)})


def change(**entries):
    return lambda folder: edit_config(folder, lambda config: config.update(entries))


def lengthen_a_span(folder):
    edit_config(folder, lambda config: config["spans"][1].update(end=5))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "incomplete metadata, file not fully covered"),
        (lose_the_weights, r"no file named model\.safetensors"),
        (pickle_the_weights, r"(pytorch_model\.bin|no file named model\.safetensors)"),
        (lose_a_map, r"do not belong to its config\.json: 1 are missing.* base\.layers\.1\.translation\.weight"),
        (reshape_a_map, r"do not belong to its config\.json: 1 .*another shape, base\.layers\.1\.translation\.weight"),
        (add_a_weight, r"do not belong to its config\.json: 1 .*left over.* surplus"),
        (lengthen_a_span, r"do not belong to its config\.json"),
        (change(spans=[]), r"do not belong to its config\.json"),
        (change(spans=[{"start": 0, "end": 2, "map": ["Magic", 3]}]), "a layer 'Magic', and only Identity, Linear"),
        (change(format=99), "was saved in format 99"),
        (change(base=None), "names no base model"),
        (change(base={}), "names no base model"),
        (change(base={"model_type": "vitt"}), "Unrecognized model identifier: vitt"),
        (
            change(blocks="encoder.layer"),
            r"no block list 'encoder\.layer': the model was saved with transformers 5",
        ),
    ],
)
def test_a_spoilt_folder_is_refused_in_one_sentence_by_us_and_by_transformers(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(InputError, match=rf"^Model '.*smaller' cannot be loaded: .*{reason}") as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception, match=reason):
        open_model(folder)


def test_an_encoder_alone_makes_up_no_classifier(folder, pixel_values):
    with pytest.raises(ValueError, match="has no classifier for 2 classes: open it by AutoModel, or pass"):
        open_classifier(folder)
    model = open_classifier(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert model(pixel_values).logits.shape == (3, 5)


def test_a_classifier_for_other_classes_is_not_replaced_unasked(saved):
    folder = saved["vit"][1]
    with pytest.raises(ValueError, match="has no classifier for 5 classes"):
        open_classifier(folder, num_labels=5)
    assert open_classifier(folder, num_labels=5, ignore_mismatched_sizes=True).classifier.out_features == 5


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(resize=(32, 32)),
        Preprocessing(resize=48, crop=(32, 32), mode="bicubic", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        Preprocessing(resize=(40, 36), crop=(32, 32), mode="nearest-exact", scale=1.0),
        Preprocessing(),
    ],
)
def test_the_processor_prepares_images_as_we_do(tmp_path, preprocessing):
    from PIL import Image
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_config()))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert Preprocessing.from_config(processor.to_dict()) == preprocessing
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    found = preprocessing(torch.from_numpy(image).permute(2, 0, 1)[None])
    step = preprocessing.scale / min(preprocessing.std)  # one grey level; bicubic differs by two at most
    torch.testing.assert_close(found, expected, rtol=0, atol=2.01 * step)


def test_the_card_says_what_was_made_and_measured(tiny_encoder, tmp_path):
    card = ModelCardData(
        base="someone/some-vit",
        calibration="500 training images of digits",
        evaluation="360 test images of digits",
        before=(95.0, 92.2, 96.8),
        after=(93.5, 90.1, 95.7),
        latency={1: (4.0, 3.0), 32: (61.2, 40.5)},
        unclear=(1,),
        device="2 cores",
    )
    small = make_smaller(tiny_encoder, plan=Plan.parse("-1->0 2->5"))
    small.save_pretrained(tmp_path, head=draw_head(), card=card)
    text = (tmp_path / "README.md").read_text()
    parameters = [sum(p.numel() for p in e.parameters()) + 99 for e in (tiny_encoder, small)]  # 32 * 3 + 3 of the head
    for line in (
        "base_model: someone/some-vit",
        "pipeline_tag: image-classification",
        "- `-1->0`: block 0 removed; a linear map takes the output of the embedding to",
        "- `2->5`: blocks 3, 4, 5 removed; a linear map takes the output of block 2 to",
        "The maps were fitted on 500 training images of digits",
        "| parameters | {:,} | {:,} |".format(*parameters),
        "| accuracy (95 % interval) | 95.00 % (92.20 to 96.80) | 93.50 % (90.10 to 95.70) |",
        "| milliseconds per batch of 1 (which is faster is not clear) | 4 | 3 |",
        "| milliseconds per batch of 32 | 61.2 | 40.5 |",
        "Latency was measured on 2 cores.",
        "trust_remote_code=True",
        'AutoModelForImageClassification.from_pretrained("FOLDER-OR-HUB-ID")',
    ):
        assert line in text
    assert [line for line in text.splitlines() if line.startswith("| GFLOPs per image | 0.0")]


def test_nothing_in_a_folder_says_where_it_was_made(saved):
    for _, folder in saved.values():
        for name in FILES - {"model.safetensors", *CODE}:
            assert os.sep + "tmp" not in (folder / name).read_text()
            assert str(Path.home()) + os.sep not in (folder / name).read_text()


def test_flops_are_counted_with_the_attention_and_without_weights(tiny_encoder):
    small = make_smaller(tiny_encoder, plan=Plan.parse("2->5"))
    counted = count(small, saved_form(small))
    tokens, width = 17, 32
    block = 2 * tokens * (4 * width**2 + 2 * width * 64) + 4 * tokens**2 * width  # projections, MLP; attention
    assert counted.flops[0] - counted.flops[1] == 3 * block - 2 * tokens * width**2
    assert counted.parameters == tuple(sum(p.numel() for p in e.parameters()) for e in (tiny_encoder, small))


@torch.no_grad()
def test_it_exports_with_an_open_batch_size(saved, pixel_values):
    model = open_classifier(saved["vit"][1])
    batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes=batch)
    for size in (1, 3):
        found = program.module()(pixel_values=pixel_values[:size]).logits
        torch.testing.assert_close(found, model(pixel_values[:size]).logits)


@torch.no_grad()
def test_it_compiles_as_one_graph(saved, pixel_values):
    model = open_classifier(saved["vit"][1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # without a C++ compiler
    torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "siglip"])
@pytest.mark.parametrize("with_head", [False, True])
def test_hidden_states_and_attentions_are_had_as_of_any_model(tiny_model, tmp_path, pixel_values, family, with_head):
    smaller = make_smaller(make_encoder(tiny_model(family), family))
    smaller.save_pretrained(tmp_path / "one", head=draw_head() if with_head else None)
    model = (open_classifier if with_head else open_model)(tmp_path / "one", attn_implementation="eager")
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True, output_attentions=True)
        blocks = [-1, *range(len(smaller.blocks))]
        with capture_outputs(smaller, blocks) as expected:
            smaller(pixel_values)
        as_tuple = model(pixel_values, return_dict=False)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1 == len(blocks)
    for state, block in zip(output.hidden_states, blocks, strict=True):
        torch.testing.assert_close(state, expected[block], rtol=1e-4, atol=1e-5)
    kept = sum(not hasattr(block, "translation") for block in smaller.blocks)
    assert [attention.shape[-1] for attention in output.attentions] == [state.shape[1]] * kept
    plain = model(pixel_values)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], plain[0])


def test_the_configuration_says_what_tools_ask_of_any_model(tiny_model, tmp_path):
    from transformers import AutoConfig

    make_smaller(make_encoder(tiny_model("clip"), "clip")).save_pretrained(tmp_path / "one")
    config = AutoConfig.from_pretrained(tmp_path / "one")
    asked = (config.num_hidden_layers, config.image_size, config.patch_size, config.hidden_size)
    assert asked == (4, SIZES["image_size"], SIZES["patch_size"], SIZES["hidden_size"])
    assert isinstance(open_model(tmp_path / "one").get_input_embeddings(), torch.nn.Module)
