"""The encoder: a Hugging Face transformer or a plain module, its blocks found and its features named."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toastlib.data.tokens import Inputs, Tokens, select_tokens, token_mask
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError, need_batches, unknown
from toastlib.models import structure
from toastlib.models.batch import BatchSize, batch_of
from toastlib.models.hooks import capture_outputs
from toastlib.models.layers import as_output, padding_known
from toastlib.models.saving import save_pretrained
from toastlib.models.sublayer_split import SublayerSplit

FEATURES = ("cls", "mean", "pooler", "last")
WITHOUT_MASK = {"vit_mae": "ViTModel"}
"""Model type that masks patches at random -> class that opens the same weights without a mask."""


class BlockInput(NamedTuple):
    """The hidden states ``h[-1]`` that block 0 gets, and the further arguments of every block, such as masks."""

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


class Checkpoint(NamedTuple):
    """What an encoder was loaded from: the arguments of `load_encoder`, and the dtype of the weights."""

    path: str  # a folder, or of the Hub ``owner/name@commit``
    image_size: int | None
    trust_remote_code: bool
    dtype: torch.dtype


class Encoder(nn.Module):
    """A transformer without its head: pixels or token ids to features.

    Parameters
    ----------
    model
        A Hugging Face model, or any module that maps inputs to (batch, tokens, width) or (batch, width).
    blocks
        Dotted path of the block list, such as ``"encoder.layer"``, or a function that takes it out; found if `None`.
    features
        ``"cls"``: the CLS token after the final norm; ``"mean"``: the mean of the patch tokens, or of all tokens of a
        text but the CLS token; ``"last"``: the last token of a decoder; ``"pooler"``: the model's own pooled output.
    preprocessing, tokenizer, name
        Preprocessing of images or tokenizer of texts, for `load_images` and `load_texts` only; and its name in tables.

    Raises
    ------
    InputError
        If the block list is not found, the features do not exist in this model, or it is more than an encoder.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: str | Callable[[nn.Module], nn.Module] | None = None,
        features: str = "cls",
        *,
        preprocessing: Preprocessing | None = None,
        name: str = "model",
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        structure.check_is_encoder(model, name)
        if not hasattr(model, "config"):  # lists of two in models of transformers are stages
            structure.join_pairs(model)
        self.model = model.eval().requires_grad_(False)
        self.blocks_path = structure.find_blocks(model, blocks)
        self.feature_kind = features
        self.preprocessing = preprocessing
        self.name = name
        self.tokenizer = tokenizer
        self.reads_text = structure.reads_text(model)
        self.is_causal = self.reads_text and structure.is_causal(model)
        self.special_tokens = structure.count_special_tokens(model)
        self.sublayer_split: SublayerSplit | None = None  # set by split_blocks
        self.last_split: SublayerSplit | None = None  # of the last block, set by split_last
        self.checkpoint: Checkpoint | None = None  # set by load_encoder
        self.original_config: Any = None  # of a decoder whose block list has changed, set by renumber
        self.walk_is_checked = False  # set by check_walk
        self.block_outputs: int | None = None  # in the tuple that a block returns, 0 for a tensor; seen by hidden_of
        if features not in FEATURES:
            raise unknown("features", features, FEATURES)
        if features == "cls" and hasattr(model, "config") and not self.special_tokens:
            other = "last" if self.is_causal else "pooler"
            raise InputError(f"{name} has no CLS token: take features='mean' or features='{other}'.")
        if features == "last" and not self.is_causal:
            raise InputError(f"{name} is no decoder, and its last token says nothing: take features='mean'.")
        if getattr(type(getattr(model, "config", None)), "model_type", None) in WITHOUT_MASK:
            raise InputError(f"{name} hides patches at random: let load_encoder open its checkpoint, as a plain ViT.")

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The block list: ``blocks[k]`` computes ``h[k]`` from ``h[k-1]``."""
        blocks = self.model.get_submodule(self.blocks_path)
        return nn.ModuleList(blocks._modules.values()) if isinstance(blocks, structure.PairList) else blocks

    @property
    def width(self) -> int:
        """Length of a token's representation."""
        config = getattr(self.model, "config", None)
        if hasattr(config, "hidden_size"):
            return config.hidden_size
        if hasattr(self.model, "timm_model"):
            return self.model.timm_model.num_features
        layers = (layer.in_features for layer in self.blocks.modules() if isinstance(layer, nn.Linear))
        return next(layers, None) or next(p for p in self.blocks.parameters() if p.ndim == 2).shape[-1]

    @property
    def longest_text(self) -> int:
        """Number of tokens that the model reads at most; its tokenizer's limit where it has none itself."""
        limit = min(self.tokenizer.model_max_length, 2**31 - 1)  # a tokenizer without one says 1e30
        return min(limit, getattr(self.model.config, "max_position_embeddings", limit))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and of pixel values."""
        return next(self.parameters()).dtype

    @torch.inference_mode()
    def encode(self, images: Any, batch_size: BatchSize = "auto") -> Tensor:
        """Features of all images or texts, shape (images, width), from anything with ``batches(size)``."""
        need_batches(images)
        return torch.cat([self.features(inputs) for inputs, _ in images.batches(batch_of(self, batch_size))])

    def features(self, inputs: Inputs) -> Tensor:
        """Features of shape (batch, width) from pixel values of shape (batch, 3, height, width), or from `Tokens`.

        An `InputError` if texts are padded before their CLS token, or blocks do not return (batch, tokens, width).
        """
        last = len(self.blocks) - 1
        with capture_outputs(self, [last]) as h:
            output = self.run(self.model, inputs)
        return self._pool(output, self._checked(h[last], inputs), token_mask(inputs))

    forward = features

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        """Output of the model, or of one that it is part of.

        A decoder counts positions from each text's first token, and keeps no cache, so that blocks run in any order.

        Raises
        ------
        InputError
            If texts are padded before a CLS token, or the model does not take pixel values of this shape or dtype.
        """
        if not isinstance(inputs, Tokens):
            if not isinstance(inputs, Tensor) or inputs.dtype == torch.uint8:
                raise InputError(f"{self.name} takes pixel values, a float tensor: Images.batches makes them.")
            try:
                return model(inputs)
            except ValueError as error:  # what transformers raises for another size or number of channels
                raise InputError(f"{self.name} does not take inputs of shape {tuple(inputs.shape)}: {error}") from error
        arguments = {"input_ids": inputs.input_ids} | ({"use_cache": False} if self.is_causal else {})
        if inputs.device.type == "meta":  # FLOPs are counted: transformers reads no values of such a mask
            texts, tokens = inputs.input_ids.shape
            shape = (texts, 1, tokens, tokens) if getattr(model, "_supports_sdpa", True) else (texts, tokens)
            return model(**arguments, attention_mask=torch.ones(shape, device="meta"))
        if self.special_tokens and not inputs.attention_mask[:, 0].all():
            raise InputError(f"{self.name} reads its CLS token first: pad texts on the right.")
        if self.is_causal and "position_ids" in inspect.signature(model.forward).parameters:
            arguments["position_ids"] = inputs.positions
        maps = [block for block in self.blocks if hasattr(block, "translation")]
        with padding_known(maps, inputs.attention_mask):
            return model(**arguments, attention_mask=inputs.attention_mask)

    def embed(self, inputs: Inputs) -> BlockInput:
        """Input of block 0, computed by everything before it: ``h[-1]``, and the further arguments of every block."""
        with self.replayed(inputs) as captures:
            self.run(self.model, inputs)
        hidden = self._checked(captures[0].input, inputs)
        return BlockInput(hidden, [capture.further for capture in captures])

    def run_block(self, block: int, hidden: Tensor, shared: BlockInput, *, module: nn.Module | None = None) -> Tensor:
        """Output ``h[block]`` of a block, or a `module` in its place, from ``h[block-1]``: (batch, tokens, width)."""
        args, kwargs = shared.calls[block]
        module = self.blocks[block] if module is None else module
        return self.hidden_of(module(hidden, *args, **kwargs))

    def hidden_of(self, output: Any) -> Any:
        """The hidden states that a block returns, alone or first in a tuple."""
        self.block_outputs = len(output) if isinstance(output, tuple) else 0
        return output[0] if self.block_outputs else output

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """Features (batch, width) from the last block's output (batch, tokens, width): final norm, then pooling."""
        # The model's own forward runs with blocks that return `hidden`; the layers before them see one input only.
        with self.replayed(inputs, hidden):
            return self._pool(self.run(self.model, inputs[:1]), hidden, token_mask(inputs))

    @property
    def reads_cls_alone(self) -> bool:
        """Whether features read no token of the last block but CLS, and `run_last` computes no other."""
        return self.last_split is not None and self.feature_kind == "cls"

    @contextlib.contextmanager
    def replayed(self, inputs: Inputs, hidden: Tensor | None = None, first: int = 0) -> Iterator[list["ReplayBlock"]]:
        """Inside the context the model runs a `ReplayBlock` for each block from `first` on, and they are yielded."""
        if self.block_outputs is None:
            self.features(inputs[:1])
        replays = [ReplayBlock(hidden, block, self.block_outputs) for block in self.blocks[first:]]
        with self.block_list([*self.blocks[:first], *replays]):
            yield replays

    @contextlib.contextmanager
    def block_list(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Inside the context the model runs these modules instead of its blocks."""
        parent, _, attribute = self.blocks_path.rpartition(".")
        owner, blocks = self.model.get_submodule(parent), self.model.get_submodule(self.blocks_path)
        is_called = isinstance(blocks, nn.Sequential)  # the model calls it, and loops over any other list
        kind = structure.PairList if isinstance(blocks, structure.PairList) else nn.ModuleList
        setattr(owner, attribute, nn.Sequential(*modules) if is_called else kind(modules))
        try:
            yield
        finally:
            setattr(owner, attribute, blocks)

    save_pretrained = save_pretrained

    def _checked(self, hidden: Any, inputs: Inputs) -> Tensor:
        """Hidden states, refused unless they are one tensor with the batch first."""
        if not isinstance(hidden, Tensor):
            kind = type(hidden).__name__
            raise InputError(f"A block of {self.name} returns a {kind}, where hidden states alone are needed.")
        if len(hidden) != len(inputs):
            raise InputError(
                f"The blocks of {self.name} hand on hidden states of shape {tuple(hidden.shape)} for a batch of "
                f"{len(inputs)}, where (batch, tokens, width) is needed: torch's own layers want batch_first=True."
            )
        return hidden

    def _pool(self, output: Any, last_block: Tensor, mask: Tensor | None) -> Tensor:
        if self.feature_kind == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                other = "last" if self.is_causal else "cls"
                raise InputError(f"{self.name} has no pooler: take features='{other}' or features='mean'.")
            return pooled
        hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise InputError(
                f"{self.name} returns a {type(output).__name__}: an encoder returns one tensor of features."
            )
        if hidden.ndim == 2:
            return hidden
        if self.feature_kind == "cls":  # of a plain module too, whose special tokens are not counted
            tokens = hidden[:, 0]
        else:
            tokens = select_tokens(hidden, self.feature_kind, self.special_tokens, mask=mask)
        # CLIP's tower returns the last block's output as it is and norms the pooled token only.
        norm = getattr(self.model, "post_layernorm", None)
        return norm(tokens) if norm is not None and hidden is last_block else tokens


class ReplayBlock(nn.Module):
    """Stands for a block: it returns the hidden states given here, or its input if `None`, and keeps its arguments.

    Attributes that a model reads come from the block that was there.
    """

    input: Tensor | None = None
    further: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __init__(self, hidden: Tensor | None, block: nn.Module, outputs: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.outputs = outputs
        self._block = (block,)  # in a tuple, so that nn.Module does not register it as a submodule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple:
        """The hidden states given, or else the input."""
        self.input, self.further = hidden, (args, kwargs)
        return as_output(hidden if self.hidden is None else self.hidden, self.outputs)
