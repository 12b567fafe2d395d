"""Which columns of a table hold images, texts and labels, and what its classes are called."""

from collections.abc import Callable
from typing import Any

from toastlib.errors import InputError, unknown

COLUMN_NAMES = {
    "image": ("image", "img"),
    "text": ("text", "sentence", "content", "review"),
    "label": ("label", "labels", "class", "target"),
}
"""What columns are called where no column's type says that it holds images or classes."""


def is_streamed(rows: Any) -> bool:
    """Whether rows come one after the other, and cannot be counted."""
    import datasets

    return isinstance(rows, datasets.IterableDataset)


def is_image(feature: Any) -> bool:
    """Whether a column's type says that it holds images."""
    return type(feature).__name__ == "Image"


def is_label(feature: Any) -> bool:
    """Whether a column's type says that it holds classes."""
    return type(feature).__name__ == "ClassLabel"


def find_column(name: str | None, features: Any, fits: Callable[[Any], bool], kind: str, path: str) -> str | None:
    """The column of a kind: the one named, else the one of that type, else the one that is called so.

    Parameters
    ----------
    name
        Of the column, where it is known.
    features
        Column -> its type, as `datasets` gives them.
    fits
        Whether a type is of this kind.
    kind
        ``"image"``, ``"text"`` or ``"label"``; only labels may be missing.
    path
        Of the data set, for messages.

    Raises
    ------
    InputError
        If there is no such column, none of the kind, or several.
    """
    if name is not None:
        if name not in features:
            raise unknown(f"{kind} column", name, features)
        return name
    found = [column for column, feature in features.items() if fits(feature)]
    found = found or [column for column in COLUMN_NAMES[kind] if column in features]
    if len(found) > 1:
        raise InputError(
            f"{path} has the {kind} columns {', '.join(found)}: name one"
            + (f", for example '{path}:{found[-1]}'." if kind == "label" else f" by {kind}_column=...")
        )
    if not found and kind != "label":
        raise InputError(f"{path} has no {kind} column, only {', '.join(features)}.")
    return found[0] if found else None


def class_names(rows: Any, label: str | None) -> tuple[str, ...]:
    """What the classes are called: as the column's type says, or what it holds, in order.

    Raises
    ------
    InputError
        If the column holds neither names nor whole numbers, or the rows are streamed and its type names no classes.
    """
    if label is None:
        return ()
    feature = rows.features[label]
    if is_label(feature):
        return tuple(feature.names)
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if is_streamed(rows):
        raise InputError(f"The label column {label!r} of a streamed set must say its class names, and holds {dtype}.")
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(f"The label column {label!r} holds {dtype} values, and not class names or whole numbers.")
    values = [value for value in rows.unique(label) if value is not None]
    if "string" in dtype:
        return tuple(sorted(values))
    return tuple(str(value) for value in range(max(values, default=-1) + 1))
