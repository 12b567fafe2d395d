"""The errors that a user can cause, each one sentence long."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An input that cannot be used; the message says what is wrong with it, and what would be right."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error that names the nearest of the `known` names; `kind` is what is named, such as ``"model"``."""
    known = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return InputError(f"Unknown {kind} {name!r}: {hint}")
