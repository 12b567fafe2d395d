"""Encoders from folders: the same numbers as the plain model, silently, or one clear sentence."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, PATCHES, SIZES

from toastlib.data.images import catalog, load_images
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.evaluation.evaluate import evaluate_plans
from toastlib.evaluation.probe import HeadConfig
from toastlib.models.base_architecture import own_classifier
from toastlib.models.loading import DTYPES, _timm_preprocessing, load_encoder, resolve_device, resolve_dtype

PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
TEXT = SIZES | {"num_hidden_layers": 7, "vocab_size": 64}
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture
def save(tmp_path):
    """Factory: a model in a folder, with a processor's configuration beside it."""

    def save_to_folder(model, processor=PROCESSOR):
        folder = tmp_path / "tiny-vit"
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return save_to_folder


def edit_weights(folder, edit):
    """Replace the weights by those that `edit` makes of them."""
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def drop(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_folder_loads_to_the_features_of_the_model_saved_there(tiny_model, save, pixel_values, family):
    model = tiny_model(family).requires_grad_(False)  # as encoders are: torch rounds others differently on some CPUs
    encoder = load_encoder(str(save(model)), features="pooler", device="cpu")
    assert torch.equal(encoder(pixel_values), model(pixel_values).pooler_output)


@pytest.mark.parametrize(("family", "name"), [("clip", "CLIP"), ("siglip", "Siglip")])
@torch.no_grad()
def test_of_two_towers_the_vision_tower_is_taken(save, pixel_values, family, name):
    import transformers

    config = getattr(transformers, f"{name}Config")(text_config=TEXT, vision_config=SIZES)
    model = getattr(transformers, f"{name}Model")(config).eval().requires_grad_(False)
    encoder = load_encoder(str(save(model)), features="pooler", device="cpu")
    assert len(encoder.blocks) == SIZES["num_hidden_layers"]
    assert torch.equal(encoder(pixel_values), model.vision_model(pixel_values).pooler_output)


@torch.no_grad()
@torch.no_grad()
def test_a_masked_autoencoder_opens_as_the_encoder_that_sees_every_patch(save, pixel_values):
    import transformers

    torch.manual_seed(0)
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES)).eval()
    encoder = load_encoder(str(save(model)), features="mean", device="cpu")
    model.config.mask_ratio = 0.0
    in_order = torch.arange(PATCHES).repeat(len(pixel_values), 1).float()
    expected = model(pixel_values, noise=in_order).last_hidden_state[:, 1:].mean(1)
    torch.testing.assert_close(encoder(pixel_values), expected)
    assert torch.equal(encoder(pixel_values), encoder(pixel_values))


def test_a_missing_text_tower_is_not_missed(tiny_model, save, pixel_values):
    import transformers

    config = transformers.SiglipConfig(text_config=TEXT, vision_config=SIZES, num_labels=3)
    model = transformers.SiglipForImageClassification(config).eval()
    encoder = load_encoder(str(save(model)), features="mean", device="cpu")
    expected = model.vision_model(pixel_values).last_hidden_state.mean(1)
    torch.testing.assert_close(encoder(pixel_values), expected)


@torch.no_grad()
def test_the_head_of_a_classifier_is_left_behind(save, pixel_values):
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()
    encoder = load_encoder(str(save(model)), device="cpu")
    assert torch.equal(encoder(pixel_values), model.vit(pixel_values).last_hidden_state[:, 0])
    assert not any("classifier" in name for name, _ in encoder.named_parameters())


def test_the_preprocessing_and_the_name_come_from_the_folder(tiny_model, save):
    encoder = load_encoder(str(save(tiny_model("vit"))), device="cpu")
    assert encoder.name == "tiny-vit"
    assert encoder.preprocessing.resize == (32, 32)


@pytest.mark.parametrize(
    ("kind", "size", "resize", "crop"),
    [
        ("ViTFeatureExtractor", 224, (224, 224), None),
        ("DeiTFeatureExtractor", 256, (256, 256), (224, 224)),
        ("CLIPFeatureExtractor", 224, 224, (224, 224)),
    ],
)
def test_old_configurations_are_read_as_the_processors_class_reads_them(tiny_model, save, kind, size, resize, crop):
    folder = save(tiny_model("vit"), {"feature_extractor_type": kind, "size": size})
    preprocessing = load_encoder(str(folder), device="cpu").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (resize, crop)


def test_a_processor_that_needs_torchvision_is_read_from_its_file(tiny_model, save):
    norm = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    folder = save(tiny_model("dinov3"), {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": 32, **norm})
    preprocessing = load_encoder(str(folder), device="cpu").preprocessing
    assert (preprocessing.resize, preprocessing.mean) == ((32, 32), (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("crop", "resize"),
    [
        ({"crop_pct": 0.9, "crop_mode": "center"}, 248),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, (248, 248)),
        ({}, 256),
    ],
)
def test_timms_settings_resize_a_little_larger_and_crop(crop, resize):
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"input_size": [3, 224, 224], "interpolation": "bicubic", **statistics, **crop}
    preprocessing = _timm_preprocessing(config)
    assert (preprocessing.resize, preprocessing.crop, preprocessing.mode) == (resize, (224, 224), "bicubic")
    assert (preprocessing.mean, preprocessing.std) == tuple(map(tuple, statistics.values()))


def test_without_a_processor_the_models_size_is_taken_with_a_warning(tiny_model, save):
    folder = save(tiny_model("vit"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no usable preprocessor_config\.json: images are resized to 32 pixels"):
        encoder = load_encoder(str(folder), device="cpu")
    assert encoder.preprocessing.resize == (32, 32)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "beit"])
def test_a_checkpoint_with_pooler_weights_keeps_its_pooler(tiny_model, save, family):
    encoder = load_encoder(str(save(tiny_model(family))), device="cpu")
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in tiny_model(family).parameters())


@torch.no_grad()
def test_a_pooler_without_weights_is_dropped_silently(tiny_model, save, pixel_values):
    folder = save(tiny_model("vit"))
    edit_weights(folder, drop("pooler"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = load_encoder(str(folder), device="cpu")
    assert not any("pooler" in name for name, _ in encoder.named_parameters())
    assert torch.equal(encoder(pixel_values), tiny_model("vit")(pixel_values).last_hidden_state[:, 0])


def test_asking_for_a_pooler_without_weights_warns_that_it_is_random(tiny_model, save, pixel_values):
    folder = save(tiny_model("vit"))
    edit_weights(folder, drop("pooler"))
    with pytest.warns(UserWarning, match="holds no pooler weights: its pooler is random"):
        encoder = load_encoder(str(folder), features="pooler", device="cpu")
    assert encoder(pixel_values).shape == (3, 32)


@pytest.mark.filterwarnings("ignore:.*its pooler is random")
def test_a_random_pooler_is_the_same_every_time_and_the_callers_seed_untouched(tiny_model, save, pixel_values):
    folder = save(tiny_model("vit"))
    edit_weights(folder, drop("pooler"))
    torch.manual_seed(7)
    first, second = (load_encoder(str(folder), features="pooler", device="cpu")(pixel_values) for _ in range(2))
    drawn = torch.rand(1)
    assert torch.equal(first, second)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(7)))


def test_missing_weights_are_counted_and_named(tiny_model, save):
    folder = save(tiny_model("vit"))
    before = len(load_file(folder / "model.safetensors"))
    edit_weights(folder, drop("layer.2."))
    lost = before - len(load_file(folder / "model.safetensors"))
    with pytest.raises(InputError, match=rf"lacks {lost} weights, .*: layers\.2\.\S+ among them"):
        load_encoder(str(folder))


@pytest.mark.parametrize("family", ["vit", "deit", "clip", "siglip"])
def test_weights_of_more_blocks_than_the_configuration_says_are_refused(tiny_model, save, family):
    """A folder whose config.json was edited to have fewer blocks: it is another model than was trained."""
    folder = save(tiny_model(family))
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["num_hidden_layers"] = 3
    config.write_text(json.dumps(settings))
    with pytest.raises(
        InputError, match=r"has weights that its configuration has no place for, .*\.3\..* others: it has more"
    ):
        load_encoder(str(folder), device="cpu")


def test_an_adapter_that_was_not_merged_is_refused(tiny_model, save):
    folder = save(tiny_model("vit"))
    low_rank = {f"layers.1.attention.q_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    edit_weights(folder, lambda weights: weights | low_rank)
    with pytest.raises(
        InputError, match=r"no place for, layers\.1\.attention\.q_proj\.lora_A\.weight and 1 others: .*adapter"
    ):
        load_encoder(str(folder), device="cpu")


def test_a_folder_without_safetensors_says_what_to_do(tiny_model, save):
    folder = save(tiny_model("vit"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds pytorch_model\.bin alone, a pickle: .* save_pretrained writes"):
        load_encoder(str(folder))
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"holds adapter_config\.json alone, an adapter: merge it into its model"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ({"image_processor_type": "FooProcessor", "size": 32}, "FooProcessor normalises, and names no image_mean"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "Image size .* is not understood"),
        ({"size": {"max_height": 32, "max_width": 64}}, "is not understood"),
    ],
)
def test_a_processor_that_is_not_understood_is_refused(tiny_model, save, processor, says):
    folder = save(tiny_model("vit"), {"image_processor_type": "ViTImageProcessor"} | processor)
    with pytest.raises(InputError, match=says):
        load_encoder(str(folder), device="cpu")


def test_weights_of_another_shape_are_counted_and_named(tiny_model, save):
    folder = save(tiny_model("vit"))
    edit_weights(folder, lambda weights: weights | {"layernorm.weight": torch.ones(48)})
    with pytest.raises(InputError, match=r"lacks 1 weights, or has them in another shape: layernorm\.weight"):
        load_encoder(str(folder))


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def pickle_the_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def require_code(folder):
    code = {"model_type": "homemade", "auto_map": {"AutoConfig": "home.Config", "AutoModel": "home.Model"}}
    (folder / "config.json").write_text(json.dumps(code))
    (folder / "home.py").write_text("raise SystemExit('this code must not run')")


def lose_the_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_the_config(folder):
    (folder / "config.json").unlink()


def break_the_config(folder):
    (folder / "config.json").write_text("{")


def invent_a_type(folder):
    (folder / "config.json").write_text('{"model_type": "vitt"}')


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "header"),
        (pickle_the_weights, r"it holds pytorch_model\.bin alone, a pickle"),
        (require_code, "custom code"),
        (lose_the_weights, r"no file named model\.safetensors"),
        (lose_the_config, "Unrecognized model"),
        (break_the_config, "not a valid JSON"),
        (invent_a_type, "model type `vitt`"),
    ],
)
def test_a_spoilt_folder_is_refused_in_one_sentence(tiny_model, save, spoil, reason):
    folder = save(tiny_model("vit"))
    spoil(folder)
    with pytest.raises(InputError, match=rf"^Model '.*tiny-vit' cannot be loaded.*{reason}") as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no model folder .*nowhere"):
        load_encoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["vit-s", "facebook/dinov2-small"])
def test_without_network_a_hub_model_names_the_embedded_one(name):
    path = catalog.model_path(name)
    with pytest.raises(
        InputError, match=f"Model '{path}' is not on this machine .*; 'vit-mini' is embedded and needs no"
    ):
        load_encoder(name)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Unknown model 'vit-mimi': did you mean 'vit-mini'"):
        load_encoder("vit-mimi")


def test_an_unknown_block_list_is_refused_with_the_one_there_is(tiny_model, save):
    with pytest.raises(InputError, match=r"Unknown block list 'encoder\.layers': did you mean 'layers'"):
        load_encoder(str(save(tiny_model("vit"))), blocks="encoder.layers")


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_of_the_type_asked_for(tiny_model, save, dtype):
    encoder = load_encoder(str(save(tiny_model("vit"))), device="cpu", dtype=dtype)
    assert {p.dtype for p in encoder.parameters()} == {DTYPES[dtype]}


def test_half_precision_weights_are_widened_without_loss(tiny_model, save, pixel_values):
    half = tiny_model("vit").half()
    encoder = load_encoder(str(save(half)), device="cpu")
    saved = dict(half.named_parameters())
    assert all(torch.equal(p, saved[name].float()) for name, p in encoder.model.named_parameters())


def test_an_unknown_type_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Unknown dtype 'float16': did you mean 'bfloat16'"):
        load_encoder("vit-mini", dtype="float16")


@WITHOUT_CUDA
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"Device 'cuda' is not there \(.+\): take 'cpu' or 'auto'"):
        load_encoder("vit-mini", device="cuda")


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="Device 'gpu' is not there"):
        resolve_device("gpu")


@WITHOUT_CUDA
def test_auto_takes_the_cpu_where_there_is_no_gpu():
    assert resolve_device("auto") == torch.device("cpu")


def test_the_embedded_encoder_has_12_blocks_and_tells_images_apart(pixel_values):
    encoder = load_encoder("vit-mini", device="cpu")
    assert (encoder.name, len(encoder.blocks), encoder.dtype) == ("vit-mini", 12, torch.float32)
    features = encoder(pixel_values)
    assert features.shape == (3, encoder.width)
    assert torch.pdist(features).min() > 0.1


@pytest.mark.slow
def test_loading_prints_nothing():
    program = """
import toastlib as toast
encoder = toast.load_encoder("vit-mini", device="cpu")
images = toast.load_images("digits", encoder, train_size=10, test_size=10)
encoder(next(images.train.batches(2))[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("device", "cpu_has_it", "gpu_has_it", "expected"),
    [
        *(("cpu", True, False, torch.bfloat16), ("cpu", False, True, torch.float32)),
        *(("cuda", False, True, torch.bfloat16), ("cuda", True, False, torch.float32)),
        ("mps", True, True, torch.float32),
    ],
)
def test_automatic_precision_is_bfloat16_where_the_hardware_gains(
    monkeypatch, device, cpu_has_it, gpu_has_it, expected
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_has_it)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_it)
    assert resolve_dtype("fastest", torch.device(device)) == expected


@pytest.mark.slow
def test_bfloat16_changes_accuracy_by_little():
    accuracies = {}
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder("vit-mini", device="cpu", dtype=dtype)
        digits = load_images("digits", encoder, train_size=200, test_size=200)
        table = evaluate_plans(encoder, digits, ["2->5"], calibration=100, head=HeadConfig(min_steps=300)).table
        accuracies[dtype] = table.groupby("translator")["accuracy"].mean()
    # 200 images and 3 seeds: one image is 0.17 points. bfloat16 keeps 8 bits, so a few borderline images change sides.
    difference = (accuracies["float32"] - accuracies["bfloat16"]).abs()
    assert difference.max() < 2, difference


@pytest.mark.parametrize("change", ["no weights", "more labels"])
def test_a_classifier_without_its_weights_is_refused(tiny_model, tmp_path, change):
    from transformers import ViTForImageClassification

    ViTForImageClassification(tiny_model("vit").config).save_pretrained(tmp_path)
    if change == "no weights":
        kept = {
            key: value for key, value in load_file(tmp_path / "model.safetensors").items() if "classifier" not in key
        }
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"id2label": {str(k): str(k) for k in range(5)}, "label2id": {str(k): k for k in range(5)}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"The classifier of .* lacks weights, or has others: classifier\.bias\. --head new"
    ):
        own_classifier(str(tmp_path))
    assert own_classifier(str(tmp_path), whole_or_none=True) is None


@pytest.mark.parametrize("step", ["crop_pct", "rescale_offset", "do_flip_channel_order", "do_pad"])
def test_a_step_that_is_not_done_here_is_refused(step):
    with pytest.raises(InputError, match=f"a step that is not done here: {step}"):
        Preprocessing.from_config({"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, step: 0.9})
