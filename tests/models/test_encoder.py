"""Encoders on every family: blocks found, features named, and the walk block by block equal to the model's own."""

import pytest
import torch
from tiny import FAMILIES, PATCHES, SIZES
from torch import nn

from toastlib.approximation.replace import approximate, replace_spans
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError
from toastlib.models.encoder import Encoder
from toastlib.models.loading import load_encoder
from toastlib.models.structure import find_blocks
from toastlib.plan import Span

BLOCK_LISTS = {
    "vit": "layers",
    "deit": "layers",
    "dinov2": "encoder.layer",
    "dinov2-registers": "encoder.layer",
    "dinov3": "model.layer",
    "clip": "encoder.layers",
    "siglip": "encoder.layers",
    "beit": "layers",
    "beit-cls": "layers",
}
SPECIAL_TOKENS = {"deit": 2, "dinov2-registers": 5, "dinov3": 5, "siglip": 0}  # 1 for the others
WITH_CLS = [family for family in FAMILIES if family != "siglip"]
CASES = [(family, features) for family in FAMILIES for features in ("cls", "mean", "pooler")]
CASES.remove(("siglip", "cls"))


class Stack(nn.Module):
    """A plain transformer, its blocks in a list called `stages`: (batch, tokens, 16) to the same shape."""

    def __init__(self, depth=4):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(depth)]
        self.stages = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(16)

    def forward(self, inputs):
        hidden = self.embed(inputs)
        for stage in self.stages:
            hidden = stage(hidden)
        return self.norm(hidden)


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def tokens():
    return torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2))


def hook_count(encoder):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_block_list_is_found_by_structure(tiny_model, family):
    encoder = Encoder(tiny_model(family), features="mean")
    assert encoder.blocks_path == BLOCK_LISTS[family]
    assert len(encoder.blocks) == 5
    assert encoder.width == 32


def test_of_several_block_lists_the_largest_is_found():
    from transformers import SiglipConfig, SiglipModel

    small, large = SIZES | {"num_hidden_layers": 2, "vocab_size": 64}, SIZES
    two_towers = SiglipModel(SiglipConfig(text_config=small, vision_config=large))
    assert find_blocks(two_towers) == "vision_model.encoder.layers"
    two_towers = SiglipModel(SiglipConfig(text_config=large | {"vocab_size": 64}, vision_config=small))
    assert find_blocks(two_towers) == "text_model.encoder.layers"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_before_the_patches_are_counted(tiny_model, pixel_values, family):
    encoder = Encoder(tiny_model(family), features="mean")
    assert encoder.special_tokens == SPECIAL_TOKENS.get(family, 1)
    assert encoder.embed(pixel_values).hidden.shape == (3, encoder.special_tokens + PATCHES, 32)


@pytest.mark.parametrize("family", WITH_CLS)
@torch.no_grad()
def test_cls_is_the_first_token_that_the_plain_model_returns(tiny_model, pixel_values, family):
    output = tiny_model(family)(pixel_values)
    expected = output.pooler_output if family == "clip" else output.last_hidden_state[:, 0]
    assert torch.equal(Encoder(tiny_model(family)).features(pixel_values), expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "clip"])
@torch.no_grad()
def test_mean_is_the_mean_of_the_patches_that_the_plain_model_returns(tiny_model, pixel_values, family):
    patches = tiny_model(family)(pixel_values).last_hidden_state[:, -PATCHES:]
    features = Encoder(tiny_model(family), features="mean").features(pixel_values)
    torch.testing.assert_close(features, patches.mean(1))


@torch.no_grad()
def test_clips_mean_of_patches_is_normed_as_its_cls_token_is(tiny_model, pixel_values):
    model = tiny_model("clip")
    expected = model.post_layernorm(model(pixel_values).last_hidden_state[:, 1:].mean(1))
    torch.testing.assert_close(Encoder(tiny_model("clip"), features="mean").features(pixel_values), expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pooler_is_what_the_plain_model_pools(tiny_model, pixel_values, family):
    frozen = tiny_model(family).requires_grad_(False)  # as encoders are: torch rounds others differently on some CPUs
    expected = frozen(pixel_values).pooler_output
    assert torch.equal(Encoder(tiny_model(family), features="pooler").features(pixel_values), expected)


@pytest.mark.parametrize(("family", "features"), CASES)
@torch.no_grad()
def test_start_every_block_and_finish_make_the_features(tiny_model, pixel_values, family, features):
    encoder = Encoder(tiny_model(family), features=features)
    shared = encoder.embed(pixel_values)
    hidden = shared.hidden
    for block in range(len(encoder.blocks)):
        hidden = encoder.run_block(block, hidden, shared)
    assert torch.equal(encoder.pool(hidden, pixel_values), encoder.features(pixel_values))


@torch.no_grad()
def test_finish_takes_states_of_more_images_than_inputs(tiny_encoder, pixel_values):
    shared = tiny_encoder.embed(pixel_values)
    hidden = shared.hidden
    for block in range(len(tiny_encoder.blocks)):
        hidden = tiny_encoder.run_block(block, hidden, shared)
    twice = tiny_encoder.pool(torch.cat([hidden, hidden]), pixel_values)
    assert torch.equal(twice, tiny_encoder(pixel_values).repeat(2, 1))


@torch.no_grad()
def test_calling_the_encoder_gives_its_features(tiny_encoder, pixel_values):
    assert torch.equal(tiny_encoder(pixel_values), tiny_encoder.features(pixel_values))


def test_the_encoder_computes_without_dropout_and_without_gradients(tiny_model, pixel_values):
    model = tiny_model("vit", hidden_dropout_prob=0.5).train()
    encoder = Encoder(model)
    assert torch.equal(encoder(pixel_values), encoder(pixel_values))
    assert not encoder(pixel_values).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_encoder_reports_the_type_it_was_moved_to(tiny_encoder, pixel_values, dtype):
    encoder = tiny_encoder.to(dtype)
    assert encoder.dtype == encoder(pixel_values.to(dtype)).dtype == dtype
    assert encoder.device == torch.device("cpu")


@torch.no_grad()
def test_inside_block_list_the_model_runs_the_given_modules(tiny_model, tiny_encoder, pixel_values):
    with tiny_encoder.block_list(tiny_encoder.blocks[:2]):
        shallow = tiny_encoder.model(pixel_values).last_hidden_state
    reference = tiny_model("vit", num_hidden_layers=6)
    del reference.layers[2:]
    assert torch.equal(shallow, reference(pixel_values).last_hidden_state)


def test_block_list_restores_the_blocks_after_an_error(tiny_encoder):
    blocks = tiny_encoder.blocks
    with pytest.raises(RuntimeError, match="half way"), tiny_encoder.block_list([nn.Identity()]):
        raise RuntimeError("half way")
    assert tiny_encoder.blocks is blocks


@pytest.mark.parametrize("method", ["features", "embed"])
def test_a_failing_forward_leaves_no_hook_and_no_foreign_block(tiny_encoder, method):
    blocks = tiny_encoder.blocks
    with pytest.raises(ValueError, match=r"image size|size"):
        getattr(tiny_encoder, method)(torch.zeros(1, 3, 40, 40))
    assert hook_count(tiny_encoder) == 0
    assert tiny_encoder.blocks is blocks


def test_features_leave_no_hook(tiny_encoder, pixel_values):
    tiny_encoder.features(pixel_values)
    assert hook_count(tiny_encoder) == 0


@torch.no_grad()
def test_a_plain_module_becomes_an_encoder_when_its_blocks_are_named(stack, tokens):
    encoder = Encoder(stack, blocks="stages", features="mean")
    assert (len(encoder.blocks), encoder.width) == (4, 16)
    torch.testing.assert_close(encoder(tokens), stack(tokens).mean(1))


@torch.no_grad()
def test_a_plain_module_walks_block_by_block(stack, tokens):
    encoder = Encoder(stack, blocks="stages")
    shared = encoder.embed(tokens)
    assert torch.equal(shared.hidden, stack.embed(tokens))
    hidden = shared.hidden
    for block in range(4):
        hidden = encoder.run_block(block, hidden, shared)
    assert torch.equal(encoder.pool(hidden, tokens), stack(tokens)[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("nested", [True, False])
def test_torchs_own_encoder_which_looks_into_its_first_layer_walks_too(tokens, nested):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=nested)
    encoder = Encoder(model, blocks="layers")
    shared = encoder.embed(tokens)
    hidden = shared.hidden
    for block in range(3):
        hidden = encoder.run_block(block, hidden, shared)
    assert torch.equal(encoder.pool(hidden, tokens), encoder(tokens))


def test_tokens_before_images_are_refused_and_the_remedy_named(tokens):
    class TokensFirst(Stack):
        def forward(self, inputs):
            return super().forward(inputs.transpose(0, 1)).transpose(0, 1)

    encoder = Encoder(TokensFirst(), blocks="stages", name="mine")
    says = r"The blocks of mine hand on hidden states of shape \(7, 2, 16\) for a batch of 2, .*batch_first=True"
    for method in (encoder, encoder.embed):
        with pytest.raises(InputError, match=says):
            method(tokens)


def test_of_a_tuple_the_hidden_states_are_read_and_restored(tokens):
    class Pair(nn.TransformerEncoderLayer):
        def forward(self, hidden):
            return super().forward(hidden), None

    class Pairs(Stack):
        def forward(self, inputs):
            hidden = self.embed(inputs)
            for stage in self.stages:
                hidden, _ = stage(hidden)
            return self.norm(hidden)

    model = Pairs()
    model.stages = nn.ModuleList(Pair(16, 2, 32, batch_first=True) for _ in range(3))
    encoder = Encoder(model, blocks="stages", features="mean", name="mine")
    expected = model(tokens).mean(1)
    assert torch.equal(encoder(tokens), expected)
    shared = encoder.embed(tokens)
    hidden = shared.hidden
    for block in range(3):
        hidden = encoder.run_block(block, hidden, shared)
    assert torch.equal(encoder.pool(hidden, tokens), expected)
    smaller = replace_spans(encoder, {Span(0, 1): nn.Linear(16, 16)})
    assert smaller(tokens).shape == (2, 16)


def test_a_family_whose_blocks_return_tuples_is_saved_and_opened(tiny_model, tiny_images, pixel_values, tmp_path):
    encoder = Encoder(tiny_model("data2vec-vision"), preprocessing=Preprocessing(resize=(32, 32)), name="tiny")
    smaller = approximate(encoder, "-1->0 1->3", tiny_images.train[:20])
    assert encoder.block_outputs == smaller.block_outputs > 0
    smaller.save_pretrained(tmp_path / "saved")
    opened = load_encoder(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(opened(pixel_values), smaller(pixel_values))


def test_the_block_list_is_given_by_a_function(stack, tokens):
    by_path, by_function = (Encoder(stack, blocks=blocks, features="mean") for blocks in ("stages", lambda m: m.stages))
    assert by_function.blocks_path == "stages"
    assert torch.equal(by_function(tokens), by_path(tokens))
    with pytest.raises(InputError, match="Unknown block list"):
        Encoder(stack, blocks=lambda m: m.norm)


def test_blocks_that_return_no_tensor_are_refused(tokens):
    class Named(nn.TransformerEncoderLayer):
        def forward(self, hidden):
            return {"hidden": super().forward(hidden)}

    class Names(Stack):
        def forward(self, inputs):
            hidden = self.embed(inputs)
            for stage in self.stages:
                hidden = stage(hidden)["hidden"]
            return self.norm(hidden)

    model = Names()
    model.stages = nn.ModuleList(Named(16, 2, 32, batch_first=True) for _ in range(3))
    with pytest.raises(InputError, match="A block of mine returns a dict, where hidden states alone are needed"):
        Encoder(model, blocks="stages", name="mine")(tokens)


@torch.no_grad()
def test_a_module_that_pools_itself_keeps_its_output(tokens):
    class Pooled(Stack):
        def forward(self, inputs):
            return super().forward(inputs).amax(1)

    model = Pooled()
    assert torch.equal(Encoder(model, blocks="stages")(tokens), model(tokens))


def test_the_blocks_of_a_plain_module_are_found_by_their_attention(stack):
    assert Encoder(stack).blocks_path == "stages"


def test_stages_that_hold_blocks_are_none(stack):
    pyramid = nn.Sequential(nn.ModuleDict({"a": nn.ModuleList([stack, Stack()])}))
    with pytest.raises(InputError, match=r"No block list found in Sequential.*'0\.a\.0\.stages'"):
        find_blocks(pyramid)


def test_a_plain_module_without_known_blocks_is_told_its_lists(stack):
    stack.stages = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
    with pytest.raises(InputError, match=r"No block list found in Stack: name it by blocks=\.\.\. .*'stages'"):
        Encoder(stack)


def test_a_module_without_any_list_is_told_so():
    with pytest.raises(InputError, match=r"No block list found in Linear.*none"):
        Encoder(nn.Linear(2, 2))


@pytest.mark.parametrize("path", ["stage", "embed", "nothing.here"])
def test_a_path_that_is_no_block_list_is_refused_with_the_lists_there_are(stack, path):
    with pytest.raises(InputError, match=rf"Unknown block list '{path}'.*stages"):
        Encoder(stack, blocks=path)


def test_unknown_features_are_refused_with_the_nearest_name(tiny_model):
    with pytest.raises(InputError, match="Unknown features 'means': did you mean 'mean'"):
        Encoder(tiny_model("vit"), features="means")


def test_a_model_without_cls_token_refuses_cls_features(tiny_model):
    with pytest.raises(InputError, match="siglip-tiny has no CLS token: take features='mean'"):
        Encoder(tiny_model("siglip"), name="siglip-tiny")


def test_a_model_that_hides_patches_at_random_is_refused():
    import transformers

    with pytest.raises(InputError, match="mine hides patches at random: let load_encoder open its checkpoint"):
        Encoder(transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES)), name="mine")


def test_a_model_without_pooler_refuses_pooler_features(tiny_model, pixel_values):
    model = tiny_model("vit")
    model.pooler = None
    with pytest.raises(InputError, match="tiny has no pooler: take features='cls'"):
        Encoder(model, features="pooler", name="tiny")(pixel_values)


TEXTS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
PAIR = {"vision_config": SIZES, "text_config": TEXTS}
MORE_THAN_ENCODERS = {
    "ViTForImageClassification": ("ViTConfig", SIZES, r"pass its part model\.vit"),
    "BertForSequenceClassification": ("BertConfig", TEXTS, r"pass its part model\.bert"),
    "CLIPModel": ("CLIPConfig", PAIR, r"pass its part model\.vision_model"),
    "SiglipModel": (
        "SiglipConfig",
        {"vision_config": SIZES, "text_config": TEXTS},
        r"pass its part model\.vision_model",
    ),
    "Siglip2VisionModel": (
        "Siglip2VisionConfig",
        {name: size for name, size in SIZES.items() if name != "image_size"} | {"num_patches": 16},
        "asks for pixel_attention_mask, spatial_shapes beside pixel_values",
    ),
}


@pytest.mark.parametrize("name", MORE_THAN_ENCODERS)
def test_what_is_more_than_an_encoder_is_refused_and_its_encoder_named(name):
    import transformers

    config, settings, says = MORE_THAN_ENCODERS[name]
    with pytest.raises(InputError, match=says):
        Encoder(getattr(transformers, name)(getattr(transformers, config)(**settings)), features="mean")


def test_the_encoder_in_a_classifier_is_taken(pixel_values):
    import transformers

    whole = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()
    with torch.no_grad():
        expected = whole(pixel_values, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(Encoder(whole.vit)(pixel_values), whole.vit.layernorm(expected)[:, 0])


def test_pixels_that_were_not_preprocessed_are_refused(tiny_encoder):
    with pytest.raises(InputError, match=r"takes pixel values, a float tensor: Images\.batches makes them"):
        tiny_encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"does not take inputs of shape \(2, 32, 32, 3\)"):
        tiny_encoder(torch.zeros(2, 32, 32, 3))


class Indexed(Stack):
    """Blocks that are reached by their numbers."""

    def forward(self, inputs):
        hidden = self.embed(inputs)
        for number in range(4):
            hidden = self.stages[number](hidden)
        return hidden


@torch.no_grad()
def test_blocks_that_are_reached_by_their_numbers_are_walked(tokens):
    encoder = Encoder(Indexed(), "stages", "mean")
    shared = encoder.embed(tokens)
    hidden = shared.hidden
    for block in range(4):
        hidden = encoder.run_block(block, hidden, shared)
    torch.testing.assert_close(encoder.pool(hidden, tokens), encoder(tokens))


def test_an_encoder_that_returns_several_outputs_is_refused(stack, tokens):
    stack.register_forward_hook(lambda module, args, output: (output, None))
    with pytest.raises(InputError, match="own returns a tuple: an encoder returns one tensor of features"):
        Encoder(stack, "stages", "mean", name="own")(tokens)
