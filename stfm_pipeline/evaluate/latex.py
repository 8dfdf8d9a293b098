"""Tables of scores in LaTeX, as a paper prints them: booktabs, one row per system, lower is better.

Per column the lowest value is bold and the second underlined, compared as shown, so that equal numbers look equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS, MOST_DECIMALS = 4, 6
DASH = "--"
TITLES = {"mae": "MAE", "rmse": "RMSE", "mape": r"MAPE [\%]", "mse": "MSE"}
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": r"$-$",
    # After the end of a row these would be options of it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}


@dataclass(frozen=True)
class Cell:
    """A score, with its standard deviation over seeds where there are several."""

    value: float
    deviation: float | None = None


@dataclass(frozen=True)
class Line:
    """One row of a table: what it is, then one cell per column, None where there is no value."""

    names: tuple[str, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """What a paper prints: `heads` over the names, `groups` (title, metrics) over the cells, rules between sections.

    `decimals` per column, None to show four digits of the smallest value. Texts are plain; they are escaped here.
    """

    caption: str
    label: str
    heads: tuple[str, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    sections: tuple[tuple[Line, ...], ...]
    decimals: tuple[int | None, ...] = ()


def escape(text: str) -> str:
    """Text as LaTeX that prints it: special characters escaped, dashes kept apart, white space single."""
    found = "".join(LATEX.get(c, c) for c in re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip())
    return re.sub(r"-(?=-)", "-{}", found)


def latex(tables: Sequence[Table]) -> str:
    """The tables as LaTeX with booktabs and graphicx, one `table` environment each, to be read with \\input."""
    return "% \\usepackage{booktabs,graphicx}\n" + "\n".join(_environment(t) for t in tables)


def _environment(table: Table) -> str:
    metrics = [m for _, columns in table.groups for m in columns]
    texts = _texts([line.cells for section in table.sections for line in section], table.decimals)
    body, at = [], 0
    for section in table.sections:
        if section and at:
            body.append(r"\midrule")
        for line in section:
            body.append(" & ".join([*map(escape, line.names), *texts[at]]) + r" \\")
            at += 1
    first, rules, column = [""] * len(table.heads), [], len(table.heads) + 1
    for title, columns in table.groups:
        first.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{escape(title)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + len(columns) - 1}}}")
        column += len(columns)
    lines = [
        r"\begin{table}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{{table.label}}}",
        r"\smallskip",
        rf"\sbox0{{\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(metrics)}}}",
        r"\toprule",
        " & ".join(first) + r" \\",
        "".join(rules),
        " & ".join([*map(escape, table.heads), *(TITLES[m] for m in metrics)]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        # What is too wide for the page is shrunk, nothing is stretched.
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _texts(cells: Sequence[tuple[Cell | None, ...]], decimals: Sequence[int | None]) -> list[list[str]]:
    """Cells (row, column) as LaTeX: bold the lowest of each column, underlined the next."""
    columns = []
    for k, column in enumerate(zip(*cells, strict=True)):
        known = [c if c is not None and math.isfinite(c.value) else None for c in column]
        given = decimals[k] if k < len(decimals) else None
        places = _places([c.value for c in known if c is not None]) if given is None else given
        shown = [None if c is None else f"{c.value:.{places}f}" for c in known]
        order = sorted({float(s) for s in shown if s is not None})
        columns.append([_text(c, s, order, places) for c, s in zip(known, shown, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _text(cell: Cell | None, shown: str | None, order: Sequence[float], places: int) -> str:
    if cell is None or shown is None:
        return DASH
    rank = order.index(float(shown))
    text = rf"\textbf{{{shown}}}" if rank == 0 else rf"\underline{{{shown}}}" if rank == 1 else shown
    if cell.deviation is None or not math.isfinite(cell.deviation):
        return text
    return rf"{text}\,{{\scriptsize$\pm$\,{cell.deviation:.{places}f}}}"


def _places(values: Sequence[float]) -> int:
    """Decimals that show four digits of the smallest value of a column."""
    sizes = [abs(v) for v in values if v]
    return min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(min(sizes))))) if sizes else 0
