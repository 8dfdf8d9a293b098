"""A dataset in one YAML file, validated with the same model as every other; errors name line, key and nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from stfm_pipeline import large
from stfm_pipeline.datasets.formats import FirstOf, Table, read_tables
from stfm_pipeline.datasets.formats.base import Form
from stfm_pipeline.datasets.formats.canonical import TEXT
from stfm_pipeline.datasets.spec import Dataset, DatasetSpec, check_name
from stfm_pipeline.errors import SourceError, UsageError
from stfm_pipeline.sources import HttpSource, LocalSource, PypiSource

MODULE = "stfm_pipeline.datasets.formats"
MAX_BYTES, MAX_DEPTH = 1_000_000, 20
WORDS, NOTHING = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
Path_ = tuple[str | int, ...]
# What YAML 1.2 takes for something else than text. 1.1 also has `no`, `1:30`, `010` and dates.
PLAIN = {
    "null": (r"~|null|", "~n"),
    "bool": (r"true|false", "tf"),
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _kind, (_pattern, _first) in PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), ["", *_first])


class SpecError(UsageError):
    """A dataset file that cannot be used, with every problem and the line it is on."""


def load_yaml(path: Path, beside: bool = True) -> Dataset:
    """The dataset that a file describes. With `beside`, files named without a source lie next to the file itself.

    Raises `SpecError` that lists every problem with its line.
    """
    data, lines = _parse(path)
    name = data.setdefault("name", path.stem)
    try:
        if not isinstance(name, str):
            raise UsageError("a name is text", found=repr(name), fix="put it into quotes, or leave `name` out")
        check_name(name)
    except UsageError as error:
        raise SpecError(f"{path.name}, line {lines.get(('name',), 1)}: {error}") from None
    if name != path.stem:
        raise SpecError(
            f"{path.name}, line {lines.get(('name',), 1)}: the file is called '{path.stem}', the dataset '{name}'",
            fix="give both one name, or leave `name` out",
        )
    data.setdefault("title", name)
    data.setdefault("licence", "unstated")
    try:
        spec = DatasetSpec.model_validate(data)
    except ValidationError as error:
        every = error.errors(include_url=False)
        # A list all of whose items are wrong is also called too short: that says nothing new.
        inner = [e for e in every if e["type"] != "too_short" or not any(_below(o, e) for o in every)]
        problems = [_explain(e, lines, data) for e in inner]
        _refuse(path, [f"line {line}: {text}" for line, text in sorted(dict.fromkeys(problems))])
    if not spec.tables:
        _refuse(path, [f"line 1: missing key 'tables' (how each raw table is read; {', '.join(_formats())})"])
    _channels_are_meant(path, spec, lines)
    if beside and spec.sources:
        spec = spec.model_copy(update={"sources": tuple(_beside(s, path.parent.resolve()) for s in spec.sources)})
    elif beside:
        spec = spec.model_copy(update={"sources": _files_beside(path, spec)})
        return Dataset(spec=spec, read=partial(read, spec, every=True), module=MODULE)
    _files_have_sources(path, spec, lines)
    return Dataset(spec=spec, read=partial(read, spec), module=MODULE)


def _beside(source: PypiSource | HttpSource | LocalSource, folder: Path) -> PypiSource | HttpSource | LocalSource:
    """A file at hand is looked for next to the description, then where every other is."""
    if not isinstance(source, LocalSource):
        return source
    known = (source.path, *source.aliases)
    path, *others = [folder / p.expanduser() for p in known]
    # Readers know it by the name it has in the description.
    return source.model_copy(update={"path": path, "aliases": (*others, *known), "name": source.key})


def read(spec: DatasetSpec, files: dict[str, Path], every: bool = False) -> Mapping[str, large.Table]:
    """Raw tables of a dataset whose spec names a format for each; with `every` none may be left out."""
    if every and (lacking := [t for t, form in spec.tables.items() if not form.ready(files)]):
        raise SourceError(
            f"tables.{lacking[0]}: no file of any of its options is there",
            expected=f"one of: {', '.join(spec.tables[lacking[0]].names())}",
            fix="put one of them beside the YAML file, or correct its name",
        )
    return read_tables(spec.tables, files, spec.scene())


def _parse(path: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    lines: dict[Path_, int] = {}
    try:
        text = _text(path)
        _check_events(text, path)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise SpecError(f"{path.name} is empty", fix="see docs/your-own-data.md for a first one")
        _note(node, (), lines, path)
        data = loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise SpecError(f"{path.name} is not UTF-8 text", found=str(error), fix="save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(
            f"{path.name}, line {line}: not YAML: {error.problem or error.context}",
            fix="check the indentation, the colons and the quotes around there",
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path.name} holds no keys", expected="lines of `key: value`", found=type(data).__name__)
    return data, lines


def _text(path: Path) -> str:
    try:
        # A pipe would wait for ever, a device never end.
        if not path.is_file():
            raise SpecError(f"{path.name} is no file that can be read", found=kind_of(path), fix="remove or mend it")
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path.name} is larger than a dataset's description can be", expected=f"{MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path.name} cannot be read", found=error.strerror or str(error)) from None


def kind_of(path: Path) -> str:
    """What lies at a path that is no regular file."""
    if path.is_dir():
        return "a folder"
    return "a link to nothing" if path.is_symlink() and not path.exists() else "a pipe, a device or nothing"


def _check_events(text: str, path: Path) -> None:
    """Refuse what a description has no use for before anything is built from it."""
    depth = 0
    events: Iterator[Any] = yaml.parse(text, _Loader)
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SpecError(f"{path.name}, line {line}: anchors or aliases are not read", fix="write the values out")
        if getattr(event, "tag", None):
            raise SpecError(f"{path.name}, line {line}: tags such as {event.tag} are not read", fix="leave it out")
        if depth > MAX_DEPTH:
            raise SpecError(f"{path.name}, line {line}: nested more than {MAX_DEPTH} deep", fix="mend the brackets")


def _note(node: yaml.Node, at: Path_, lines: dict[Path_, int], path: Path) -> None:
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode) and {"tables", "rows"} < {*at} and at[-1] in TEXT and node.tag != NOTHING:
        # A name is what is written: 007 is no octal number, `no` no truth value.
        node.tag = WORDS
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise SpecError(f"{path.name}, line {line}: key '{name}' stands twice (first on line {seen[name]})")
            seen[name] = line
            _note(value, (*at, name), lines, path)
            lines[(*at, name)] = line
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _note(value, (*at, i), lines, path)


def _refuse(path: Path, problems: list[str]) -> None:
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    raise SpecError(f"{path.name} has {count}\n  " + "\n  ".join(problems), fix="docs/your-own-data.md lists every key")


def _below(inner: Any, outer: Any) -> bool:
    size = len(outer["loc"])
    return len(inner["loc"]) > size and inner["loc"][:size] == outer["loc"]


def _dotted(path: Path_) -> str:
    return ".".join(str(p + 1) if isinstance(p, int) else p for p in path)


def _explain(error: Any, lines: dict[Path_, int], data: Any) -> tuple[int, str]:
    """Line and words for one of pydantic's complaints."""
    if error["type"] == "invalid_key":
        return lines.get((str(error["input"]),), 1), f"unknown key '{error['input']}'; keys are text"
    where = _in_file(tuple(p for p in error["loc"] if p != "[key]"), data)
    line = lines.get(where, 1)
    name = _dotted(where) or "the file"
    if error["type"] == "extra_forbidden":
        *above, key = where
        known = _fields(error["loc"][:-1])
        near = get_close_matches(str(key), known, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        place = _dotted(tuple(above))
        return line, f"unknown key '{key}'{f' in {place}' if place else ''}; {hint}"
    if error["type"] == "missing":
        *outer, key = error["loc"]
        holder = _in_file(tuple(outer), data)
        inside = f" in {_dotted(holder)}" if holder else ""
        if isinstance(key, int):
            return lines.get(holder, 1), f"{_dotted(holder)}: too short, item {key + 1} is missing"
        return lines.get(holder, 1), f"missing key '{key}'{inside}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        allowed = _formats() if "tables" in where else [t for m in _models(_type_at(error["loc"])) for t in _tags(m)]
        key = "format" if "tables" in where else "kind"
        found = str(error["input"].get(key)) if isinstance(error["input"], dict) else str(error["input"])
        near = get_close_matches(found, allowed, n=1, cutoff=0.4)
        if error["type"] == "union_tag_not_found":
            return line, f"missing key '{key}' in {name}; one of: {', '.join(allowed)}"
        hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(allowed)}"
        return line, f"{name}: '{key}: {found}' is not known; {hint}"
    text = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict | list) else f", found {error['input']!r}"
    return line, f"{name}: {text[0].lower()}{text[1:]}{found}"


def _in_file(loc: tuple[Any, ...], data: Any) -> Path_:
    """The part of pydantic's location that the file has: names of union members are its own."""
    out: list[str | int] = []
    here = data
    for position, part in enumerate(loc):
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and part in range(len(here))):
            here = here[part]
        elif position < len(loc) - 1 or not isinstance(here, dict):
            continue
        out.append(part)
    return tuple(out)


def _fields(loc: tuple[Any, ...]) -> list[str]:
    """Keys that are allowed at a location."""
    return sorted({f for m in _models(_type_at(loc)) for f in m.model_fields})


def _type_at(loc: tuple[Any, ...]) -> Any:
    """The type of what is at a location."""
    kind: Any = DatasetSpec
    for part in loc:
        options = [m for m in _models(kind) if isinstance(part, str)]
        tagged = [m for m in options if part in _tags(m)]
        held = [m.model_fields[part].annotation for m in options if part in m.model_fields]
        kind = tagged[0] if tagged else held[0] if held else kind
    return kind


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    tags: tuple[Any, ...] = ()
    for key in ("format", "kind"):
        if key in model.model_fields:
            tags += get_args(model.model_fields[key].annotation)
    return tags


def _formats() -> list[str]:
    return [str(t) for m in _models(TypeAdapter(Table)._type) for t in _tags(m) if issubclass(m, Form)]


def _files_beside(path: Path, spec: DatasetSpec) -> tuple[LocalSource, ...]:
    """The files that the tables name, next to the YAML file; what is one way of several may be absent."""
    named = [(name, isinstance(form, FirstOf)) for form in spec.tables.values() for name in form.names()]
    needed = {name for name, optional in named if not optional}
    return tuple(
        LocalSource(path=path.parent.resolve() / name, name=name, optional=name not in needed)
        for name in sorted({name for name, _ in named})
    )


def _channels_are_meant(path: Path, spec: DatasetSpec, lines: dict[Path_, int]) -> None:
    """Where observations say which column or file is which channel, they name all channels and nothing else."""
    form = spec.tables["observations"]
    problems = []
    for option in form.options if isinstance(form, FirstOf) else (form,):
        for key in ("columns", "files"):
            named = getattr(option, key, None) or spec.channel_names
            for name, text in _misnamed(named, spec.channel_names):
                line = lines.get(("tables", "observations", key, name), lines.get(("tables", "observations"), 1))
                problems.append(f"line {line}: tables.observations.{key}: {text}")
    if problems:
        _refuse(path, problems)


def _misnamed(named: Iterable[str], channels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names that are no channels, or else channels that are not named, and what to say about each."""
    wrong = []
    for name in (n for n in named if n not in channels):
        near = get_close_matches(name, channels, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(channels)}"
        wrong.append((name, f"no channel is called '{name}'; {hint}"))
    return wrong or [(c, f"lacks the channel '{c}'") for c in channels if c not in named]


def _files_have_sources(path: Path, spec: DatasetSpec, lines: dict[Path_, int]) -> None:
    """Every file that a table names must come from a source."""
    known: set[str] = set()
    for source in spec.sources:
        known |= set(getattr(source, "members", {})) | {getattr(source, "filename", "")}
        if isinstance(source, LocalSource):
            known.add(source.key)
    problems = []
    for table, form in spec.tables.items():
        for file in form.names():
            if file not in known:
                near = get_close_matches(file, known, n=1, cutoff=0.4)
                hint = f"did you mean '{near[0]}'?" if near else f"sources bring: {', '.join(sorted(known - {''}))}"
                problems.append(f"line {lines.get(('tables', table), 1)}: no source brings '{file}'; {hint}")
    if problems:
        _refuse(path, problems)
