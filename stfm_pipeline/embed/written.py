"""Numbers as text, for models that read text, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from stfm_pipeline.errors import UsageError

Style = Literal["plain", "scientific", "digits", "integers"]
MISSING = "NaN"
LISTED = r"(?:-?\d+(?:\.\d+)?|NaN)"
SENTENCE = re.compile(rf"From .+? to .+?, the .+ was ({LISTED}(?:, {LISTED})*) .+ at each of the (\d+) steps\.")


def to_text(values: Sequence[float | None], style: Style, decimals: int = 2) -> str:
    """A series as text; None is written as `NaN`. What is written is read back by `from_text` as it was rounded.

    `plain` and `scientific` keep so many decimals. `integers` are multiples of 10^-decimals. `digits` are those
    integers with a blank between any two, so that a tokenizer sees each (Gruver et al., LLMTime, NeurIPS 2023).
    """
    if style in ("plain", "scientific"):
        kind = "f" if style == "plain" else "e"
        return ", ".join(MISSING if v is None else _unsigned_zero(f"{v:.{decimals}{kind}}") for v in values)
    whole = [MISSING if v is None else str(int(f"{v:.{decimals}f}".replace(".", ""))) for v in values]
    if style == "integers":
        return ", ".join(whole)
    return " , ".join(w if w == MISSING else " ".join(w) for w in whole)


def from_text(text: str, style: Style, decimals: int = 2) -> list[float | None]:
    """The series that `to_text` wrote. Raises `UsageError` on anything that is not a number in this style."""
    words = [w.strip() for w in text.split(",")] if text else []
    return [None if w == MISSING else _number(w, style, decimals) for w in words]


def _number(word: str, style: Style, decimals: int) -> float:
    joined = "".join(word.split(" ")) if style == "digits" else word
    forms = {
        "plain": r"-?\d+(\.\d+)?",
        "scientific": r"-?\d(\.\d+)?e[+-]\d{2,3}",
        "digits": r"(- )?\d( \d)*",
        "integers": r"-?\d+",
    }
    if not re.fullmatch(forms[style], word):
        raise UsageError(f"not a number in style '{style}'", found=repr(word[:40]), fix="ask for one number per step")
    return float(joined) if style in ("plain", "scientific") else float(f"{joined}e-{decimals}")


def _unsigned_zero(word: str) -> str:
    return word.removeprefix("-") if float(word) == 0 else word


def to_sentence(values: Sequence[float | None], start: str, end: str, what: str, unit: str, decimals: int = 2) -> str:
    """A series as PromptCast says it (Xue and Salim, TKDE 2023), with the times of its first and last step."""
    listed = to_text(values, "plain", decimals)
    return f"From {start} to {end}, the {what} was {listed} {unit} at each of the {len(values)} steps."


def from_sentence(sentence: str) -> list[float | None]:
    """The series in a sentence of `to_sentence`; the numbers end where the unit begins."""
    found = SENTENCE.fullmatch(sentence)
    values = from_text(found[1], "plain") if found else []
    if found is None or len(values) != int(found[2]):
        raise UsageError("not a sentence about a series", found=repr(sentence[:80]), fix="write it with `to_sentence`")
    return values
