"""Versioned tables: Delta Lake on local disk or an object store, published stage by stage, readable as SQL.

A stage is several tables that belong together. Each table is written as a new Delta version; then one row appended to
the stage's `manifest` table names those versions. Readers only ever follow the manifest, so a crash in between leaves
the previous stage whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.points import reached

if TYPE_CHECKING:
    import duckdb

MANIFEST = "manifest"
ROW = "_row"
# Groups of rows are read side by side, and passed over where they are not asked for.
CELLS_OF_A_GROUP = 1 << 22
FILES_OF_A_MANIFEST = 32
# Schemas and catalogs that DuckDB keeps for itself.
_TAKEN = {"information_schema", "memory", "pg_catalog", "system", "temp"}


@dataclass(frozen=True)
class Stage:
    """One published state of a stage: which version of which table, what it was made from, and its facts."""

    dataset: str
    name: str
    fingerprint: str
    data_version: str
    tables: dict[str, int]
    facts: dict[str, Any]
    inputs: dict[str, str]
    published_at: str
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
        tables: dict[str, pl.DataFrame],
        *,
        fingerprint: str,
        facts: dict[str, Any],
        inputs: dict[str, str],
    ) -> Stage:
        """Write every table, then commit the manifest row that makes them the current state of the stage."""
        with ThreadPoolExecutor(1) as beside:
            content = beside.submit(data_version, tables, facts)
            versions = {name: self._write(self._path(dataset, stage, name), frame) for name, frame in tables.items()}
        row = {
            "fingerprint": fingerprint,
            "data_version": content.result(),
            "tables": json.dumps(versions),
            "facts": json.dumps(facts, default=str),
            "inputs": json.dumps(inputs),
            "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        earlier = len(self.history(dataset, stage))
        self._write(self._path(dataset, stage, MANIFEST), pl.DataFrame([row]), mode="append", first_row=earlier)
        published = self.stage(dataset, stage)
        assert published is not None
        return published

    def _write(self, path: str, frame: pl.DataFrame, mode: Any = "overwrite", first_row: int = 0) -> int:
        from deltalake import DeltaTable, WriterProperties, write_deltalake

        longest = frame.select(pl.selectors.list().list.len().max()).rows()
        cells = frame.width + sum(n or 0 for row in longest for n in row)
        if "://" not in path:
            Path(path).mkdir(parents=True, exist_ok=True)
        # Delta writes batches side by side and does not keep their order; every table here has one.
        write_deltalake(
            path,
            frame.with_row_index(ROW, offset=first_row).to_arrow(),
            mode=mode,
            schema_mode="overwrite" if mode == "overwrite" else None,
            storage_options=self.options,
            # What a model was made from can be read for as long as the model is there, not for Delta's thirty days.
            configuration={"delta.enableExpiredLogCleanup": "false"},
            writer_properties=WriterProperties(max_row_group_size=max(1, CELLS_OF_A_GROUP // (cells + 1))),
        )
        version = DeltaTable(path, storage_options=self.options).version()
        reached("table" if mode == "overwrite" else "stage")
        return version

    def history(self, dataset: str, stage: str) -> list[Stage]:
        """Every published state of a stage, oldest first."""
        path = self._path(dataset, stage, MANIFEST)
        if not self._exists(path):
            return []
        rows = self._load(path).to_dicts()
        decode = ("tables", "facts", "inputs")
        return [
            Stage(dataset, stage, version=i + 1, **{k: json.loads(v) if k in decode else v for k, v in row.items()})
            for i, row in enumerate(rows)
        ]

    def stage(self, dataset: str, stage: str) -> Stage | None:
        """The current state of a stage, or None if it was never published."""
        history = self.history(dataset, stage)
        return history[-1] if history else None

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
            table = self._table(str(path))
            if path.name == MANIFEST:
                if len(table.file_uris()) > FILES_OF_A_MANIFEST and not dry_run:
                    table.optimize.compact()
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
        try:
            return self._load(self._path(stage.dataset, stage.name, table), stage.tables[table])
        except FileNotFoundError as error:
            raise StfmError(
                f"version {stage.version} of {stage.name} of '{stage.dataset}' is gone",
                expected="a current version, or one that a registered model names: `stfm clean --old` keeps those",
                found=str(error).splitlines()[0],
            ) from error

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

        Hyphens become underscores, and a name that DuckDB keeps for itself gets one at its end. A stage with a dense
        signal gets a long view under the stage's own name.
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
                    view = f"{stage.name}_{table}".replace("-", "_")
                    connection.execute(f'create view "{schema}"."{view}" as select * exclude ({ROW}) from "{source}"')
            for stage in stages:
                if main := _long_view(stage, schema):
                    connection.execute(f'create view "{schema}"."{stage.name}" as {main}')
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        return connection


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


def data_version(tables: dict[str, pl.DataFrame], facts: dict[str, Any]) -> str:
    """Identity of the content: equal tables and facts give equal versions, on every machine."""
    digest = hashlib.sha256()
    for name in sorted(tables):
        frame = tables[name]
        digest.update(f"{name}{frame.schema}".encode())
        for column in frame.iter_columns():
            for part in _parts(column):
                digest.update(part)
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


VALUES_AT_ONCE = 1_000_000
# Keeps the separator and the mark of a null apart from text that holds them.
_ESCAPED = {0: "\x020", 1: "\x021", 2: "\x022"}


def _parts(column: pl.Series) -> Iterator[Any]:
    """The column as buffers, one after the other; large ones are handed over without a copy."""
    if isinstance(column.dtype, pl.List):
        yield column.list.len().to_numpy().tobytes()
        yield from _parts(column.explode(empty_as_null=False))
    elif isinstance(column.dtype, pl.Array):
        yield from _parts(column.arr.to_list())
    elif isinstance(column.dtype, pl.Struct):
        yield column.is_not_null().to_numpy().tobytes() if column.null_count() else b""
        for field in column.struct.unnest().iter_columns():
            yield from _parts(field)
    elif isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Decimal):
        yield from _parts(column.cast(pl.String))
    elif column.dtype == pl.Binary:
        yield from _parts(column.bin.encode("hex"))
    elif column.dtype == pl.String:
        if column.str.contains(r"[\x00-\x02]").any():
            column = pl.Series(
                [None if v is None else v.translate(_ESCAPED) for v in column.to_list()], dtype=pl.String
            )
        for i in range(0, max(len(column), 1), VALUES_AT_ONCE):
            text = column.slice(i, VALUES_AT_ONCE).fill_null("\x01").str.join("\x00")
            yield ("\x00" if i else "").encode() + (text[0] or "").encode()
    else:
        physical = column.to_physical()
        if physical.null_count():
            for i in range(0, len(physical), VALUES_AT_ONCE):
                part = physical.slice(i, VALUES_AT_ONCE)
                yield part.is_not_null().to_numpy().tobytes()
                yield np.ascontiguousarray(part.fill_null(0).to_numpy()).view(np.uint8).data
        else:
            yield np.ascontiguousarray(physical.to_numpy()).view(np.uint8).data
