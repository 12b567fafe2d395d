"""What a check says: right, not answered yet, or not right and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

RIGHT = "Right."
NOT_YET = "Not yet."
UNANSWERED = "Not answered yet: put your answer in place of the `...`, run that cell, and then this one again."
TOLERANCE = 1e-4
"""Relative to the largest entry of the right answer: more than float32 loses, less than a mistake changes."""
ROUNDED = 6e-3
"""The same for answers that are worked out on paper: three digits are enough."""
NEAR = 5e-2
"""The same for what is right in another unit, or transposed, and may be rounded beside."""
NEARLY = 1e-3
"""The same for what is nearly right: computed in float32."""


def verdict(
    answer: Any, right: Any, mistakes: Mapping[str, Any], praise: str = "", tolerance: float = TOLERANCE
) -> str:
    """Compare an answer with the right one, and with the outcomes of typical mistakes.

    Parameters
    ----------
    answer
        What the reader found; ``...`` or `None`, alone or as a part, is no answer yet.
    right
        A number, an array or a tensor; a string or a set; or a tuple or a dict of such. An integer is an exact count.
    mistakes
        Reason -> the answer that it leads to, or a function that tells such answers. The first that fits is given; of
        several answers within the tolerance the nearest.
    praise
        What follows "Right.".
    tolerance
        Of numbers, relative to the largest entry of `right`.

    Returns
    -------
    str
        Begins with `RIGHT`, `NOT_YET`, or is `UNANSWERED`.
    """
    if is_unanswered(answer):
        return UNANSWERED
    if problem := wrong_form(answer, right):
        return f"{NOT_YET} {problem}"
    tolerance = 0 if isinstance(right, int) else tolerance
    if same(answer, right, tolerance):
        return f"{RIGHT} {praise}".strip()
    fitting = {
        reason: math.inf if callable(wrong) else distance(answer, wrong)
        for reason, wrong in mistakes.items()
        if (wrong(answer) if callable(wrong) else same(answer, wrong, tolerance))
    }
    first = next(iter(fitting), None)
    if first and fitting[first] < math.inf:
        first = min(fitting, key=fitting.get)
    return f"{NOT_YET} {first or difference(answer, right)}"


def steps(
    answers: Any,
    right: Mapping[str, Any],
    mistakes: Sequence[Mapping[str, Any]],
    praise: str = "",
    tolerance: float = TOLERANCE,
) -> str:
    """Compare the steps of a calculation one after another, and stop at the first that is not right.

    Parameters
    ----------
    answers, right
        Step -> answer.
    mistakes
        For each step: reason -> the answer that it leads to.
    praise, tolerance
        As for `verdict`.
    """
    if is_unanswered(answers):
        return UNANSWERED
    if problem := wrong_form(answers, right):
        return f"{NOT_YET} {problem}"
    for step, reasons in zip(right, mistakes, strict=True):
        message = verdict(answers[step], right[step], reasons, tolerance=tolerance)
        if not message.startswith(RIGHT):
            return message.replace(NOT_YET, f"{NOT_YET} {step[0].upper()}{step[1:]}:", 1)
    return f"{RIGHT} {praise}".strip()


def quiz(answers: Any, right: Mapping[str, Any], reasons: Mapping[str, str], praise: str = "") -> str:
    """Compare answers to several questions, and give one line for each that is not right.

    Parameters
    ----------
    answers, right
        Question -> answer.
    reasons
        Question -> what to think of where the answer is not right.
    praise
        What follows "Right.".
    """
    if is_unanswered(answers):
        return UNANSWERED
    if problem := wrong_form(answers, right):
        return f"{NOT_YET} {problem}"
    wrong = [question for question in right if not same(answers[question], right[question])]
    if not wrong:
        return f"{RIGHT} {praise}".strip()
    lines = [f"- {question.removesuffix('.')}: {reasons[question]}" for question in wrong]
    return "\n".join([f"{NOT_YET} {len(right) - len(wrong)} of {len(right)} are right.", *lines])


def reject(check: Callable[..., str], wrong_answers: Mapping[str, Any], *data: Any) -> None:
    """Print what a check says to wrong answers, and make sure that it rejects each with its reason.

    Parameters
    ----------
    check
        ``check(answer, *data)`` gives a sentence.
    wrong_answers
        A piece of the reason -> the answer that has to meet it.
    *data
        What the check takes beside the answer.

    Raises
    ------
    AssertionError
        If a wrong answer passes, or is rejected for another reason.
    """
    for reason, answer in wrong_answers.items():
        message = check(answer, *data)
        assert message.startswith(NOT_YET), f"{reason!r} is not rejected: {message}"
        assert reason in message, f"{reason!r} is rejected for another reason: {message}"
        print(message)


def is_unanswered(answer: Any) -> bool:
    """Whether an answer, or a part of it, is still ``...`` or the `None` of an unfinished function."""
    if isinstance(answer, Mapping):
        return any(map(is_unanswered, answer.values()))
    if isinstance(answer, list | tuple | set):
        return any(map(is_unanswered, answer))
    return answer is None or answer is ...


def same(answer: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two answers agree: numbers within the tolerance, everything else exactly."""
    if wrong_form(answer, other):
        return False
    if isinstance(other, Mapping):
        return all(same(answer[key], other[key], tolerance) for key in other)
    if isinstance(other, tuple):
        return all(same(a, b, tolerance) for a, b in zip(answer, other, strict=True))
    if isinstance(other, set):
        return set(answer) == other
    if isinstance(other, str):
        return answer == other
    given, wanted = numbers(answer), numbers(other)
    return bool(np.allclose(given, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(initial=0)))


def distance(answer: Any, other: Any) -> float:
    """How far numbers that are the same within the tolerance lie apart; 0 for what is no number or array."""
    if isinstance(other, Mapping | set | str):
        return 0.0
    if isinstance(other, tuple):
        return sum(map(distance, answer, other))
    return float(np.abs(numbers(answer) - numbers(other)).max(initial=0))


def wrong_form(answer: Any, right: Any) -> str:
    """What an answer should look like, if it looks otherwise; nothing if it does."""
    if isinstance(right, Mapping):
        fits = isinstance(answer, Mapping) and answer.keys() == right.keys()
        return "" if fits else f"The answer is a dict with the keys {', '.join(map(repr, right))}."
    if isinstance(right, tuple):
        fits = isinstance(answer, list | tuple) and len(answer) == len(right)
        return "" if fits else f"The answer has {len(right)} parts."
    if isinstance(right, set):
        return "" if isinstance(answer, set | list | tuple) else "The answer is a set."
    if isinstance(right, str):
        return "" if isinstance(answer, str) else "The answer is a text in quotation marks."
    given, wanted = numbers(answer), numbers(right)
    form = f"an array of shape {wanted.shape}" if wanted.ndim else "one number"
    if given is None:
        return f"The answer is {form}, not a {type(answer).__name__}."
    if wanted.ndim == 2 and given.shape == wanted.shape[::-1] != wanted.shape:
        return f"The answer is {form}, and yours is {given.shape}: it is transposed."
    if given.shape != wanted.shape:
        return f"The answer is {form}, and yours has the shape {given.shape}."
    return "" if np.isfinite(given).all() else "It holds NaN or infinity: look for a division by zero."


def numbers(answer: Any) -> np.ndarray | None:
    """The answer as a float64 array, or `None` if it is no array of numbers."""
    try:
        return np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        return None


def difference(answer: Any, right: Any) -> str:
    """How an answer of the right form differs where no typical mistake explains it."""
    if isinstance(right, Mapping | set | str) or (isinstance(right, tuple) and isinstance(right[0], str)):
        return "No typical mistake explains it: read the question once more."
    if isinstance(right, tuple):
        hints = {hint(*pair) for pair in zip(answer, right, strict=True) if not same(*pair)}
        return hints.pop() if len(hints) == 1 and "" not in hints else difference(answer, {})
    if known := hint(answer, right):
        return known
    given, wanted = numbers(answer), numbers(right)
    if wanted.ndim == 0:
        shown = f"{given:,.12g}" if isinstance(right, int) else f"{given:.4g}"  # of a count every digit matters
        return f"{shown} is too {'large' if given > wanted else 'small'}, and no typical mistake explains it."
    good = np.abs(given - wanted) <= TOLERANCE * np.abs(wanted).max(initial=0)
    return f"{100 * good.mean():.0f} % of the entries are right; no typical mistake explains the others."


def hint(answer: Any, right: Any) -> str:
    """The sign, direction, unit or precision that makes a wrong answer of a right one; nothing if none does."""
    given, wanted = numbers(answer), numbers(right)
    if not wanted.any():
        return ""
    if same(-given, wanted):
        return "The sign is wrong."
    if wanted.ndim == 2 and given.shape == given.T.shape and same(given.T, wanted, NEAR):
        return "It is transposed."
    if isinstance(right, int):
        return "A count is exact: give every digit of it." if is_rounded(given, wanted, range(3, 9)) else ""
    if same(given / 100, wanted, NEAR):
        return "This is a hundred times as much: in per cent, where a share between 0 and 1 is asked for?"
    if same(given * 100, wanted, NEAR):
        return "This is a hundredth of it: a share, where per cent or points are asked for?"
    if wanted.ndim and "float32" in str(getattr(answer, "dtype", "")):
        return "Yours is float32, which loses too many digits here: compute in float64, as the sums are."
    if is_rounded(given, wanted, [2]):
        return "It is rounded too much: give three digits or a fraction."
    if same(given, wanted, NEARLY):
        return "It is nearly right: rounded too much, or computed in float32 where float64 is needed."
    return ""


def is_rounded(given: np.ndarray, wanted: np.ndarray, digits: Iterable[int]) -> bool:
    """Whether an answer is the right one, rounded to so many digits."""
    rounded = (np.vectorize(lambda x, n=n: float(f"{x:.{n}g}"), otypes=[float])(wanted) for n in digits)
    return any(same(given, values, 1e-9) for values in rounded)
