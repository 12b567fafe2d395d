"""Progress of long work: a bar after ten seconds, in terminals and notebooks."""

import os

from tqdm.auto import tqdm


def progress_bar(total: int, task: str, unit: str = "image") -> tqdm:
    """A bar that shows itself when the work takes long, and leaves nothing behind.

    The environment variable ``TQDM_DISABLE`` hides it: the notebook runner sets it, to keep bars out of notebooks.
    tqdm itself heeds the variable in terminals only.
    """
    hidden = bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, desc=task, unit=unit, delay=10, leave=False, disable=hidden)
