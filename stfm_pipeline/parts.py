"""What has landed of a source since its archive was made: files as they came, each put in place by one rename.

landing/<source>/                     where files are dropped
landing/<source>/aside/               files that were not taken, each with its reason beside it
landing/<source>/accepted/000001/     the first file taken, with part.json beside it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import HttpSource, LocalSource, PypiSource, file_hash

ACCEPTED, ASIDE = "accepted", "aside"
FACTS = "part.json"
# The raw table that lists what has landed.
LANDED = "landed"
AnySource = PypiSource | HttpSource | LocalSource


@dataclass(frozen=True)
class Part:
    """A file that was taken: its place in the order of taking, the member it continues, and its bytes."""

    number: int
    member: str
    name: str
    sha256: str
    taken_at: str
    path: Path

    def facts(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "path"}


def name_of(source: AnySource) -> str:
    """The source's folder in `landing/`: its package, or its file and a few letters of where that lies."""
    if isinstance(source, PypiSource):
        return source.package
    if isinstance(source, HttpSource):
        name, place = source.filename, source.url
    else:
        # A home may be moved.
        path, home = source.path.absolute(), Settings().root
        name, place = source.key, str(path.relative_to(home) if path.is_relative_to(home) else path)
    return f"{Path(name).name}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"


def members(source: AnySource) -> tuple[str, ...]:
    """The names that a source's files have for readers."""
    if isinstance(source, PypiSource):
        return tuple(source.members)
    return (source.filename if isinstance(source, HttpSource) else source.key,)


def folder(name: str, settings: Settings) -> Path:
    """Where files of a source are dropped."""
    return settings.landing / name


def accepted(name: str, settings: Settings) -> list[Part]:
    """The files taken so far, in the order of taking; raises `SourceError` where one was not left as it was."""
    found = []
    for place in sorted((folder(name, settings) / ACCEPTED).glob("[0-9]*")):
        try:
            facts = json.loads((place / FACTS).read_text())
            found.append(Part(**facts, path=place / facts["name"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(place, f"{FACTS}: {error}") from error
    return found


def intact(parts: Iterable[Part]) -> None:
    """Raise `SourceError` where a file's bytes are no longer those that were taken."""
    for part in parts:
        if not part.path.is_file() or file_hash(part.path) != part.sha256:
            raise _damaged(part.path.parent, f"{part.name} is gone or has other bytes")


def _damaged(place: Path, found: str) -> SourceError:
    return SourceError(
        f"a file that was taken is not as it was: {place}",
        expected=f"{FACTS} and the file that it describes",
        found=found,
        fix=f"move the folder out of {ACCEPTED}/ and drop the file again",
    )


def landed(sources: Iterable[AnySource], settings: Settings) -> tuple[Part, ...]:
    """Everything that has landed of a dataset's sources, in the order of taking."""
    found = [part for name in dict.fromkeys(map(name_of, sources)) for part in accepted(name, settings)]
    return tuple(sorted(found, key=lambda part: (part.taken_at, part.number)))


def table(parts: Sequence[Part]) -> pl.DataFrame:
    """What has landed as a table: number, member, name, sha256, taken_at."""
    columns = {"number": pl.Int64, "member": pl.String, "name": pl.String, "sha256": pl.String, "taken_at": pl.String}
    return pl.DataFrame([part.facts() for part in parts], schema=columns)


def digest(parts: Iterable[Part]) -> str:
    """Identity of what has landed, in its order."""
    return hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()[:16]
