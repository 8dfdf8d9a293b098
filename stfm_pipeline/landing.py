"""Taking in what has landed: each file is checked against every dataset that reads its source, then taken or set aside.

Rules. The same bytes again change nothing and are set aside. Of rows that overlap, those that are the same change
nothing, and a later file's value replaces an earlier one's: an empty cell says nothing. Late rows are put where they
belong. A file that would break a contract, or make a table that harmonisation refuses, is set aside with the reason.
What is no fault of the file (a full disk, an archive out of reach, a writer who is not done) leaves it where it is.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import all_datasets, broken_datasets
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
from stfm_pipeline.steps import fetched
from stfm_pipeline.tables import step_us

log = logging.getLogger("stfm")
SETTLED = 5.0
# Beside it, names are made that are a little longer.
LONGEST = 200
UNFINISHED = (".part", ".tmp", ".crdownload", ".swp", "~")


@dataclass(frozen=True)
class Taken:
    """What became of a file: `accepted`, or the reason why not; the datasets that read its source."""

    source: str
    name: str
    accepted: bool
    reason: str
    datasets: tuple[str, ...]


class NotNowError(Exception):
    """What keeps a file from being taken is not in the file."""


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
        found = [(since, p.name, p) for p in place.iterdir() if (since := _whole_since(p, settled)) is not None]
        if found:
            out[place.name] = [path for *_, path in sorted(found)]
    return out


def _whole_since(path: Path, settled: float) -> int | None:
    """When a file was last changed, if it seems to be written to its end: untouched for a while, and named like it."""
    stamp = _stamp(path)
    if stamp is None or path.name.startswith(".") or path.name.endswith(UNFINISHED):
        return None
    there = path.is_file() and os.access(path, os.R_OK) and time.time() - stamp[0] / 1e9 >= settled
    return stamp[0] if there and not _open_for_writing(path) else None


def _open_for_writing(path: Path) -> bool:
    """Whether somebody on this machine holds a file open for writing, where the system can say (Linux: fcntl(2))."""
    import fcntl

    lease = getattr(fcntl, "F_SETLEASE", None)
    if lease is None:
        return False
    with path.open("rb") as handle:
        try:
            # A read lease is given only where nobody writes.
            fcntl.fcntl(handle, lease, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        fcntl.fcntl(handle, lease, fcntl.F_UNLCK)
    return False


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What is another where a file was written or replaced; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


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
        if len(os.fsencode(path.name)) > LONGEST:
            raise UsageError(
                "a file's name is too long", expected=f"at most {LONGEST} bytes", found=path.name[:60], fix="rename it"
            )
        fits = [s for s in spec.sources if member_of(path.name, s) is not None]
        if not fits:
            known = [m for s in spec.sources for m in members(s)]
            raise UsageError(
                f"{path.name} is named like no file of '{dataset}'",
                expected=f"a name that begins with one of: {', '.join(Path(m).stem for m in known)}",
                fix=f"rename it, such as {Path(known[0]).stem}-{path.name}",
            )
        name = name_of(fits[0])
        place = folder(name, settings)
        place.mkdir(parents=True, exist_ok=True)
        scratch = place / f".{path.name}.part"
        with alone(settings.lock("landing", name), f"taking in files of {name}"), ExitStack() as failed:
            failed.callback(scratch.unlink, missing_ok=True)
            shutil.copy2(path, scratch)
            # It is whole already, and nobody need wait for it.
            stamp = time.time() - 2 * SETTLED + order / 1e3
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
    """Take in every file that waits, one after the other; what is not taken stays, where it is or set aside."""
    return [
        taken
        for name, files in waiting(settings, settled).items()
        for taken in _source(name, files, lake, settings, settled)
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


def _source(name: str, files: list[Path], lake: Lake, settings: Settings, settled: float) -> Iterator[Taken]:
    known = readers()
    with alone(settings.lock("landing", name), f"taking in files of {name}"):
        _unfinished(name, settings)
        for path in files:
            # Another process may have taken it, or somebody be putting another in its place.
            if _whole_since(path, settled) is None:
                continue
            source, datasets = known.get(name, (None, []))
            names = tuple(d.spec.name for d in datasets)
            try:
                try:
                    if source is None and (broken := broken_datasets()):
                        raise NotNowError(f"it may belong to what cannot be read: {', '.join(sorted(broken))}")
                    if source is None:
                        near = get_close_matches(name, known, 5) or sorted(known)
                        raise SourceError(
                            f"no dataset reads a source '{name}'",
                            expected=f"one of the folders: {', '.join(near)}",
                            fix="`stfm land DATASET` makes the folder of its source and names it",
                        )
                    part = _take(name, path, source, datasets, lake, settings)
                except StfmError as error:
                    _set_aside(path, str(error), folder(name, settings) / ASIDE)
                    log.warning("%s: %s set aside: %s", name, path.name, str(error).splitlines()[0])
                    yield Taken(name, path.name, False, str(error), names)
                else:
                    log.info("%s: %s taken as file %d of '%s'", name, path.name, part.number, part.member)
                    yield Taken(name, path.name, True, f"file {part.number} of '{part.member}'", names)
            except (NotNowError, OSError) as error:
                log.error("%s: %s stays where it is: %s", name, path.name, error)
                yield Taken(name, path.name, False, f"it stays where it is: {error}", names)


def _take(name: str, path: Path, source: AnySource, datasets: list[Dataset], lake: Lake, settings: Settings) -> Part:
    if path.name == FACTS or not path.name.isprintable():
        raise SourceError(f"a file cannot be named {path.name!a}", fix="rename it")
    try:
        before = accepted(name, settings)
        archives = {d.spec.name: fetched(d.spec, settings) for d in datasets}
    except StfmError as error:
        raise NotNowError(str(error)) from error
    number = before[-1].number + 1 if before else 1
    place = folder(name, settings) / ACCEPTED
    scratch = place / f".{number:06d}"
    stamp = _stamp(path)
    with ExitStack() as held:
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        mine = _hold(path, scratch)
        try:
            part = _part(number, mine, path, source, before)
            if part.number < number:
                _remove(path, stamp)
                return part
            # Up to its being taken, so that no two files each fit and break a table together.
            for dataset in sorted(datasets, key=lambda d: d.spec.name):
                lock = settings.lock(dataset.spec.name, ROAD)
                held.enter_context(alone(lock, f"working on the tables of {dataset.spec.name}"))
            for dataset in datasets:
                _blame(dataset, archives[dataset.spec.name], part, lake, settings)
        except StfmError:
            if _stamp(path) == stamp:
                raise
        if _stamp(path) != stamp or file_hash(mine) != part.sha256:
            raise NotNowError("it changed while it was read")
        (scratch / FACTS).write_text(json.dumps(part.facts(), indent=1))
        target = scratch.rename(place / f"{number:06d}")
        reached("landed")
        _remove(path, stamp)
    return replace(part, path=target / path.name)


def _remove(path: Path, stamp: tuple[int, int, int] | None) -> None:
    """Remove the first name of a file that was taken, unless it is another's by now."""
    if _stamp(path) == stamp:
        path.unlink()


def _hold(path: Path, scratch: Path) -> Path:
    """A copy of the file: whoever still holds what was dropped, by another name or open, must not write into it."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return Path(shutil.copy2(path, scratch / path.name))


def _part(number: int, mine: Path, path: Path, source: AnySource, before: list[Part]) -> Part:
    """The part that a file makes, or the one that it has become and only its first name is left of."""
    sha256 = file_hash(mine)
    if (same := next((p for p in before if p.sha256 == sha256), None)) is not None:
        if same.name == path.name and same.path.stat().st_mtime_ns == mine.stat().st_mtime_ns:
            return same
        raise SourceError(f"the same bytes as {same.name}, which was taken at {same.taken_at}", fix="nothing is to do")
    known = members(source)
    member = known[0] if len(known) == 1 else member_of(path.name, source)
    if member is None:
        raise SourceError(
            f"{path.name} is named like no file of its source",
            expected=f"a name that begins with one of: {', '.join(Path(m).stem for m in known)}",
        )
    # Clocks may go back; the order of taking does not.
    taken_at = max([datetime.now(UTC).isoformat(), *(p.taken_at for p in before)])
    return Part(number, member, path.name, sha256, taken_at, mine)


def _blame(dataset: Dataset, archives: dict[str, Path], part: Part, lake: Lake, settings: Settings) -> None:
    """Try a file out; whatever is wrong with it, foreseen or not, is a `SourceError` that names the dataset."""
    try:
        try_out(dataset, archives, part, lake, settings)
    except StfmError as error:
        raise SourceError(f"{dataset.spec.name}: {error}") from error
    except Exception as error:
        # Readers raise OSErrors about a file's form, too, but only the system's have a number.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise NotNowError(f"{type(error).__name__}: {error}") from error
        raise SourceError(
            f"{dataset.spec.name}: it cannot be read",
            found=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            fix="compare it with the file that it continues",
        ) from error


def try_out(dataset: Dataset, files: dict[str, Path], part: Part, lake: Lake, settings: Settings) -> None:
    """Raise what would keep the dataset from going down the road with this file; nothing is published."""
    from stfm_pipeline import steps
    from stfm_pipeline.datasets.landed import piece

    spec = dataset.spec
    if not part.path.stat().st_size:
        raise SourceError(f"{part.name} is empty")
    published = lake.stage(spec.name, "raw")
    known = lake.read(published, "entities")["entity"].to_list() if published and "entities" in published.tables else []
    found = piece(dataset, files, part, known)
    # Entities that a reader makes up from rows are no rows of their own.
    listed = any(t == "entities" and part.member in form.names() for t, form in spec.tables.items())
    if not any(len(f) for t, f in found.items() if t != "entities" or listed):
        raise ContractError(f"{part.name} holds no row", fix="bring one with rows")
    _refuse_future(found, step_us(spec.harmonize.step))
    before = landed(spec.sources, settings)
    try:
        steps.try_out(dataset, (*before, part), lake, settings)
    except StfmError as error:
        try:
            steps.try_whole(dataset, before, lake, settings)
        except StfmError as other:
            # It could not be made without the file either, which is then not to blame.
            if published is not None:
                raise NotNowError(f"{spec.name} cannot be made without it either: {other}") from error
            return
        raise


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
