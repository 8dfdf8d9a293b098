"""enriched -> batches of tensors. Windows are slices of memory-mapped arrays, gathered by index and copied once.

Shapes: `b` batch, `t` time, `n` entity, `c` channel, `h` horizon, `z` zone, `k` calendar feature.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from numpy.typing import NDArray
from torch import Tensor

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Channel, Part
from stfm_pipeline.errors import StfmError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.large import passes, release, room
from stfm_pipeline.origins import origins

if TYPE_CHECKING:
    import polars as pl

    from stfm_pipeline.lake import Lake
    from stfm_pipeline.tables import Signal

CODE = (
    __name__,
    "stfm_pipeline.tables",
    "stfm_pipeline.harmonize.scaler",
    "stfm_pipeline.harmonize.climatology",
    "stfm_pipeline.embed.patches",
    "stfm_pipeline.side_info.tensors",
    "stfm_pipeline.embed.frequency",
    "stfm_pipeline.embed.places",
    "stfm_pipeline.embed.lineage",
)
CALENDAR = ("tod", "dow", "holiday", "month", "week")
PLACES = ("spatial", "frequency", "text", "static")
KEPT = 2
STATISTICS = (
    *(f"{side}{k}" for side in ("", "past_", "ahead_") for k in ("mean", "std")),
    *(f"seen_{f}" for f in CALENDAR),
)


@dataclass(frozen=True)
class Problem:
    """What a model is told before it is built: sizes, names, and small tensors that are data, not weights.

    `accepted` is per channel what a step's value may be: lowest, highest (None: no bound) and codes that mean missing.
    Entities of a `grid` (height, width) are its cells, row after row. `mean` and `std` are the scaler's offset and
    scale, also where it is no z-score; `climatology` (time of day, month, n, c) is there where the dataset has one.

    tensors: mean, std (n c); weight (n c), what an error of one std is worth in the channel's mean std; past_mean,
    past_std (n f); ahead_mean, ahead_std (n g); zone (n,), the calendar each lives by; spatial (n e), where entities
    are; frequency (n k), how they swing; static (n s), what never changes, its columns named in `static`; text (n v),
    an encoder's vectors of the entities' texts; edge_index (2 k), source and target, with edge_weight (k,); patch_cell
    (p s), the entity at each place of each universal patch, and patch_home (n,), the place of its own that each entity
    has among them; used (n c), series observed often enough in training, where that is asked for or cells may be land;
    seen_tod and so on for each of CALENDAR: categories training met.
    """

    dataset: str
    kind: str
    look_back: int
    horizon: int
    entities: tuple[str, ...]
    channels: tuple[str, ...]
    minimum: tuple[float | None, ...]
    step_us: int
    steps_per_day: int
    zones: tuple[str, ...]
    zone: str
    countries: tuple[str | None, ...]
    seasons: tuple[int, ...]
    past: tuple[str, ...]
    ahead: tuple[str, ...]
    loss: str
    tensors: dict[str, Tensor] = field(repr=False, compare=False)
    grid: tuple[int, int] | None = None
    static: tuple[str, ...] = ()
    accepted: tuple[tuple[float | None, float | None, tuple[float, ...]], ...] = ()

    @property
    def n(self) -> int:
        return len(self.entities)

    @property
    def c(self) -> int:
        return len(self.channels)

    def to_config(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}

    @property
    def places(self) -> Float[Tensor, "n e"]:
        """Everything static that is known about entities, side by side."""
        return torch.cat([self.tensors[k] for k in PLACES if k in self.tensors], dim=1)

    @property
    def recent(self) -> int:
        """Steps of measured side information a model sees: the last day, or the whole look-back where that is less."""
        return min(self.look_back, self.steps_per_day)

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Problem:
        return cls(**{k: _frozen(v) for k, v in config.items()}, tensors=tensors)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Window:
    """Look-back and horizon together (t = look_back + horizon), standardised, 0 where unobserved.

    `calendar` holds category codes shifted by one: 0 is a category that training never saw. Measured side information
    comes with the last civil day before the origin (`p` steps), planned side information with the horizon.
    """

    values: Float[Tensor, "b t n c"]
    observed: Bool[Tensor, "b t n c"]
    calendar: Int[Tensor, "b t z k"]
    offset: Int[Tensor, "b t z"]
    past: Float[Tensor, "b p n f"]
    past_observed: Bool[Tensor, "b p n f"]
    ahead: Float[Tensor, "b h n g"]
    ahead_observed: Bool[Tensor, "b h n g"]


def drop_side_information(window: Window, share: float) -> Window:
    """Hide a side's whole block from a random share of windows, so that a forecast without it stays sound."""
    if share == 0 or not (window.past.shape[-1] or window.ahead.shape[-1]):
        return window
    out = {}
    for side in ("past", "ahead"):
        keep = (torch.rand(len(window.values), device=window.values.device) >= share)[:, None, None, None]
        out[side] = getattr(window, side) * keep
        out[f"{side}_observed"] = getattr(window, f"{side}_observed") & keep
    return replace(window, **out)


@dataclass(frozen=True)
class Arrays:
    """The dense arrays of a dataset over its whole clock; first axis is time."""

    values: Float[Tensor, "t n c"]
    observed: Bool[Tensor, "t n c"]
    calendar: Int[Tensor, "t z k"]
    offset: Int[Tensor, "t z"]
    past: Float[Tensor, "t n f"]
    past_observed: Bool[Tensor, "t n f"]
    ahead: Float[Tensor, "t n g"]
    ahead_observed: Bool[Tensor, "t n g"]
    lead: Int16[Tensor, "t n g"] | None = None

    def gather(self, origins: Int[Tensor, " b"], problem: Problem, needs: tuple[str, ...] = ()) -> Window:
        """Windows around each origin (the first step to forecast); side arrays only where needed."""
        look_back, horizon, recent = problem.look_back, problem.horizon, problem.recent
        if len(origins) and (int(origins.min()) < look_back or int(origins.max()) + horizon > len(self.values)):
            raise StfmError("a window reaches outside the clock", expected=f"0 to {len(self.values)} steps")
        spans = {"past": (recent, recent), "ahead": (0, horizon)}
        taken = {}
        for spec in fields(Window):
            source, side = getattr(self, spec.name), spec.name.split("_")[0]
            before, length = spans.get(side, (look_back, look_back + horizon))
            if side in spans and side not in needs:
                source = source[:, :, :0]
            taken[spec.name] = _slices(source, origins - before, length)
        if self.lead is not None and "ahead" in needs:
            # Of a plan that is made bit by bit, a window has what was known at its origin.
            known = _slices(self.lead, origins, horizon) >= torch.arange(horizon)[:, None, None]
            taken["ahead_observed"] &= known
            taken["ahead"] *= known
        return Window(**taken)


def _slices(array: Tensor, first: Tensor, length: int) -> Tensor:
    width = array[0].numel()
    if width == 0:
        return array.new_zeros((len(first), length, *array.shape[1:]))
    rows = array.reshape(len(array), width)
    view = rows.as_strided((len(array) - length + 1, length * width), (width, 1))
    return view.index_select(0, first).view(len(first), length, *array.shape[1:])


@dataclass(frozen=True)
class Panel:
    """A dataset ready for training: its problem, its arrays, its parts, and the step starts of its clock.

    `seen` marks the steps at which anything was observed; `codes` are calendar categories before training's own coding.
    """

    problem: Problem
    arrays: Arrays
    parts: dict[Part, slice]
    times: NDArray[Any]
    inputs: dict[str, str]
    seen: Bool[Tensor, " t"]
    codes: Int[Tensor, "t z k"]
    clip: int | None = None

    def origins(self, part: Part) -> Int[Tensor, " w"]:
        """First target steps of the part's windows: targets lie inside the part, look-back may reach before it.

        A window without any observed target, as over a weekend that nobody measured, has nothing to teach or to score.
        Where the clock is clips, a window lies within one.
        """
        horizon = self.problem.horizon
        found = torch.from_numpy(origins(self.parts[part], self.problem.look_back, horizon, self.clip))
        count = torch.cat([torch.zeros(1, dtype=torch.long), self.seen.long().cumsum(0)])
        return found[count[found + horizon] > count[found]]

    def batches(
        self, origins: Tensor, size: int, needs: tuple[str, ...] = (), eyes: Problem | None = None
    ) -> Iterator[tuple[Tensor, Window]]:
        """Origins with their windows, `size` at a time; `eyes` as in `gather`."""
        for chunk in torch.split(origins, size):
            yield chunk, self.gather(chunk, needs, eyes)

    def gather(self, origins: Int[Tensor, " b"], needs: tuple[str, ...] = (), eyes: Problem | None = None) -> Window:
        """Windows around each origin, as the statistics of `eyes` show them (default: the panel's own).

        A model that was trained on another split has scalers and calendar categories of its own, and forecasts only
        what it sees through them; its problem must be the same but for those tensors.
        """
        window = self.arrays.gather(origins, self.problem, needs)
        if eyes is None or same_eyes(self.problem, eyes):
            return window
        mine, theirs = self.problem.tensors, eyes.tensors
        restated = {
            side: restate(getattr(window, side), getattr(window, f"{prefix}observed"), mine, theirs, prefix)
            for side, prefix in (("values", ""), ("past", "past_"), ("ahead", "ahead_"))
            if getattr(window, side).shape[-1]
        }
        span = self.problem.look_back + self.problem.horizon
        codes = _slices(self.codes, origins - self.problem.look_back, span).numpy()
        known = [theirs[f"seen_{f}"].numpy() for f in CALENDAR]
        return replace(window, **restated, calendar=torch.from_numpy(code_categories(codes, known)))


def same_eyes(mine: Problem, theirs: Problem) -> bool:
    """Whether both standardise and code alike; raises where they are no problems of one kind."""
    changed = [k for k, v in mine.to_config().items() if v != theirs.to_config()[k] and k != "accepted"]
    if changed:
        raise StfmError(
            f"a model of '{theirs.dataset}' answers another problem than these data ask",
            expected="the same entities, channels, lengths and side columns",
            offenders=changed,
            fix=f"retrain it: `stfm retrain {mine.dataset}`",
        )
    return all(torch.equal(mine.tensors[k], theirs.tensors[k]) for k in STATISTICS)


def restate(
    standard: Float[Tensor, "b t n c"],
    observed: Bool[Tensor, "b t n c"],
    mine: dict[str, Tensor],
    theirs: dict[str, Tensor],
    prefix: str = "",
) -> Float[Tensor, "b t n c"]:
    """Values standardised by one problem's tensors in another's standardisation; exactly 0 where unobserved."""
    mean, std, mean_then, std_then = (t[f"{prefix}{k}"] for t in (mine, theirs) for k in ("mean", "std"))
    return torch.where(observed, standard * (std / std_then) + (mean - mean_then) / std_then, 0.0)


def load_panel(lake: Lake, name: str, cache: Path, look_back: int | None = None, horizon: int | None = None) -> Panel:
    """The panel of a dataset's current enriched stage, memory-mapped from `cache` (built there on first use)."""
    stages = {s: lake.require(name, s) for s in ("harmonized", "embedded", "enriched")}
    stale = [k for k, v in stages["enriched"].inputs.items() if k in stages and stages[k].data_version != v]
    if stale:
        raise StfmError(
            f"the enriched stage of '{name}' was made from an older {stale[0]} stage", fix=f"run `stfm run {name}`"
        )
    key = fingerprint(name, code_version(*CODE), {k: s.data_version for k, s in stages.items()})
    folder = cache / "panels" / f"{name}-{key}"
    if not folder.is_dir():
        _build(lake, name, stages, folder)
        _forget(name, folder.parent)
    return _open(folder, name, stages, look_back, horizon)


def _forget(name: str, cache: Path) -> None:
    """Remove panels of what the dataset was before; whoever has one open keeps it."""
    mine = [p for p in cache.glob(f"{name}-*") if p.name.rpartition("-")[0] == name]
    for old in sorted(mine, key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _build(lake: Lake, name: str, stages: dict[str, Any], folder: Path) -> None:
    import polars as pl

    from stfm_pipeline.embed import frequency, lineage, places
    from stfm_pipeline.embed.patches import Partition
    from stfm_pipeline.embed.temporal import civil_codes
    from stfm_pipeline.harmonize import climatology, scaler
    from stfm_pipeline.side_info.tensors import static_array
    from stfm_pipeline.tables import Signal, entity_hash

    def read(stage: str, table: str) -> pl.DataFrame:
        return lake.read(stages[stage], table)

    entities = read("harmonized", "entities")
    names = entities["entity"].to_list()
    if entity_hash(names) != stages["harmonized"].facts["entity_hash"]:
        raise StfmError(f"the entity index of '{name}' does not match the hash it was published with")
    channels = stages["harmonized"].facts["channels"]
    signal = Signal.from_frame(lake.table(stages["harmonized"], "signal"), names, channels)
    edges = read("harmonized", "edges")
    made = lineage.made_from(entities, edges, signal, stages["harmonized"].facts["parts"]["train"][1])
    if (stated := stages["embedded"].facts.get("made_from", {})) != made:
        raise StfmError(
            f"the embeddings of '{name}' are not of this signal",
            expected=", ".join(f"{k} {v}" for k, v in made.items()),
            found=", ".join(f"{k} {v}" for k, v in stated.items()),
            offenders=[k for k in made if stated.get(k) != made[k]],
            fix=f"remove the folder {name}/embedded of the lake and run `stfm run {name}`",
        )
    n, c = len(names), len(channels)
    mean, std = scaler.arrays(read("harmonized", "scaler"), n, c)
    out: dict[str, np.ndarray[Any, Any]] = {
        "times": signal.times.astype(np.int64),
        "values": _standardized(signal, mean, std),
        "observed": signal.observed,
        "seen": np.asarray(signal.observed.any(axis=(1, 2))),
        "mean": mean,
        "std": std,
        "weight": std / std.mean(axis=0),
    }
    dense = stages["enriched"].facts["dense"]
    for side in ("past", "ahead"):
        columns = dense.get(side, [])
        shape = (len(signal.times), n, len(columns))
        if columns:
            block = Signal.from_frame(lake.table(stages["enriched"], side), names, columns)
            side_mean, side_std = scaler.arrays(read("enriched", f"{side}_scaler"), n, len(columns))
            out[side] = _standardized(block, side_mean, side_std)
            out[f"{side}_observed"] = block.observed
            out[f"{side}_mean"], out[f"{side}_std"] = side_mean, side_std
        else:
            out[side], out[f"{side}_observed"] = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
            out[f"{side}_mean"], out[f"{side}_std"] = np.zeros((n, 0), np.float32), np.ones((n, 0), np.float32)
    if "ahead_lead" in stages["enriched"].tables:
        width = n * len(dense["ahead"])
        lead = read("enriched", "ahead_lead")["lead"].list.to_array(width).to_numpy()
        out["lead"] = lead.reshape(len(signal.times), n, -1)
    static: tuple[str, ...] = ()
    out["static"] = np.zeros((n, 0), np.float32)
    if "static" in stages["enriched"].tables:
        static, out["static"] = static_array(
            *(read("enriched", t) for t in ("static", "static_scaler", "static_vocabulary"))
        )
    out["text"] = np.zeros((n, 0), np.float32)
    if "text_vectors" in stages["enriched"].tables:
        vectors = read("enriched", "text_vectors")["vector"]
        out["text"] = np.asarray(vectors.list.to_array(int(vectors.list.len()[0])).to_numpy())
    calendar = read("embedded", "calendar")
    zones = read("embedded", "zones")
    vocabulary = read("embedded", "vocabulary")
    for feature in CALENDAR:
        out[f"seen_{feature}"] = vocabulary.filter(feature=feature).sort("code")["count"].to_numpy() > 0
    codes = calendar.select(CALENDAR).to_numpy().reshape(len(signal.times), len(zones), len(CALENDAR))
    out["codes"] = codes.astype(np.int64)
    out["calendar"] = code_categories(codes, [out[f"seen_{f}"] for f in CALENDAR])
    out["offset"] = calendar["offset"].to_numpy().reshape(len(signal.times), len(zones)).astype(np.int64)
    out["zone"] = civil_codes(entities, zones)
    out["spatial"] = places.features(read("embedded", "spatial"))
    out["frequency"] = frequency.standardised(read("embedded", "density"), n)
    code = {e: i for i, e in enumerate(names)}
    patches = read("embedded", "patches").filter(kind="universal").sort("patch", "place")
    cell = patches["entity"].replace_strict(code, return_dtype=pl.Int64).to_numpy()
    pieces = patches["patch"].n_unique()
    cut = Partition(cell.reshape(pieces, -1), patches["own"].to_numpy().reshape(pieces, -1))
    out["patch_cell"], out["patch_home"] = cut.cell, cut.home
    ends = [edges[k].replace_strict(code, return_dtype=pl.Int64).to_numpy() for k in ("source", "target")]
    out["edge_index"] = np.stack(ends)
    out["edge_weight"] = edges["weight"].to_numpy().astype(np.float32)
    if "mask" in stages["harmonized"].tables:
        out["used"] = read("harmonized", "mask")["used"].to_numpy().reshape(n, c)
    if "climatology" in stages["harmonized"].tables:
        out["climatology"] = climatology.array(read("harmonized", "climatology"), n, c)
    facts = {
        "entities": names,
        "channels": channels,
        "step_us": signal.step_us,
        "zones": zones["zone"].to_list(),
        "countries": zones["country"].to_list(),
        "past": dense.get("past", []),
        "ahead": dense.get("ahead", []),
        "static": static,
        "parts": stages["harmonized"].facts["parts"],
        "grid": stages["harmonized"].facts.get("grid"),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=folder.parent))
    for key, array in out.items():
        np.save(scratch / f"{key}.npy", np.ascontiguousarray(array), allow_pickle=False)
        release(array)
    (scratch / "facts.json").write_text(json.dumps(facts))
    try:
        os.replace(scratch, folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        if not folder.is_dir():
            raise


def _accepted(channel: Channel) -> tuple[float | None, float | None, tuple[float, ...]]:
    """Ranges and codes are those of rows: of a step that sums several nothing follows."""
    return (None, None, ()) if channel.aggregate == "sum" else (channel.minimum, channel.maximum, channel.missing)


def _standardized(signal: Signal, mean: Any, std: Any) -> Any:
    values, observed = signal.values, signal.observed
    out = room(values.shape, np.float32)
    for part in passes(len(values), values[0].size, values, observed, out):
        out[part] = standardize(values[part], observed[part], mean, std)
    return out


def standardize(values: Any, observed: Any, mean: Any, std: Any) -> Any:
    """z-scores where observed, 0 elsewhere."""
    return np.where(observed, (values - mean) / std, np.float32(0)).astype(np.float32)


def code_categories(codes: Any, seen: list[Any]) -> Any:
    """Calendar codes shifted by one; a category that training never saw, or that did not exist then, becomes 0."""
    out = np.zeros(codes.shape, np.int64)
    for k, known in enumerate(seen):
        column = codes[..., k]
        valid = column < len(known)
        met = np.zeros(column.shape, np.bool_)
        met[valid] = known[column[valid]]
        out[..., k] = np.where(met, column + 1, 0)
    return out


def _open(folder: Path, name: str, stages: dict[str, Any], look_back: int | None, horizon: int | None) -> Panel:
    from stfm_pipeline.embed.temporal import steps_per_day

    spec = get_dataset(name).spec
    facts = json.loads((folder / "facts.json").read_text())
    arrays = {
        f.name: torch.from_numpy(np.load(folder / f"{f.name}.npy", mmap_mode="c", allow_pickle=False))
        for f in fields(Arrays)
        if (folder / f"{f.name}.npy").is_file()
    }
    small = (
        "mean",
        "std",
        "weight",
        "past_mean",
        "past_std",
        "ahead_mean",
        "ahead_std",
        "zone",
        "spatial",
        "frequency",
        "static",
        "text",
        "patch_cell",
        "patch_home",
        "edge_index",
        "edge_weight",
    )
    tensors = {
        k: torch.from_numpy(np.load(folder / f"{k}.npy", allow_pickle=False))
        for k in (*small, *(f"seen_{f}" for f in CALENDAR), "climatology", "used")
        if (folder / f"{k}.npy").is_file()
    }
    problem = Problem(
        dataset=name,
        kind=spec.kind,
        look_back=look_back or spec.task.look_back,
        horizon=horizon or spec.task.horizon,
        entities=tuple(facts["entities"]),
        channels=tuple(facts["channels"]),
        minimum=tuple(c.minimum for c in spec.channels),
        step_us=facts["step_us"],
        steps_per_day=steps_per_day(facts["step_us"]),
        zones=tuple(facts["zones"]),
        zone=spec.zone,
        countries=tuple(facts["countries"]),
        seasons=spec.seasons,
        past=tuple(facts["past"]),
        ahead=tuple(facts["ahead"]),
        loss=spec.task.loss,
        tensors=tensors,
        grid=tuple(facts["grid"]) if facts["grid"] else None,
        static=tuple(facts["static"]),
        accepted=tuple(_accepted(c) for c in spec.channels),
    )
    times = np.load(folder / "times.npy", allow_pickle=False).astype("datetime64[us]")
    parts: dict[Part, slice] = {p: slice(*bounds) for p, bounds in facts["parts"].items()}
    seen = torch.from_numpy(np.load(folder / "seen.npy", allow_pickle=False))
    codes = torch.from_numpy(np.load(folder / "codes.npy", mmap_mode="c", allow_pickle=False))
    inputs = {k: s.data_version for k, s in stages.items()}
    return Panel(problem, Arrays(**arrays), parts, times, inputs, seen, codes, spec.task.clip)
