"""The errors a person can cause, each one sentence long."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what, and what would be right.

    The command line prints the message alone and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An error that names the nearest valid choice.

    Parameters
    ----------
    kind
        What was asked for, such as ``"model"``.
    name
        The name that nobody knows.
    known
        The names that would have been right.
    """
    known = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return InputError(f"Unknown {kind} {name!r}: {hint}")
