"""What was embedded, in words: each part with its size, how it was made, and of which data."""

from __future__ import annotations

from typing import Any

from stfm_pipeline.lake import Stage


def embeddings(stage: Stage | None) -> list[dict[str, str]]:
    """One row per part of the embedded stage: `part`, `table`, `how`."""
    if stage is None:
        return []
    facts = stage.facts
    lived = [
        z + (f" with holidays of {c}" if c else "") for z, c in zip(facts["zones"], facts["countries"], strict=True)
    ]
    rows = [_row("civil time", "calendar", ", ".join(lived[:5]) + (f" and {len(lived) - 5} more" if lived[5:] else ""))]
    rows += [_row(part, "spatial", _plainly(how)) for part, how in facts["spatial"].items()]
    rows += [
        _row("dominant periods", "spectrum", "periodogram of the training part"),
        _row("power spectral density", "density", "Welch's method on the training part, log-spaced bands"),
    ]
    if "bins" in stage.tables:
        rows.append(_row("bins", "bins", "quantiles of the training values of each channel"))
    if "codebook" in facts and facts["codebook"]["codes"]:
        rows.append(_row("codebook", "codebook", _codebook(facts["codebook"])))
    return rows


def _row(part: str, table: str, how: str) -> dict[str, str]:
    return {"part": part, "table": table, "how": how}


def _plainly(how: dict[str, Any]) -> str:
    more = {k: v for k, v in how.items() if k != "method"}
    said = [f"{k.replace('_', ' ')} {v[:16] if k == 'weights' else v}" for k, v in more.items()]
    return str(how["method"]) + (": " + ", ".join(said) if said else "")


def _codebook(book: dict[str, Any]) -> str:
    said = [
        f"{book['codes']} patches of {book['steps']} steps, {book['dead']} dead, {book['unused_in_val']} unused in val"
    ]
    for part, error in book["error"].items():
        if error["codebook"] is not None:
            against = f"{error['mean']:.3f} of the mean and {error['one_component']:.3f} of one principal component"
            said.append(f"error on {part} {error['codebook']:.3f} against {against}")
    return "; ".join(said)
