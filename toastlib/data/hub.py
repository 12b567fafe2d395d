"""What the Hub refuses, and why, as one sentence that says what to do."""

from collections.abc import Iterator
from pathlib import Path

from toastlib.errors import InputError

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def not_loaded(kind: str, path: str, error: BaseException, embedded: str) -> InputError:
    """The error that a model or data set cannot be loaded.

    Parameters
    ----------
    kind
        ``"model"`` or ``"data set"``.
    path
        Hub id or local folder.
    error
        What the library raised; its causes are looked at too.
    embedded
        A name of that kind that needs no network.
    """
    if Path(path).is_dir():
        return InputError(f"{kind.capitalize()} {path!r} cannot be loaded: {_first_line(error)}")
    if _is_gated(error):
        page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{path}"
        return InputError(
            f"{kind.capitalize()} {path!r} is gated: accept its conditions on {page}, then {LOG_IN} on this machine."
        )
    if _is_missing(error):
        return InputError(f"The Hub shows no {kind} {path!r}: check the name, or {LOG_IN} if it is private.")
    if _is_offline(error):
        return InputError(
            f"{kind.capitalize()} {path!r} is not on this machine and the Hub cannot be reached; "
            f"{embedded!r} is embedded and needs no network."
        )
    return InputError(f"{kind.capitalize()} {path!r} cannot be loaded: {_first_line(error)}")


def _is_gated(error: BaseException) -> bool:
    from huggingface_hub.errors import GatedRepoError

    # `datasets` passes the Hub's own error on as text only.
    return any(isinstance(e, GatedRepoError) or "is a gated dataset" in str(e) for e in _causes(error))


def _is_missing(error: BaseException) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    return any(isinstance(e, RepositoryNotFoundError) or "doesn't exist on the Hub" in str(e) for e in _causes(error))


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    kinds = (ConnectionError, LocalEntryNotFoundError)
    return any(isinstance(e, kinds) or type(e).__module__.startswith("httpx") for e in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
