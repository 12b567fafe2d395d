"""Encoders: a Hugging Face transformer or a plain module, its blocks found and its features named."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toastlib.errors import InputError, unknown
from toastlib.parting import Parting
from toastlib.preprocessing import Preprocessing
from toastlib.tokens import Inputs, Tokens, select_tokens, token_mask

FEATURES = ("cls", "mean", "pooler", "last")
SPECIAL_TOKENS = (
    *("cls_token", "class_embedding", "distillation_token", "register_tokens"),
    *("dist_token", "reg_token"),  # as timm calls them
)
"""Embedding parameters that stand before the patches: one token per row."""


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
        self.special_tokens = _count_special_tokens(model)
        self.parting: Parting | None = None  # of its blocks into sublayers, see toastlib.sublayers
        if features not in FEATURES:
            raise unknown("features", features, FEATURES)
        if features == "cls" and hasattr(model, "config") and not self.special_tokens:
            other = "last" if self.is_causal else "pooler"
            raise InputError(f"{name} has no CLS token: take features='mean' or features='{other}'.")
        if features == "last" and not self.is_causal:
            raise InputError(f"{name} is no decoder, and its last token says nothing: take features='mean'.")
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
            If texts are padded before their CLS token.
        """
        last = []
        handle = self.blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
        try:
            output = self.run(self.model, inputs)
        finally:
            handle.remove()
        return self._pool(output, last[0], token_mask(inputs))

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

    def start(self, inputs: Inputs) -> BlockInput:
        """Run everything before block 0: ``h[-1]`` and the further arguments of the blocks."""
        capture = _Capture()
        with self.block_list([capture]):
            self.run(self.model, inputs)
        return capture.call

    def run_block(self, block: int, hidden: Tensor, shared: BlockInput) -> Tensor:
        """``h[block]`` from ``h[block-1]``, called as the model itself calls it."""
        return self.blocks[block](hidden, *shared.args, **shared.kwargs)

    def finish(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """Features of shape (batch, width) from the last block's output ``(batch, tokens, width)``.

        The model's own forward runs with a block list that hands `hidden` over. What lies before the blocks is
        computed for the first input only, and ignored.
        """
        with self.block_list([Feed(hidden)]):
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
        """Write a folder that transformers opens; the settings are those of `toastlib.saving.save_pretrained`."""
        from toastlib.saving import save_pretrained

        save_pretrained(self, folder, **settings)

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


class _Capture(nn.Module):
    call: BlockInput

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = BlockInput(hidden, args, kwargs)
        return hidden


class Feed(nn.Module):
    """A block that ignores what it is given and hands over its own hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The states it was made with."""
        return self.hidden


def find_blocks(model: nn.Module, path: str | None = None) -> str:
    """Dotted path of the largest module list whose members are transformer blocks of one class.

    Blocks are known by the class that transformers derives them from; timm's, inside its wrapper, by their place.
    With a `path`, that path: it is only checked.

    Raises
    ------
    InputError
        If no list of Hugging Face blocks is there, or none at `path`; the message names the lists that are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (nn.ModuleList, nn.Sequential)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and len(m)}
    if path in lists:
        return path
    if path and lists:
        raise unknown("block list", path, lists)
    found = {
        name: sum(p.numel() for p in blocks.parameters())
        for name, blocks in lists.items()
        if len({type(b) for b in blocks}) == 1
        and (isinstance(blocks[0], GradientCheckpointingLayer) or name == "timm_model.blocks")
    }
    if not found:
        names = ", ".join(map(repr, lists)) or "none"
        raise InputError(f"No block list found in {type(model).__name__}: name it by blocks=... (lists: {names}).")
    return max(found, key=found.get)


def reads_text(model: nn.Module) -> bool:
    """Whether a transformers model is called with token ids."""
    return getattr(model, "main_input_name", "") == "input_ids"


def is_causal(model: nn.Module) -> bool:
    """Whether tokens attend only to those before them: a decoder, such as GPT-2."""
    return any(getattr(module, "is_causal", False) for module in model.modules())


def _count_special_tokens(model: nn.Module) -> int:
    """Tokens before the patches: CLS, distillation, registers; of a text, the CLS token that only encoders have."""
    if reads_text(model):
        return 0 if is_causal(model) else 1
    tokens = {
        name: parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in SPECIAL_TOKENS
    }
    return sum(tokens.values())
