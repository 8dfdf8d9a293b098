"""Two handwritten digits bounce inside 64 x 64 cells: Moving-MNIST's protocol on scikit-learn's digits, made here.

Clips of 20 frames, ten to see and ten to forecast, stand one after another on one clock, a minute a frame; no window
crosses from one into the next (`task.clip`). Each digit is 8 x 8 pixels of 0 to 16, every pixel shown as 3 x 3 cells
and divided by 16; where two overlap, the brighter one shows. Unlike in Moving-MNIST, places and speeds are whole cells,
up to 4 a frame in each direction, so that ten frames can fix what follows. Train, val, gate and test draw from digits
that the others have none of.

Table `objects` holds what every frame follows from: per clip and digit its label, image, place in the first frame and
speed; `captions` says it in words. The numbers are the same wherever numpy's PCG64 gives the same whole numbers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Facts, Harmonize, RawTables, Split, Task
from stfm_pipeline.tables import dense_observations
from stfm_pipeline.truth import Determined

SEED = 20250603
SIDE, ZOOM, PIXELS = 64, 3, 8
ROOM = SIDE - ZOOM * PIXELS
FRAMES, FASTEST = 20, 4
CLIPS = (240, 40, 40, 80)
START = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

SPEC = DatasetSpec(
    name="moving-digits",
    title="Generated: two handwritten digits bounce in a square",
    kind="grid",
    licence="images: UCI optical digits, CC BY 4.0; made by code of this project (Apache-2.0)",
    homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    description=(
        "Moving-MNIST's protocol with the digits that scikit-learn brings: clips of 20 frames of 64 x 64 cells, two "
        "digits that bounce, ten frames in and ten out, with a caption per clip. Test shows digits never seen in train."
    ),
    channels=(Channel(name="brightness", unit="1", description="0 black to 1 white", minimum=0, maximum=1),),
    zone="UTC",
    seasons=(FRAMES,),
    harmonize=Harmonize(step="1m"),
    split=Split(ratios=None, counts=(CLIPS[0] * FRAMES, CLIPS[1] * FRAMES, CLIPS[2] * FRAMES, CLIPS[3] * FRAMES)),
    task=Task(look_back=10, horizon=10, clip=FRAMES),
    facts=Facts(steps=sum(CLIPS) * FRAMES, entities=SIDE * SIDE),
)


def truth() -> Determined:
    """The bound."""
    return Determined(
        SPEC.channel_names,
        "a bound of 0, for who identifies both digits: the frames follow without noise from their images, places and "
        "speeds (table objects), which ten frames show where neither digit hides the other; no forecast that reaches "
        "it from the ten frames alone is measured here",
    )


@cache
def images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's digits as (k, 24, 24) of 0 to 1, and which digit each is."""
    from sklearn.datasets import load_digits

    found = load_digits()
    large = np.kron(found.images / 16, np.ones((1, ZOOM, ZOOM)))
    return large.astype(np.float32), found.target.astype(np.int64)


def objects(clips: tuple[int, ...]) -> pl.DataFrame:
    """Two digits per clip with their first place (cells down and right) and speed (cells down and right a frame).

    `clips` are the numbers of train, val, gate and test clips; each part draws from images of its own.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    _, labels = images()
    order = rng.permutation(len(labels))
    bounds = np.cumsum([0, *CLIPS]) * len(labels) // sum(CLIPS)
    drawn = [rng.choice(order[a:b], (count, 2)) for a, b, count in zip(bounds[:-1], bounds[1:], clips, strict=True)]
    image = np.concatenate(drawn).ravel()
    place = rng.integers(0, ROOM + 1, (len(image), 2))
    speed = rng.integers(-FASTEST, FASTEST + 1, (len(image), 2))
    # Who would stand still moves to the right.
    speed[(speed == 0).all(axis=1), 1] = 1
    columns: dict[str, Any] = {
        "clip": np.arange(len(image)) // 2,
        "digit": labels[image],
        "image": image,
        "down": place[:, 0],
        "right": place[:, 1],
        "down_speed": speed[:, 0],
        "right_speed": speed[:, 1],
    }
    return pl.DataFrame(columns).cast(pl.Int64)


def frames(found: pl.DataFrame) -> NDArray[np.float32]:
    """The clips' frames (clips * FRAMES, SIDE, SIDE) from their objects."""
    large, _ = images()
    size = large.shape[1]
    out = np.zeros((found["clip"].n_unique() * FRAMES, SIDE, SIDE), np.float32)
    first = found["clip"].min()
    for row in found.iter_rows(named=True):
        down, right = (_path(row[k], row[f"{k}_speed"]) for k in ("down", "right"))
        for t in range(FRAMES):
            at = slice(down[t], down[t] + size), slice(right[t], right[t] + size)
            shown = out[(row["clip"] - first) * FRAMES + t]
            shown[at] = np.maximum(shown[at], large[row["image"]])
    return out


def _path(place: int, speed: int) -> list[int]:
    """Places in each frame: a walk that is thrown back at 0 and ROOM, as a triangle wave."""
    return [ROOM - abs((place + speed * t) % (2 * ROOM) - ROOM) for t in range(FRAMES)]


def caption(digit: int, down: int, right: int) -> str:
    """Where a digit goes at first, in words."""
    ways = [
        {-1: "up", 1: "down"}.get(int(np.sign(down))),
        {-1: "to the left", 1: "to the right"}.get(int(np.sign(right))),
    ]
    return f"{'an' if digit == 8 else 'a'} {digit} moves {' and '.join(w for w in ways if w)}"


def tables(clips: tuple[int, ...]) -> RawTables:
    """Raw tables of so many clips of each part."""
    found = objects(clips)
    values = frames(found).reshape(-1, SIDE * SIDE)
    last = START + (len(values) - 1) * MINUTE
    times = pl.datetime_range(START, last, MINUTE, time_unit="us", eager=True).alias("time")
    row, col = np.divmod(np.arange(SIDE * SIDE), SIDE)
    said = [caption(r["digit"], r["down_speed"], r["right_speed"]) for r in found.iter_rows(named=True)]
    return {
        "observations": dense_observations(times, {"brightness": values}),
        "entities": pl.DataFrame(
            {
                "entity": [f"r{r:02d}c{c:02d}" for r, c in zip(row, col, strict=True)],
                "row": row.astype(np.int32),
                "col": col.astype(np.int32),
            }
        ),
        "objects": found,
        "captions": pl.DataFrame(
            {
                "clip": found["clip"].unique(maintain_order=True),
                "time": times.gather_every(FRAMES),
                "text": [f"{a}, {b}" for a, b in zip(said[::2], said[1::2], strict=True)],
            }
        ),
    }


def read(files: dict[str, Path]) -> RawTables:
    """Raw tables: observations, cells, objects and captions. There are no files."""
    return tables(CLIPS)
