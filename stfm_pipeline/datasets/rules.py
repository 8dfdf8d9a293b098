"""Parts of a dataset's description that say how raw observations are cleaned, resampled and connected."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stfm_pipeline.datasets.formats.base import Model, Real, Whole

Finite = Annotated[Real, Field(allow_inf_nan=False)]
Phase = Literal["tod", "month"]
Positive = Annotated[Real, Field(gt=0, allow_inf_nan=False)]


class Outliers(Model):
    """Mask values further than `threshold` scaled median absolute deviations from the entity's training median."""

    threshold: Real = Field(gt=0)


class Causal(Model):
    """A filter that judges a value by itself and by earlier ones of its series. Without `channels`, of every channel.

    `reach` is how many steps back it looks.
    """

    channels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @property
    def reach(self) -> int:
        raise NotImplementedError


class Stuck(Causal):
    """A value that was the same for `steps` steps before is masked, until it changes or a step is missing.

    Values in `besides` may go on, such as the 0 of a dry month.
    """

    kind: Literal["stuck"]
    steps: Annotated[Whole, Field(ge=1)]
    besides: tuple[Finite, ...] = ()

    @property
    def reach(self) -> int:
        return self.steps


class Spikes(Causal):
    """Mask a value that lies further than `change` per step from every value of the last `within` steps.

    `change` is in the channel's unit. A level that has moved for good is accepted with its second value.
    """

    kind: Literal["spikes"]
    change: Positive
    within: Annotated[Whole, Field(ge=1)] = 2

    @property
    def reach(self) -> int:
        return self.within


class Hampel(Causal):
    """Mask a value beyond `threshold` scaled MADs of the median of the `window` steps that end with it.

    It needs half of them observed, and values that differ. (Hampel, 1974; here without a look ahead.)
    """

    kind: Literal["hampel"]
    window: Annotated[Whole, Field(ge=3)]
    threshold: Positive

    @property
    def reach(self) -> int:
        return self.window - 1


Filter = Annotated[Stuck | Spikes | Hampel, Field(discriminator="kind")]


class Coarsen(Model):
    """Blocks of `by` x `by` cells of a grid become one: the mean of the observed ones where at least a share is."""

    by: Annotated[Whole, Field(ge=2)]
    at_least: Annotated[Real, Field(ge=0, le=1)] = 0.5


class Graph(Model):
    """What all edges promise: symmetric unless `directed`, and no entity without any but those named in `isolated`."""

    directed: bool = False
    isolated: Literal["allowed"] | tuple[str, ...] = ()


class Given(Graph):
    """The edges of the raw table, as far as their evidence lies in the training part."""

    kind: Literal["given"]


class Gaussian(Graph):
    """exp(-(d / sigma)^2) of the distance d over the ground, cut below `threshold` (Shuman et al., 2013, as DCRNN).

    Without `sigma_km` it is the standard deviation of all distances between two entities.
    """

    kind: Literal["gaussian"]
    sigma_km: Positive | None = None
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.1


class Nearest(Graph):
    """An edge of weight 1 from each of an entity's `k` nearest to it; unless `directed`, and back."""

    kind: Literal["nearest"]
    k: Annotated[Whole, Field(ge=1)]


class Lattice(Graph):
    """Edges of weight 1 between cells of a grid that share a side, or with 8 `neighbours` a corner."""

    kind: Literal["grid"]
    neighbours: Literal[4, 8] = 4


class Correlation(Graph):
    """Pearson's correlation of the training part: all from `threshold` on, or each entity's `k` strongest.

    Of one `channel`, without it the first. With a `lag`, of the target with the source so many steps before.
    """

    kind: Literal["correlation"]
    channel: str | None = None
    threshold: Annotated[Real, Field(gt=0, lt=1)] | None = None
    k: Annotated[Whole, Field(ge=1)] | None = None
    lag: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sane(self) -> Correlation:
        if (self.threshold is None) == (self.k is None):
            raise ValueError("state a `threshold` or `k`, the number of strongest ones, and not both")
        if self.lag and not self.directed:
            raise ValueError("what comes after a lag has a direction: state `directed: true`")
        return self


Adjacency = Annotated[Given | Gaussian | Nearest | Lattice | Correlation, Field(discriminator="kind")]


class Decompose(Model):
    """Parts of every channel: season, trend and remainder where a `period` in steps is stated, `levels` of wavelets."""

    period: Annotated[Whole, Field(ge=2)] | None = None
    levels: Annotated[Whole, Field(ge=0, le=12)] = 0

    @model_validator(mode="after")
    def _sane(self) -> Decompose:
        if self.period is None and not self.levels:
            raise ValueError("state a `period` for season and trend, `levels` of wavelets, or both")
        return self
