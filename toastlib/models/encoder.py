"""Encoders: a Hugging Face transformer or a plain module, its blocks found and its features named."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toastlib.data.tokens import Inputs, Tokens, select_tokens, token_mask
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError, unknown
from toastlib.models.structure import WITHOUT_MASK, count_special_tokens, find_blocks, is_causal, reads_text
from toastlib.models.sublayer_split import SublayerSplit

FEATURES = ("cls", "mean", "pooler", "last")


class BlockInput(NamedTuple):
    """What block 0 is called with: its hidden states, and the arguments that every block shares."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Encoder(nn.Module):
    """A transformer without its head: pixels or tokens to features, its blocks at hand.

    Parameters
    ----------
    model
        A Hugging Face model, or any module that maps inputs to (batch, tokens, width) or (batch, width).
    blocks
        Dotted path of the block list inside `model`, such as ``"encoder.layer"``; found by structure if `None`.
    features
        ``"cls"``: the CLS token after the final norm; ``"mean"``: the mean of the patch tokens after it, which are all
        tokens of a text but the CLS token; ``"last"``: the last token, which alone has seen the whole text in a
        decoder; ``"pooler"``: the model's own pooled output.
    preprocessing
        How images become pixel values; needed by `load_images` only.
    name
        How the encoder is called in tables.
    tokenizer
        How texts become tokens; needed by `load_texts` only.

    Raises
    ------
    InputError
        If the block list is not found, or the features do not exist in this model.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: str | None = None,
        features: str = "cls",
        preprocessing: Preprocessing | None = None,
        name: str = "model",
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.blocks_path = find_blocks(model, blocks)
        self.feature_kind = features
        self.preprocessing = preprocessing
        self.name = name
        self.tokenizer = tokenizer
        self.reads_text = reads_text(model)
        self.is_causal = self.reads_text and is_causal(model)
        self.special_tokens = count_special_tokens(model)
        self.sublayer_split: SublayerSplit | None = None  # of its blocks into sublayers, see toastlib.models.sublayers
        if features not in FEATURES:
            raise unknown("features", features, FEATURES)
        if features == "cls" and hasattr(model, "config") and not self.special_tokens:
            other = "last" if self.is_causal else "pooler"
            raise InputError(f"{name} has no CLS token: take features='mean' or features='{other}'.")
        if features == "last" and not self.is_causal:
            raise InputError(f"{name} is no decoder, and its last token says nothing: take features='mean'.")
        if getattr(type(getattr(model, "config", None)), "model_type", None) in WITHOUT_MASK:
            raise InputError(f"{name} hides patches at random: let load_encoder open its checkpoint, as a plain ViT.")
        kinds = set(getattr(getattr(model, "config", None), "layer_types", None) or ())
        if len(kinds) > 1:
            raise InputError(f"The blocks of {name} attend in different ways ({', '.join(sorted(kinds))}).")

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The block list: ``blocks[k]`` computes ``h[k]`` from ``h[k-1]``."""
        return self.model.get_submodule(self.blocks_path)

    @property
    def width(self) -> int:
        """Length of a token's representation."""
        config = getattr(self.model, "config", None)
        if hasattr(config, "hidden_size"):
            return config.hidden_size
        if hasattr(self.model, "timm_model"):
            return self.model.timm_model.num_features
        return next(p for p in self.blocks.parameters() if p.ndim == 2).shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of the pixel values that images hand over."""
        return next(self.parameters()).dtype

    def forward(self, inputs: Inputs) -> Tensor:
        """The same as `features`."""
        return self.features(inputs)

    def features(self, inputs: Inputs) -> Tensor:
        """Features of shape (batch, width) from pixel values of shape (batch, 3, height, width), or from `Tokens`.

        Raises
        ------
        InputError
            If texts are padded before their CLS token, or the blocks do not hand on (batch, tokens, width).
        """
        last = []
        handle = self.blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
        try:
            output = self.run(self.model, inputs)
        finally:
            handle.remove()
        return self._pool(output, self._checked(last[0], inputs), token_mask(inputs))

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        """What the model, or one that it is part of, returns for inputs.

        A decoder counts positions from each text's own first token, wherever padding stands, and keeps no cache: its
        blocks may be run in any order.

        Raises
        ------
        InputError
            If texts are padded before their CLS token.
        """
        if not isinstance(inputs, Tokens):
            return model(inputs)
        arguments = {"input_ids": inputs.input_ids} | ({"use_cache": False} if self.is_causal else {})
        if inputs.device.type == "meta":  # where FLOPs are counted: transformers looks at no values of such a mask
            tokens = inputs.input_ids.shape[1]
            return model(**arguments, attention_mask=torch.ones(len(inputs), 1, tokens, tokens, device="meta"))
        if self.special_tokens and not inputs.attention_mask[:, 0].all():
            raise InputError(f"{self.name} reads its CLS token first: pad texts on the right.")
        if self.is_causal:
            arguments["position_ids"] = inputs.positions
        return model(**arguments, attention_mask=inputs.attention_mask)

    def embed(self, inputs: Inputs) -> BlockInput:
        """Run everything before block 0: ``h[-1]`` and the further arguments of the blocks."""
        capture = _CaptureInput(self.blocks[0])
        with self.block_list([capture]):
            self.run(self.model, inputs)
        self._checked(capture.call.hidden, inputs)
        return capture.call

    def run_block(self, block: int, hidden: Tensor, shared: BlockInput) -> Tensor:
        """``h[block]`` from ``h[block-1]``, called as the model itself calls it."""
        return self.blocks[block](hidden, *shared.args, **shared.kwargs)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """Features of shape (batch, width) from the last block's output ``(batch, tokens, width)``.

        The model's own forward runs with a block list that hands `hidden` over. What lies before the blocks is
        computed for the first input only, and ignored.
        """
        with self.block_list([ReplayBlock(hidden, self.blocks[0])]):
            return self._pool(self.run(self.model, inputs[:1]), hidden, token_mask(inputs))

    @contextlib.contextmanager
    def block_list(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Inside the context the model runs these modules instead of its blocks."""
        parent, _, attribute = self.blocks_path.rpartition(".")
        owner, blocks = self.model.get_submodule(parent), self.blocks
        called = isinstance(blocks, nn.Sequential)  # by the model, which walks any other list
        setattr(owner, attribute, nn.Sequential(*modules) if called else nn.ModuleList(modules))
        try:
            yield
        finally:
            setattr(owner, attribute, blocks)

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write a folder that transformers opens; the settings are those of `save_pretrained`."""
        from toastlib.models.saving import save_pretrained

        save_pretrained(self, folder, **settings)

    def _checked(self, hidden: Any, inputs: Inputs) -> Tensor:
        """Hidden states as they pass between blocks, if they are what all of toastlib takes them for."""
        if not isinstance(hidden, Tensor):
            raise InputError(
                f"A block of {self.name} returns a {type(hidden).__name__}, where hidden states alone are needed."
            )
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
        hidden = output if isinstance(output, Tensor) else output.last_hidden_state
        if hidden.ndim == 2:
            return hidden
        if self.feature_kind == "cls":  # of a plain module too, whose tokens nobody has counted
            tokens = hidden[:, 0]
        else:
            tokens = select_tokens(hidden, self.feature_kind, self.special_tokens, mask)
        # CLIP's tower returns the last block's output as it is and norms the pooled token only.
        norm = getattr(self.model, "post_layernorm", None)
        return norm(tokens) if norm is not None and hidden is last_block else tokens


class _BlockProxy(nn.Module):
    """Takes the place of all blocks, and has the attributes that a model reads from the block that it stands for."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._stands_for = (block,)  # in a tuple, that it is no part of this module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._stands_for[0], name)


class _CaptureInput(_BlockProxy):
    call: BlockInput

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = BlockInput(hidden, args, kwargs)
        return hidden


class ReplayBlock(_BlockProxy):
    """A block that ignores what it is given and hands over its own hidden states."""

    def __init__(self, hidden: Tensor, block: nn.Module) -> None:
        super().__init__(block)
        self.hidden = hidden

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The states it was made with."""
        return self.hidden
