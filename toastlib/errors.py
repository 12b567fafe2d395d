"""The errors that a user can cause, each one sentence long."""

import difflib
import errno
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk."""


class InputError(ValueError):
    """An input that cannot be used; the message says what is wrong with it, and what would be right."""


def need(value: Any, attribute: str, wanted: str) -> None:
    """Raise an `InputError` unless a value has an attribute, as what is `wanted` has, such as ``"an Encoder"``."""
    if not hasattr(value, attribute):
        raise InputError(f"{wanted} is needed here, not a {type(value).__name__}.")


def need_encoder(encoder: Any) -> None:
    """Raise an `InputError` unless it is an `Encoder`."""
    need(encoder, "blocks_path", "An Encoder, such as load_encoder returns,")


def need_original(encoder: Any) -> None:
    """Raise an `InputError` if maps stand in for blocks of an encoder."""
    if any(hasattr(block, "translation") for block in encoder.blocks):
        raise InputError(
            f"{encoder.name} was made smaller already: start from the original, with all spans in one plan."
        )


def need_batches(images: Any) -> None:
    """Raise an `InputError` unless images or texts come in batches, and there are any."""
    need(images, "batches", "Images or Texts, such as the .train or .test of what load_images returns,")
    if hasattr(images, "__len__") and not len(images):
        raise InputError("There are no images.")


def need_set(data: Any) -> None:
    """Raise an `InputError` unless it is an `ImageSet` or a `TextSet`."""
    need(data, "test", "A set with .train and .test, such as load_images returns,")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn an error of somebody's function into an `InputError` with its name, such as ``"Metric 'mine'"``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} raises {type(error).__name__}: {error}") from error


def whole_number(name: str, value: Any, least: int = 0) -> None:
    """Raise an `InputError` unless the value is an integer from `least` on; `True` and `False` are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is a whole number from {least} on, not {value!r}.")


def real_number(name: str, value: Any, above: float = -math.inf) -> None:
    """Raise an `InputError` unless the value is a finite number greater than `above`."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value <= above:
        raise InputError(f"{name} is a number{f' above {above:g}' * math.isfinite(above)}, not {value!r}.")


def need_packages(use: str, packages: Iterable[str], extra: str) -> None:
    """Raise an `InputError` unless packages are installed, which an extra of toastlib brings."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise InputError(f"{use} needs {', '.join(missing)}: pip install 'toastlib[{extra}]'.")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error that names the nearest of the `known` names; `kind` is what is named, such as ``"model"``."""
    known = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(name), known, n=1)
    choices = ", ".join(repr(choice) if "," in choice else choice for choice in known)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {choices}."
    return InputError(f"Unknown {kind} {name!r}: {hint}")
