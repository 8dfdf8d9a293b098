"""Taking in what has landed: each file is checked against every dataset that reads its source, then taken or set aside.

Rules. The same bytes again change nothing and are set aside. Of rows that overlap, those that are the same change
nothing, and a later file's value replaces an earlier one's: an empty cell says nothing. Late rows are put where they
belong. A file that would break a contract, or make a table that harmonisation refuses, is set aside with the reason.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import all_datasets
from stfm_pipeline.datasets.spec import Dataset
from stfm_pipeline.errors import ContractError, SourceError, StfmError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.parts import (
    ACCEPTED,
    ASIDE,
    FACTS,
    AnySource,
    Part,
    accepted,
    digest,
    folder,
    landed,
    members,
    name_of,
)
from stfm_pipeline.points import reached
from stfm_pipeline.road import ROAD
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import file_hash
from stfm_pipeline.tables import step_us

log = logging.getLogger("stfm")
SETTLED = 5.0
UNFINISHED = (".part", ".tmp", ".crdownload", ".swp", "~")


@dataclass(frozen=True)
class Taken:
    """What became of a file: `accepted`, or set aside, with the reason; the datasets that read its source."""

    source: str
    name: str
    accepted: bool
    reason: str
    datasets: tuple[str, ...]


def readers() -> dict[str, tuple[AnySource, list[Dataset]]]:
    """Every source that files can land for, by the name of its folder, with the datasets that read it."""
    found: dict[str, tuple[AnySource, list[Dataset]]] = {}
    for dataset in all_datasets().values():
        for source in dataset.spec.sources:
            found.setdefault(name_of(source), (source, []))[1].append(dataset)
    return found


def waiting(settings: Settings, settled: float = SETTLED) -> dict[str, list[Path]]:
    """Files that lie in landing folders and have not changed for `settled` seconds, the oldest first, by source."""
    out = {}
    for place in sorted(p for p in settings.landing.glob("*") if p.is_dir()):
        found = [p for p in place.iterdir() if _is_whole(p, settled)]
        if found:
            out[place.name] = sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))
    return out


def _is_whole(path: Path, settled: float) -> bool:
    """Whether a file seems to be written to its end: untouched for a while, and named like one that is."""
    try:
        return (
            path.is_file()
            and not path.name.startswith(".")
            and not path.name.endswith(UNFINISHED)
            and time.time() - path.stat().st_mtime >= settled
        )
    except OSError:
        return False


def put(dataset: str, files: list[Path], settings: Settings) -> list[Path]:
    """Copy files to where they land for a dataset, each whole or not at all; raises where none is meant."""
    from stfm_pipeline.datasets.catalog import get_dataset

    spec = get_dataset(dataset).spec
    if not spec.sources:
        raise UsageError(f"'{dataset}' has no source that files could land for")
    out = []
    for order, path in enumerate(files):
        if not path.is_file():
            raise UsageError(f"no file at {path}")
        fits = [s for s in spec.sources if member_of(path.name, s) is not None]
        if not fits:
            known = [m for s in spec.sources for m in members(s)]
            raise UsageError(
                f"{path.name} is named like no file of '{dataset}'",
                expected=f"a name that begins with one of: {', '.join(Path(m).stem for m in known)}",
                fix=f"rename it, such as {Path(known[0]).stem}-{path.name}",
            )
        place = folder(name_of(fits[0]), settings)
        place.mkdir(parents=True, exist_ok=True)
        scratch = place / f".{path.name}.part"
        shutil.copy2(path, scratch)
        # It is whole already, and nobody need wait for it.
        stamp = time.time() - SETTLED + order / 1e3
        os.utime(scratch, (stamp, stamp))
        out.append(scratch.replace(_free(place / path.name)))
    return out


def member_of(name: str, source: AnySource) -> str | None:
    """The member of a source that a file continues: the longest one whose name the file's begins with."""
    fits = [m for m in members(source) if _begins(name, Path(m).stem)]
    return max(fits, key=len, default=None)


def _begins(name: str, stem: str) -> bool:
    return name.startswith(stem) and not name[len(stem) : len(stem) + 1].isalnum()


def take_in(lake: Lake, settings: Settings, settled: float = SETTLED) -> list[Taken]:
    """Take in every file that waits, one after the other; what is not taken stays, set aside with its reason."""
    return [
        taken for name, files in waiting(settings, settled).items() for taken in _source(name, files, lake, settings)
    ]


def behind(lake: Lake, settings: Settings) -> dict[str, str]:
    """Datasets whose raw tables lack something that has landed, with the identity of what has."""
    there = {place.parents[1].name for place in settings.landing.glob(f"*/{ACCEPTED}/[0-9]*")}
    out = {}
    for name, dataset in all_datasets().items() if there else ():
        if there.isdisjoint(map(name_of, dataset.spec.sources)):
            continue
        raw, parts = lake.stage(name, "raw"), landed(dataset.spec.sources, settings)
        if raw is not None and raw.facts.get("landed", {}).get("digest") != digest(parts):
            out[name] = digest(parts)
    return out


def _source(name: str, files: list[Path], lake: Lake, settings: Settings) -> Iterator[Taken]:
    known = readers()
    with alone(settings.lock("landing", name), f"taking in files of {name}"):
        _unfinished(name, settings)
        for path in files:
            if not path.exists():
                continue
            source, datasets = known.get(name, (None, []))
            names = tuple(d.spec.name for d in datasets)
            try:
                if source is None:
                    raise SourceError(
                        f"no dataset reads a source '{name}'",
                        expected=f"one of the folders: {', '.join(sorted(known))}",
                    )
                part = _take(name, path, source, datasets, lake, settings)
            except StfmError as error:
                _set_aside(path, str(error), folder(name, settings) / ASIDE)
                log.warning("%s: %s set aside: %s", name, path.name, str(error).splitlines()[0])
                yield Taken(name, path.name, False, str(error), names)
            else:
                log.info("%s: %s taken as file %d of '%s'", name, path.name, part.number, part.member)
                yield Taken(name, path.name, True, f"file {part.number} of '{part.member}'", names)


def _take(name: str, path: Path, source: AnySource, datasets: list[Dataset], lake: Lake, settings: Settings) -> Part:
    before = accepted(name, settings)
    sha256 = file_hash(path)
    if (same := next((p for p in before if p.sha256 == sha256), None)) is not None:
        if path.samefile(same.path):
            # It was taken, and its first name not yet removed.
            path.unlink()
            return same
        raise SourceError(f"the same bytes as {same.name}, which was taken at {same.taken_at}", fix="nothing is to do")
    known = members(source)
    member = known[0] if len(known) == 1 else member_of(path.name, source)
    if member is None:
        raise SourceError(
            f"{path.name} is named like no file of its source",
            expected=f"a name that begins with one of: {', '.join(Path(m).stem for m in known)}",
        )
    taken_at = datetime.now(UTC).isoformat()
    part = Part(len(before) + 1, member, path.name, sha256, taken_at, path)
    for dataset in datasets:
        try:
            with alone(settings.lock(dataset.spec.name, ROAD), f"working on the tables of {dataset.spec.name}"):
                try_out(dataset, part, lake, settings)
        except StfmError as error:
            raise SourceError(f"{dataset.spec.name}: {error}") from error
        except Exception as error:
            # Whatever a file may hold that nobody foresaw, the next one is taken all the same.
            raise SourceError(
                f"{dataset.spec.name}: it cannot be read", found=f"{type(error).__name__}: {error}"
            ) from error
    if file_hash(path) != sha256:
        raise SourceError("it changed while it was read", fix="drop it again when it is written to its end")
    place = folder(name, settings) / ACCEPTED
    scratch = place / f".{part.number:06d}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        os.link(path, scratch / path.name)
    except OSError:
        shutil.copyfile(path, scratch / path.name)
    (scratch / FACTS).write_text(json.dumps(part.facts(), indent=1))
    scratch.rename(place / f"{part.number:06d}")
    reached("landed")
    path.unlink()
    return part


def try_out(dataset: Dataset, part: Part, lake: Lake, settings: Settings) -> None:
    """Raise what would keep the dataset from going down the road with this file; nothing is published."""
    from stfm_pipeline.datasets.landed import piece
    from stfm_pipeline.steps import fetched, try_raw

    spec = dataset.spec
    if not part.path.stat().st_size:
        raise SourceError(f"{part.name} is empty")
    files = fetched(spec, settings)
    published = lake.stage(spec.name, "raw")
    known = lake.read(published, "entities")["entity"].to_list() if published and "entities" in published.tables else []
    found = piece(dataset, files, part, known)
    if not any(len(f) for t, f in found.items() if t != "entities" or part.member in dataset.spec.tables):
        raise ContractError(f"{part.name} holds no row", fix="bring one with rows")
    _refuse_future(found, step_us(spec.harmonize.step))
    if published is not None:
        try_raw(dataset, (*landed(spec.sources, settings), part), lake, settings, published)


def _refuse_future(found: dict[str, pl.DataFrame], step: int) -> None:
    """A measurement from times to come is a mistake in its clock, or in its century."""
    if "observations" not in found or not len(found["observations"]):
        return
    last = cast(datetime, found["observations"]["time"].max())
    if last.timestamp() > time.time() + step / 1e6:
        raise ContractError(
            "observations from the future",
            expected=f"times up to now, {datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
            found=f"{last:%Y-%m-%dT%H:%MZ}",
            fix="mend the times, or the dataset's zone",
        )


def _unfinished(name: str, settings: Settings) -> None:
    """Remove what a killed taking left; the file itself is still where it was dropped."""
    for scratch in (folder(name, settings) / ACCEPTED).glob(".0*"):
        shutil.rmtree(scratch, ignore_errors=True)


def _set_aside(path: Path, reason: str, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    target = _free(place / path.name)
    note = target.with_name(f"{target.name}.reason.txt")
    note.write_text(f"{datetime.now(UTC).isoformat(timespec='seconds')}\n{reason}\n")
    path.rename(target)
    reached("aside")


def _free(target: Path) -> Path:
    """A name that nothing has yet."""
    number = 1
    found = target
    while found.exists():
        number += 1
        found = target.with_name(f"{target.stem}.{number}{target.suffix}")
    return found
