"""Versioned tables: Delta Lake on local disk or an object store, published stage by stage, readable as SQL.

A stage is several tables that belong together. Each table is written as a new Delta version; then one row appended to
the stage's `manifest` table names those versions. Readers only ever follow the manifest, so a crash in between leaves
the previous stage whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from stfm_pipeline.digest import Blocks, data_version
from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.large import Chunks, Table, is_large, rows_at_once
from stfm_pipeline.points import reached
from stfm_pipeline.stage import NEVER, Tail

if TYPE_CHECKING:
    import duckdb

MANIFEST = "manifest"
ROW = "_row"
# Groups of rows are read side by side, and passed over where they are not asked for.
CELLS_OF_A_GROUP = 1 << 22
FILES_OF_A_TABLE = 32
# Schemas and catalogs that DuckDB keeps for itself.
_TAKEN = {"information_schema", "memory", "pg_catalog", "system", "temp"}


Tables = Mapping[str, Table | Tail]


class GoneError(StfmError):
    """A version whose files were swept."""


@dataclass(frozen=True)
class Stage:
    """One published state of a stage: which version of which table, what it was made from, and its facts.

    `blocks` are the tables' digests. With `since`, rows before that time are as in the version before, in every table.
    `cost` is what making it took, where that was measured: `seconds`, and the process's `peak_mb` by then.
    """

    dataset: str
    name: str
    fingerprint: str
    data_version: str
    tables: dict[str, int]
    facts: dict[str, Any]
    inputs: dict[str, str]
    published_at: str
    blocks: dict[str, Blocks]
    since: datetime | None
    cost: dict[str, float]
    version: int


class Lake:
    """Tables under `uri` as `<uri>/<dataset>/<stage>/<table>`; dataset names are validated before they get here."""

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.options = storage_options
        self._cache: dict[str, Stage] = {}

    def _path(self, dataset: str, stage: str, table: str) -> str:
        return f"{self.uri}/{dataset}/{stage}/{table}"

    def _exists(self, path: str) -> bool:
        from deltalake import DeltaTable

        if "://" not in path and not Path(path, "_delta_log").is_dir():
            return False
        return DeltaTable.is_deltatable(path, self.options)

    def publish(
        self,
        dataset: str,
        stage: str,
        tables: Tables,
        *,
        fingerprint: str,
        facts: dict[str, Any],
        inputs: dict[str, str],
        since: datetime | None = None,
        cost: Callable[[], dict[str, float]] = dict,
    ) -> Stage:
        """Write every table, then commit the manifest row that makes them the current state of the stage.

        With `since`, the first time at which anything differs, tables that are not given stay as they are, and of a
        `Tail` only its own rows are written.
        """
        before = self.stage(dataset, stage)
        kept = before if since is not None else None
        held = {n: t for n, t in tables.items() if not isinstance(t, Chunks)}
        streams = {n: t for n, t in tables.items() if isinstance(t, Chunks)}
        with ThreadPoolExecutor(1) as beside:
            blocks = beside.submit(lambda: {n: self._blocks(before, n, t) for n, t in held.items()})
            versions = {name: self._put(before, dataset, stage, name, table) for name, table in held.items()}
        passed = {name: self._stream(self._path(dataset, stage, name), table) for name, table in streams.items()}
        digests = {**(kept.blocks if kept else {}), **blocks.result(), **{n: b for n, (_, b) in passed.items()}}
        versions = {**(kept.tables if kept else {}), **versions, **{n: v for n, (v, _) in passed.items()}}
        row = {
            "fingerprint": fingerprint,
            "data_version": data_version(digests, facts),
            "tables": json.dumps(versions),
            "facts": json.dumps(facts, default=str),
            "inputs": json.dumps(inputs),
            "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "blocks": json.dumps({n: b.to_json() for n, b in digests.items()}),
            "since": since.isoformat() if since is not None else None,
            "cost": json.dumps(cost()),
        }
        frame = pl.DataFrame([row], schema_overrides={"since": pl.String})
        path, rows = self._path(dataset, stage, MANIFEST), 0
        if before is not None:
            known = self._table(path)
            rows = known.count()
            if len(known.file_uris()) > FILES_OF_A_TABLE:
                known.optimize.compact()
        self._write(path, frame, mode="append", first_row=rows)
        published = self.stage(dataset, stage)
        assert published is not None
        return published

    def _blocks(self, before: Stage | None, name: str, table: pl.DataFrame | Tail) -> Blocks:
        if isinstance(table, pl.DataFrame):
            return Blocks.of(table)
        assert before is not None, "a tail continues a version"
        known = before.blocks[name]
        start = known.start(table.first)
        head = self.read_rows(before, name, start, table.first)
        rest = table.frame if head.is_empty() else pl.concat([head, table.frame])
        return known.continued(start, rest)

    def _put(self, before: Stage | None, dataset: str, stage: str, name: str, table: pl.DataFrame | Tail) -> int:
        path = self._path(dataset, stage, name)
        if isinstance(table, pl.DataFrame):
            return self._write(path, table)
        assert before is not None, "a tail continues a version"
        rows = before.blocks[name].rows
        if str(table.frame.schema) != before.blocks[name].schema:
            raise StfmError(
                f"rows of another form cannot continue '{name}' of {stage} of '{dataset}'",
                expected=before.blocks[name].schema,
                found=str(table.frame.schema),
            )
        current = self._table(path)
        if set(current.file_uris()) != set(self._table(path, before.tables[name]).file_uris()):
            # A writer was killed before its manifest row: what it left is not what is continued.
            return self._write(path, pl.concat([self.read_rows(before, name, 0, table.first), table.frame]))
        if len(current.file_uris()) > FILES_OF_A_TABLE:
            current.optimize.compact()
        where = None if table.first == rows else f"{ROW} >= {table.first}"
        return self._write(path, table.frame, "overwrite" if where else "append", table.first, where)

    def _stream(self, path: str, table: Chunks) -> tuple[int, Blocks]:
        """Write a table a few rows at a time, a commit each; readers go by the manifest and see none of them yet."""
        blocks: list[Blocks] = []
        version, row = -1, 0
        # A writer that is handed a stream holds all of it.
        for frame in Blocks.beside(table.frames(), blocks):
            version = self._write(path, frame, "append" if row else "overwrite", row)
            row += len(frame)
        if row != len(table):
            raise StfmError("a table did not come whole", expected=f"{len(table)} rows", found=f"{row}")
        return version, blocks[0]

    def _write(
        self, path: str, frame: pl.DataFrame, mode: Any = "overwrite", first_row: int = 0, where: str | None = None
    ) -> int:
        from deltalake import DeltaTable, WriterProperties, write_deltalake

        longest = frame.select(pl.selectors.list().list.len().max()).rows()
        cells = frame.width + sum(n or 0 for row in longest for n in row)
        if "://" not in path:
            Path(path).mkdir(parents=True, exist_ok=True)
        whole = mode == "overwrite" and where is None
        # Delta writes batches side by side and does not keep their order; every table here has one.
        write_deltalake(
            path,
            frame.with_row_index(ROW, offset=first_row).to_arrow(),
            mode=mode,
            predicate=where,
            schema_mode="overwrite" if whole else "merge" if path.endswith(MANIFEST) else None,
            storage_options=self.options,
            # What a model was made from can be read for as long as the model is there, not for Delta's thirty days.
            configuration={"delta.enableExpiredLogCleanup": "false"},
            writer_properties=WriterProperties(max_row_group_size=max(1, CELLS_OF_A_GROUP // (cells + 1))),
        )
        version = DeltaTable(path, storage_options=self.options).version()
        reached("stage" if path.endswith(MANIFEST) else "table")
        return version

    def history(self, dataset: str, stage: str) -> list[Stage]:
        """Every published state of a stage, oldest first."""
        path = self._path(dataset, stage, MANIFEST)
        return _stages(dataset, stage, self._load(path), 0) if self._exists(path) else []

    def stage(self, dataset: str, stage: str) -> Stage | None:
        """The current state of a stage, or None if it was never published."""
        path = self._path(dataset, stage, MANIFEST)
        if not self._exists(path):
            return None
        table = self._table(path)
        last = table.count() - 1
        rows = pl.scan_delta(table, storage_options=self.options).filter(pl.col(ROW) == last).drop(ROW).collect()
        return _stages(dataset, stage, rows, last)[0]

    def changed_since(self, dataset: str, stage: str, version: str) -> datetime | None:
        """The time before which the current state is as the one of data version `version`; None where none is known."""
        path = self._path(dataset, stage, MANIFEST)
        scan = pl.scan_delta(self._table(path), storage_options=self.options)
        found = NEVER
        rows = scan.select(ROW, "data_version", "since").collect().sort(ROW, descending=True)
        for known, since in rows.select("data_version", "since").iter_rows():
            if known == version:
                return found
            if since is None:
                return None
            found = min(found, datetime.fromisoformat(since))
        return None

    def require(self, dataset: str, stage: str) -> Stage:
        found = self.stage(dataset, stage)
        if found is None:
            raise StfmError(
                f"'{dataset}' has no {stage} stage yet",
                fix=f"run `stfm run {dataset} --until {stage}`",
            )
        return found

    def stages(self, dataset: str) -> Iterator[Stage]:
        """Current state of every stage of a dataset (local lakes are listed; stores are asked stage by stage)."""
        root = Path(self.uri, dataset)
        if "://" not in self.uri and root.is_dir():
            for folder in sorted(root.iterdir()):
                if found := self.stage(dataset, folder.name):
                    yield found

    def sweep(self, dataset: str, stage: str, keep: Iterable[dict[str, int]], dry_run: bool = False) -> int:
        """Delete files of table versions that neither the current state nor `keep` (table: version) names.

        Files that a killed write left go too, so nobody may be writing. Returns the bytes on disk that went.
        """
        root = Path(self.uri, dataset, stage)
        current = self.stage(dataset, stage)
        named = [*keep, *([current.tables] if current else [])]
        freed = 0
        for path in sorted(p.parent for p in root.glob("*/_delta_log")):
            if path.name == MANIFEST:
                versions = [self._table(str(path)).version()]
            else:
                versions = sorted({n[path.name] for n in named if path.name in n})
            before = _bytes(path)
            gone = self._table(str(path)).vacuum(
                retention_hours=0,
                enforce_retention_duration=False,
                dry_run=dry_run,
                full=True,
                keep_versions=versions,
            )
            freed += sum(_bytes(path / name) for name in gone) if dry_run else before - _bytes(path)
        return freed

    def read(self, stage: Stage, table: str) -> pl.DataFrame:
        """A table exactly as that state of the stage published it."""
        if table not in stage.tables:
            raise UsageError(
                f"stage '{stage.name}' of '{stage.dataset}' has no table '{table}'",
                expected=f"one of: {', '.join(stage.tables)}",
            )
        with _there(stage):
            return self._load(self._path(stage.dataset, stage.name, table), stage.tables[table])

    def table(self, stage: Stage, table: str) -> Table:
        """The same, a few rows at a time where it is too large to hold."""
        first = self.read_rows(stage, table, 0, 1)
        width = sum(int(n or 0) for row in first.select(pl.selectors.list().list.len()).rows() for n in row)
        rows = stage.blocks[table].rows if table in stage.blocks else 0
        if "time" not in first.columns or not is_large((rows, width)):
            return self.read(stage, table)
        size = rows_at_once(width)

        def frames() -> Iterator[pl.DataFrame]:
            yield from (self.read_rows(stage, table, i, i + size) for i in range(0, rows, size))

        return Chunks(self._column(stage, table, "time"), first.columns, frames)

    def _column(self, stage: Stage, table: str, column: str) -> pl.Series:
        source = self._table(self._path(stage.dataset, stage.name, table), stage.tables[table])
        with _there(stage):
            return pl.scan_delta(source, storage_options=self.options).select(ROW, column).collect().sort(ROW)[column]

    def as_made_of(self, dataset: str, stage: str, version: str) -> Stage | None:
        """The latest state of a stage with this data version."""
        scan = pl.scan_delta(self._table(self._path(dataset, stage, MANIFEST)), storage_options=self.options)
        rows = scan.filter(pl.col("data_version") == version).collect().sort(ROW).tail(1)
        return _stages(dataset, stage, rows.drop(ROW), rows[ROW][0])[0] if len(rows) else None

    def distinct(self, stage: Stage, table: str, columns: list[str]) -> pl.DataFrame:
        """The rows of these columns, each once."""
        source = self._table(self._path(stage.dataset, stage.name, table), stage.tables[table])
        return pl.scan_delta(source, storage_options=self.options).select(columns).unique().collect()

    def read_rows(self, stage: Stage, table: str, start: int, stop: int | None = None) -> pl.DataFrame:
        """Rows `start` to `stop` (exclusive) of a table; files that hold none of them are passed over."""
        source = self._table(self._path(stage.dataset, stage.name, table), stage.tables[table])
        wanted = pl.col(ROW) >= start if stop is None else (pl.col(ROW) >= start) & (pl.col(ROW) < stop)
        with _there(stage):
            frame = pl.scan_delta(source, storage_options=self.options).filter(wanted).collect()
        return (frame if frame[ROW].is_sorted() else frame.sort(ROW)).drop(ROW)

    def tail(self, stage: Stage, table: str, since: datetime) -> Tail | None:
        """The rows of a table from `since` on, by its column `time`; None where they are not its last ones."""
        source = self._table(self._path(stage.dataset, stage.name, table), stage.tables[table])
        with _there(stage):
            scan = pl.scan_delta(source, storage_options=self.options)
            frame = scan.filter(pl.col("time") >= since).collect().sort(ROW)
        rows = stage.blocks[table].rows if table in stage.blocks else source.count()
        first = rows - len(frame)
        if len(frame) and cast(int, frame[ROW].min()) != first:
            return None
        return Tail(first, frame.drop(ROW))

    def rows(
        self, stage: Stage, table: str, columns: list[str], start: int, stop: int, at_once: int = 512
    ) -> Iterator[tuple[Any, pl.DataFrame]]:
        """Rows `start` to `stop` (exclusive), a few at a time, with the number of each; the rest is passed over."""
        import pyarrow.dataset as ds

        source = self._table(self._path(stage.dataset, stage.name, table), stage.tables[table]).to_pyarrow_dataset()
        within = (ds.field(ROW) >= start) & (ds.field(ROW) < stop)
        for batch in source.to_batches(
            columns=[*columns, ROW], filter=within, batch_size=at_once, batch_readahead=1, fragment_readahead=1
        ):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            if len(frame):
                yield frame[ROW].to_numpy().astype(np.int64), frame.drop(ROW)

    def _table(self, path: str, version: int | None = None) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(path, version=version, storage_options=self.options)

    def _load(self, path: str, version: int | None = None) -> pl.DataFrame:
        # A third of the time and half of the memory that pyarrow takes for lists.
        frame = pl.read_delta(self._table(path, version), storage_options=self.options)
        return (frame if frame[ROW].is_sorted() else frame.sort(ROW)).drop(ROW)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that sees every current table as `<dataset>.<stage>[_<table>]` and nothing outside.

        Hyphens become underscores, and a name that DuckDB keeps for itself gets one at its end. The stage's own name is
        that of a table called like it, and of the long view of a dense signal.
        """
        import duckdb

        connection = duckdb.connect()
        root = Path(self.uri)
        for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
            schema = folder.name.replace("-", "_")
            schema += "_" * (schema in _TAKEN)
            connection.execute(f'create schema if not exists "{schema}"')
            stages = list(self.stages(folder.name))
            for stage in stages:
                for table, version in stage.tables.items():
                    path = self._path(folder.name, stage.name, table)
                    source = f"_{schema}_{stage.name}_{table}".replace("-", "_")
                    connection.register(source, self._table(path, version).to_pyarrow_dataset())
                    view = (stage.name if table == stage.name else f"{stage.name}_{table}").replace("-", "_")
                    connection.execute(f'create view "{schema}"."{view}" as select * exclude ({ROW}) from "{source}"')
            for stage in stages:
                if main := _long_view(stage, schema):
                    connection.execute(f'create view "{schema}"."{stage.name}" as {main}')
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        return connection


@contextmanager
def _there(stage: Stage) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise GoneError(
            f"version {stage.version} of {stage.name} of '{stage.dataset}' is gone",
            expected="one that a current stage or a registered model is made from: `stfm clean --old` keeps those",
            found=str(error).splitlines()[0],
        ) from error


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.glob("*.parquet"))


def _long_view(stage: Stage, schema: str) -> str | None:
    """SQL for the stage under its own name: the dense signal unnested into rows, or the raw observations."""
    if "observations" in stage.tables:
        if "dense_observations" not in stage.facts:
            return f'select * from "{schema}"."{stage.name}_observations"'
        rows, places = (f'"_{schema}_{stage.name}_{t}"' for t in ("observations", "entities"))
        names = [c.replace('"', "") for c in stage.facts["dense_observations"]]
        cells = ", ".join(f'nullif(o."{c}"[e.{ROW} + 1], \'NaN\') as "{c}"' for c in names)
        # A cell that is null, and not NaN, is one of which the source has no row; beyond a list's end all are.
        there = " or ".join(f'o."{c}"[e.{ROW} + 1] is not null' for c in names)
        return f"select e.entity, o.time, {cells} from {rows} as o join {places} as e on {there}"
    blocks: dict[str, list[str]] = stage.facts.get("dense", {})
    if not blocks:
        return None
    columns, joins = [], []
    for table, names in blocks.items():
        c = len(names)
        for k, name in enumerate(names, start=1):
            cell = f"e.index * {c} + {k}"
            quoted = name.replace('"', "")
            columns.append(f'case when "{table}".observed[{cell}] then "{table}".values[{cell}] end as "{quoted}"')
        owner = "harmonized" if table == "signal" else stage.name
        joins.append(f'"{schema}"."{owner}_{table}" as "{table}"')
    first, *rest = joins
    tables = first + "".join(f" join {other} using (time)" for other in rest)
    order = f'"{schema}"."harmonized_entities"'
    return f"select e.entity, time, {', '.join(columns)} from {tables} cross join {order} as e"


def _stages(dataset: str, stage: str, rows: pl.DataFrame, first: int) -> list[Stage]:
    found = []
    for i, row in enumerate(rows.to_dicts(), start=first + 1):
        decoded = {k: json.loads(row[k]) for k in ("tables", "facts", "inputs")}
        blocks = {n: Blocks.from_json(b) for n, b in json.loads(row.get("blocks") or "{}").items()}
        since = datetime.fromisoformat(row["since"]) if row.get("since") else None
        cost = json.loads(row.get("cost") or "{}")
        plain = {k: row[k] for k in ("fingerprint", "data_version", "published_at")}
        found.append(Stage(dataset, stage, **plain, **decoded, blocks=blocks, since=since, cost=cost, version=i))
    return found
