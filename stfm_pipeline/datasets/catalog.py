"""Which datasets exist: modules with `SPEC` and `read` and YAML files beside this one, and a user's own YAML files."""

from __future__ import annotations

import importlib
import json
import pkgutil
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

from stfm_pipeline import datasets as package
from stfm_pipeline.datasets.spec import Dataset, DatasetSpec, check_name
from stfm_pipeline.datasets.yaml_file import SpecError, load_yaml
from stfm_pipeline.errors import UsageError
from stfm_pipeline.parts import members
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import LocalSource, at_hand

_NOT_DATASETS = {"spec", "rules", "catalog", "formats", "yaml_file", "export", "landed"}
_registered: dict[str, Dataset] = {}


def register(dataset: Dataset) -> None:
    """Make a dataset known to this process under its own name."""
    _registered[dataset.spec.name] = dataset


def all_datasets() -> dict[str, Dataset]:
    """Every dataset that can be used, by name; a user's files are looked at anew on every call."""
    own = {name: found for name, found in _own().items() if isinstance(found, Dataset)}
    found = dict(sorted({**_built_in(), **own, **_registered}.items()))
    return found | {name: _until(found[name], end) for name, end in ends().items() if name in found}


def ends() -> dict[str, datetime]:
    """The times at which datasets stop early in this home, as `stfm run --until-date` wrote them."""
    try:
        found = json.loads(_ends_file().read_text())
        return {name: datetime.fromisoformat(end) for name, end in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{_ends_file()} cannot be read", found=str(error), fix="remove or mend it") from error


def stop_at(name: str, end: datetime | None) -> None:
    """Let a dataset stop early in this home from now on, or with None no longer."""
    spec = get_dataset(name).spec
    if end is not None:
        end = (end if end.tzinfo else end.replace(tzinfo=ZoneInfo(spec.zone))).astimezone(UTC)
    if end is not None and spec.harmonize.start is not None and end <= spec.harmonize.start:
        raise UsageError(
            f"'{name}' cannot stop before it starts", expected=f"after {spec.harmonize.start}", found=str(end)
        )
    known = {**ends(), name: end}
    path = _ends_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(json.dumps({n: e.isoformat() for n, e in known.items() if e is not None}, indent=1))
    scratch.replace(path)


def _ends_file() -> Path:
    return Settings().root / "ends.json"


def _until(dataset: Dataset, end: datetime) -> Dataset:
    return dataset.model_copy(update={"spec": dataset.spec.model_copy(update={"end": end})})


def broken_datasets() -> dict[str, SpecError]:
    """A user's dataset files that cannot be used, by name, with the reason."""
    return {name: found for name, found in _own().items() if isinstance(found, SpecError)}


def folder() -> Path:
    """Where a user's dataset files are."""
    return Settings().root / "datasets"


def _own() -> dict[str, Dataset | SpecError]:
    found: dict[str, Dataset | SpecError] = {}
    for path in sorted([*folder().glob("*.yaml"), *folder().glob("*.yml")]):
        if path.name.startswith("."):
            continue
        if path.stem in found:
            found[path.stem] = SpecError(
                f"{path.stem}.yaml and {path.stem}.yml describe one dataset", fix="remove one of them"
            )
            continue
        try:
            stamp = path.stat()
        except OSError:
            stamp = path.lstat()
        found[path.stem] = _load(path, stamp.st_ino, stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns)
    return found


@cache
def _load(path: Path, *state: int) -> Dataset | SpecError:
    """A user's dataset, or what is wrong with it. Whatever that is, the other datasets can still be used."""
    try:
        dataset = load_yaml(path)
        if dataset.spec.name in _built_in():
            raise SpecError(
                f"{path.name}: a built-in dataset has this name already", fix="rename the file, and `name` in it"
            )
    except SpecError as error:
        return error
    except Exception as error:
        return SpecError(f"{path.name} cannot be understood", found=f"{type(error).__name__}: {error}")
    return dataset


@cache
def _built_in() -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in _NOT_DATASETS or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        more = {
            k: getattr(module, k.upper() if k == "grows" else k)
            for k in ("revise", "grows")
            if hasattr(module, "revise")
        }
        more |= {"truth": module.truth} if hasattr(module, "truth") else {}
        dataset = Dataset(spec=module.SPEC, read=module.read, module=module.__name__, **more)
        found[dataset.spec.name] = dataset
    for path in sorted(Path(next(iter(package.__path__))).glob("*.yaml")):
        dataset = load_yaml(path, beside=False)
        found[dataset.spec.name] = dataset
    return found


def lacking(spec: DatasetSpec, settings: Settings) -> list[str]:
    """Files of a dataset that nobody but the user can bring, and that are not there."""
    there: dict[str, Path] = {}
    absent = []
    for source in spec.sources:
        if not isinstance(source, LocalSource):
            there |= dict.fromkeys(members(source), Path())
        elif at_hand(source, settings):
            there[source.key] = Path()
        elif not source.optional:
            absent.append(source.key)
    needed = {t: spec.tables[t] for t in ("observations", *spec.side_tables) if t in spec.tables}
    return absent or [n for form in needed.values() if not form.ready(there) for n in form.names() if n not in there]


def get_dataset(name: str) -> Dataset:
    """The dataset called `name`; an unknown or unsafe name is a `UsageError` that lists the nearest ones."""
    check_name(name)
    known = all_datasets()
    if name not in known:
        if name in (broken := broken_datasets()):
            raise broken[name]
        near = get_close_matches(name, known, n=3)
        raise UsageError(
            f"no dataset is called '{name}'",
            expected=f"one of: {', '.join(known)}",
            fix=f"did you mean '{near[0]}'?" if near else "`stfm datasets list` shows them all",
        )
    return known[name]
