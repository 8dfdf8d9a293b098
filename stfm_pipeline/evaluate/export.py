"""Result tables as files: csv with every row at full precision, LaTeX with the table a paper prints.

A csv cell is empty where there is no value, or where a row is about all channels.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from stfm_pipeline.datasets.spec import Benchmark, DatasetSpec
from stfm_pipeline.errors import UsageError
from stfm_pipeline.evaluate.latex import MOST_DECIMALS, Cell, Line, Table, latex
from stfm_pipeline.evaluate.metrics import Row

SUFFIXES = (".csv", ".tex")
Rows = Sequence[dict[str, Any]]
# Title, scale, channel and metrics of a group of columns.
Block = tuple[str, str, str | None, tuple[str, ...]]

# More channels than this have tables of their own, a few at a time.
CHANNELS_AT_ONCE = 3


def check_suffix(path: Path) -> str:
    """The form a file's name asks for, `.csv` or `.tex`; any other is a `UsageError`, before anything is computed."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a table cannot be written as '{path.name}'",
            expected=f"a name that ends in {' or '.join(SUFFIXES)}",
            found=f"'{path.suffix}'" if path.suffix else "no ending",
            fix=f"for instance {path.stem or 'table'}.csv",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder", fix="name a file")
    return path.suffix.lower()


def write_leaderboard(
    rows: Rows,
    facts: dict[str, Any] | None,
    spec: DatasetSpec,
    path: Path,
    *,
    part: str = "test",
    notes: Sequence[str] = (),
) -> Path:
    """Write a leaderboard, all its rows as csv, or its averages over the horizon on `part` as LaTeX; returns the path.

    `rows` are `evaluate.metrics.Row`s as dicts, `facts` those of the evaluated stage (order, candidate, warning). With
    facts, a dataset with a published protocol gets a second table, in which the published rows stand beside ours.
    """
    if check_suffix(path) == ".csv":
        return _write(to_csv(rows, [f.name for f in fields(Row)]), path)
    shown = [r for r in rows if r["split"] == part]
    if not shown:
        raise UsageError(f"no row is about {part}", found=", ".join(sorted({r["split"] for r in rows})) or "no rows")
    tables = _leaderboard(shown, facts, spec, part, notes)
    if facts is not None and part == "test" and spec.benchmark is not None and spec.benchmark.published:
        tables += _protocol(spec, spec.benchmark, _as_measured(spec, spec.benchmark, shown, tables[0]))
    return _write(latex(tables), path)


def write_benchmark(spec: DatasetSpec, measured: Rows, compared: Rows, path: Path) -> Path:
    """Write a published protocol's table: published rows and ours, by step or by length; returns the path.

    A row of `measured` has `system`, `look_back`, `scores` {step, length or "avg": {metric: value}}, `seeds`,
    `windows`, and may have `deviations` like `scores`, over seeds; `compared` is what `reproduce.reproduction` gives.
    Raises `UsageError` on a dataset without a published protocol.
    """
    form = check_suffix(path)
    rule = spec.benchmark
    if rule is None:
        raise UsageError(f"'{spec.name}' has no published protocol", fix="add a `benchmark` section to it")
    if form == ".csv":
        return _write(to_csv(_long(spec, rule, measured, compared)), path)
    return _write(latex(_protocol(spec, rule, measured, compared)), path)


def to_csv(rows: Rows, columns: Sequence[str] = ()) -> str:
    """Rows as csv, `columns` first and any others after them; floats are written so that they come back bit for bit."""
    names = list(dict.fromkeys([*columns, *(k for r in rows for k in r)]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_exact(r.get(k)) for k in names] for r in rows])
    return out.getvalue()


def _exact(value: Any) -> Any:
    return "" if value is None else repr(float(value)) if isinstance(value, float) else value


def _write(text: str, path: Path) -> Path:
    """Write whole or not at all; what was there before stays until the new file is complete."""
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        # As an ordinary new file would be: scratch files are private.
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(0o666 & ~mask)
        os.replace(scratch, path)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written", found=error.strerror or str(error), fix="name another") from error
    return path


def _leaderboard(
    rows: Rows, facts: dict[str, Any] | None, spec: DatasetSpec, part: str, notes: Sequence[str]
) -> list[Table]:
    """One table with up to three channels and all of them together; of more channels, three at a time after it."""
    by = {(r["system"], r["scale"], r["channel"]): r for r in rows if r["horizon"] == "avg"}
    systems = list(dict.fromkeys(s for s, _, _ in by))
    units = {c.name: c.unit for c in spec.channels}
    channels = [c for c in units if (systems[0], "data", c) in by]
    lead = spec.task.loss
    whole = all((s, "standardised", None) in by for s in systems)
    if facts is not None:
        order = {r["system"]: i for i, r in enumerate(facts["ranking"])}
        systems.sort(key=lambda s: order.get(s, len(order)))
    elif whole:
        systems.sort(key=lambda s: float(by[s, "standardised", None][lead]))
    together: list[Block] = [("all channels, standardised", "standardised", None, ("mse", "mae"))] if whole else []
    each: list[Block] = [(f"{c} ({units[c]})", "data", c, _data_metrics(by, systems, c)) for c in channels]
    some = [each[i : i + CHANNELS_AT_ONCE] for i in range(0, len(each), CHANNELS_AT_ONCE)]
    blocks = [[*(some[0] if some else []), *together]] if len(some) <= 1 else [together, *some] if together else some
    seeds = {s: next(r["seeds"] for k, r in by.items() if k[0] == s) for s in systems}
    several = max(seeds.values()) > 1
    first = next(iter(by.values()))
    said = [f"{spec.title}: {part}, {first['windows']} windows, averaged over the horizon."]
    if facts is not None:
        said += [f"Systems in the order of their val scores, by which {facts['candidate']['system']} was chosen."]
        notes = [*([facts["warning"]] if facts.get("warning") else []), *notes]
    said += [f"Note: {n}." for n in notes]
    return [
        Table(
            " ".join(said),
            f"tab:{spec.name}-{part}" + (f"-{i}" if i > 1 else ""),
            ("System", "Seeds") if several else ("System",),
            tuple((title, metrics) for title, _, _, metrics in block),
            (tuple(_line(s, seeds[s] if several else None, by, block) for s in systems),),
        )
        for i, block in enumerate(blocks, start=1)
    ]


def _data_metrics(by: dict[Any, dict[str, Any]], systems: Sequence[str], channel: str) -> tuple[str, ...]:
    known = all(by[s, "data", channel]["mape"] is not None for s in systems)
    return ("mae", "rmse", "mape") if known else ("mae", "rmse")


def _line(system: str, seeds: int | None, by: dict[Any, dict[str, Any]], block: Sequence[Block]) -> Line:
    cells = []
    for _, scale, channel, metrics in block:
        row = by[system, scale, channel]
        cells += [Cell(row[m] * _factor(m)) for m in metrics]
    return Line((system,) if seeds is None else (system, str(seeds)), tuple(cells))


def _factor(metric: str) -> int:
    """MAPE is kept as a share and printed in percent."""
    return 100 if metric == "mape" else 1


def _as_measured(spec: DatasetSpec, rule: Benchmark, rows: Rows, board: Table) -> list[dict[str, Any]]:
    """Leaderboard rows in the form of a benchmark's, systems in the order of the leaderboard."""
    wanted = [r for r in rows if (r["scale"], r["channel"]) == (rule.scale, rule.channel)]
    out = []
    for system in (line.names[0] for line in board.sections[0]):
        mine = [r for r in wanted if r["system"] == system]
        scores = {str(r["horizon"]): {m: r[m] * _factor(m) for m in rule.metrics if r[m] is not None} for r in mine}
        if rule.at == "length":
            scores = {str(spec.task.horizon): scores["avg"]}
        facts = {"seeds": mine[0]["seeds"], "windows": mine[0]["windows"]}
        out.append({"system": system, "look_back": spec.task.look_back, "scores": scores, **facts})
    return out


def _protocol(spec: DatasetSpec, rule: Benchmark, measured: Rows, compared: Rows = ()) -> list[Table]:
    """Published rows and, below a rule, ours: a group of columns per step or length that anyone reports."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for m in measured:
        one = merged.setdefault((m["system"], m["look_back"]), {"scores": {}, "deviations": {}, "seeds": m["seeds"]})
        one["scores"] |= {str(k): v for k, v in m["scores"].items()}
        one["deviations"] |= {str(k): v for k, v in m.get("deviations", {}).items()}
    for c in compared:
        for one in (one for (system, _), one in merged.items() if system == c["system"] and c["deviation"] is not None):
            one["deviations"].setdefault(str(c["at"]), {}).setdefault(c["metric"], c["deviation"])
    keys = [str(k) for p in rule.published for k in p.scores]
    if rule.at == "length" or not keys:
        keys += [k for m in merged.values() for k in m["scores"]]
    keys = sorted(dict.fromkeys(keys), key=lambda k: (k == "avg", 0 if k == "avg" else int(k)))
    at = [(k, i, m) for k in keys for i, m in enumerate(rule.metrics)]
    theirs = []
    for p in rule.published:
        values = {str(k): v for k, v in p.scores.items()}
        cells = [_cell(values[k][i] if k in values else None) for k, i, _ in at]
        theirs.append(Line((p.model, str(p.look_back or spec.task.look_back), p.source), tuple(cells)))
    ours = []
    for (system, look_back), one in merged.items():
        several = one["seeds"] > 1
        spread = one["deviations"] if several else {}
        cells = [_cell(one["scores"].get(k, {}).get(m), spread.get(k, {}).get(m)) for k, _, m in at]
        said = f"ours, {one['seeds']} seeds" if several else "ours"
        ours.append(Line((system, str(look_back), said), tuple(cells)))
    unit = next((c.unit for c in spec.channels if c.name == rule.channel), "") if rule.scale == "data" else ""
    windows = ", ".join(str(w) for w in sorted({int(m["windows"]) for m in measured}))
    said = f"{spec.title}: {f'{rule.channel} in {unit}' if unit else 'standardised'}, test"
    said += f", {windows} windows." if windows else "."
    said += " Published numbers above the rule are quoted from the source named." if theirs and ours else ""
    said += "".join(f" Note: {n}." for n in rule.notes)
    decimals = tuple(_published_decimals(rule, i) for _, i, _ in at)
    heads = ("Model", "Look-back", "Source")
    groups = tuple((_horizon(rule.at, k), tuple(rule.metrics)) for k in keys)
    return [Table(said, f"tab:{spec.name}-protocol", heads, groups, (tuple(theirs), tuple(ours)), decimals)]


def _cell(value: float | None, deviation: float | None = None) -> Cell | None:
    return None if value is None else Cell(value, deviation)


def _horizon(at: Literal["step", "length"], key: str) -> str:
    return "average" if key == "avg" else f"step {key}" if at == "step" else f"horizon {key}"


def _published_decimals(rule: Benchmark, metric: int) -> int | None:
    """As many decimals as the most exact published number of a metric has; None where nobody published one."""
    values = [scores[metric] for p in rule.published for scores in p.scores.values()]
    known = [f"{v:.{MOST_DECIMALS}f}".rstrip("0").partition(".")[2] for v in values if v is not None]
    return max(map(len, known)) if known else None


def _long(spec: DatasetSpec, rule: Benchmark, measured: Rows, compared: Rows) -> list[dict[str, Any]]:
    """A row per model, step or length, and metric: ours with what it is compared to, then what was published."""
    verdicts: dict[Any, dict[str, Any]] = {}
    for c in compared:
        verdicts.setdefault((c["system"], str(c["at"]), c["metric"]), c)
    shared = {"dataset": spec.name, "scale": rule.scale, "channel": rule.channel}
    out = []
    for m in measured:
        for at, scores in m["scores"].items():
            for metric, value in scores.items():
                c = verdicts.get((m["system"], str(at), metric), {})
                spread = m.get("deviations", {}).get(at, {}).get(metric, c.get("deviation"))
                facts = {k: m.get(k) for k in ("seeds", "windows", "seconds")}
                beside = {k: c.get(k) for k in ("published", "difference", "tolerance", "verdict")}
                what = {"model": m["system"], "source": "ours", "look_back": m["look_back"], "at": at}
                out.append({**shared, **what, "metric": metric, "value": value, "deviation": spread, **facts, **beside})
    for p in rule.published:
        for key, values in p.scores.items():
            for metric, theirs in zip(rule.metrics, values, strict=True):
                if theirs is not None:
                    what = {"model": p.model, "source": p.source, "look_back": p.look_back or spec.task.look_back}
                    out.append({**shared, **what, "at": key, "metric": metric, "value": theirs})
    return out
