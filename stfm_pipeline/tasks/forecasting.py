"""Forecasting: the horizon's values are hidden; what is known ahead (calendar, timetable) is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stfm_pipeline.errors import MetricError
from stfm_pipeline.windows import Window


@dataclass(frozen=True)
class Inputs:
    """Everything a forecaster may look at; nothing measured after the origin is in here.

    `x` is standardised and 0 where not `observed`. Calendars hold codes shifted by one (0 = never seen in training),
    per civil zone; `offset` is the zone's offset from UTC in steps.
    """

    x: Float[Tensor, "b t n c"]
    observed: Bool[Tensor, "b t n c"]
    calendar: Int[Tensor, "b t z k"]
    calendar_ahead: Int[Tensor, "b h z k"]
    offset: Int[Tensor, "b t z"]
    offset_ahead: Int[Tensor, "b h z"]
    past: Float[Tensor, "b p n f"]
    past_observed: Bool[Tensor, "b p n f"]
    ahead: Float[Tensor, "b h n g"]
    ahead_observed: Bool[Tensor, "b h n g"]


@dataclass(frozen=True)
class Target:
    """The hidden values, standardised, with the cells that count."""

    values: Float[Tensor, "b h n c"]
    observed: Bool[Tensor, "b h n c"]


def hide(window: Window, look_back: int) -> tuple[Inputs, Target]:
    """Cut a window at the origin; whatever an unobserved cell may hold is shown as 0."""
    inputs = Inputs(
        x=_shown(window.values[:, :look_back], window.observed[:, :look_back]),
        observed=window.observed[:, :look_back],
        calendar=window.calendar[:, :look_back],
        calendar_ahead=window.calendar[:, look_back:],
        offset=window.offset[:, :look_back],
        offset_ahead=window.offset[:, look_back:],
        past=_shown(window.past, window.past_observed),
        past_observed=window.past_observed,
        ahead=_shown(window.ahead, window.ahead_observed),
        ahead_observed=window.ahead_observed,
    )
    return inputs, Target(window.values[:, look_back:], window.observed[:, look_back:])


def _shown(values: Tensor, observed: Tensor) -> Tensor:
    return torch.where(observed, values, 0.0)


def masked_loss(
    prediction: Float[Tensor, "b h n c"], target: Target, kind: str, weight: Float[Tensor, "n c"]
) -> Float[Tensor, ""]:
    """Mean absolute or squared error per channel over observed cells, averaged over channels that have any.

    `weight` undoes a scaling per entity, so that the loss ranks like the error in data units.
    """
    error = torch.where(target.observed, prediction - target.values, 0.0) * weight
    size = error.abs() if kind == "mae" else error.square()
    count = target.observed.sum(dim=(0, 1, 2))
    present = count > 0
    if not bool(present.any()):
        raise MetricError("a batch without a single observed target", fix="check the mask of the training part")
    per_channel = size.sum(dim=(0, 1, 2)) / count.clamp(min=1)
    return (per_channel * present).sum() / present.sum()


def forecast_of(
    answer: object, target: Target, system: str
) -> tuple[Float[Tensor, "b h n c"], Bool[Tensor, "b h n c"] | None]:
    """The forecast and the fallback, if any, in a module's answer.

    Raises `MetricError` unless both have the target's shape exactly: anything else might be broadcast, and scored.
    """
    forecast, fallback = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    shape = target.values.shape
    if (
        isinstance(forecast, Tensor)
        and forecast.shape == shape
        and forecast.is_floating_point()
        and (fallback is None or _is_mask(fallback, shape))
    ):
        return forecast, fallback
    raise MetricError(
        f"'{system}' does not answer with a forecast",
        expected=f"floating-point numbers of shape {tuple(shape)}: window, step, entity, channel; "
        "alone, or in a tuple with the mask of fallbacks",
        found=_described(answer),
        fix="return one tensor (b, horizon, n, c) from `forward`, without leaning on broadcasting",
    )


def _is_mask(fallback: object, shape: torch.Size) -> bool:
    return isinstance(fallback, Tensor) and fallback.shape == shape and fallback.dtype == torch.bool


def _described(answer: object) -> str:
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')} of shape {tuple(answer.shape)}"
    if isinstance(answer, tuple):
        return f"a tuple of ({', '.join(map(_described, answer))})"
    return "None" if answer is None else f"an object of type {type(answer).__name__}"


def check_forecast(prediction: Tensor, system: str) -> None:
    """A forecast that is not finite is an error, never a score."""
    bad = ~prediction.isfinite()
    if bool(bad.any()):
        first = bad.nonzero()[:5].tolist()
        raise MetricError(
            f"'{system}' forecasts values that are not finite",
            expected="a finite number for every window, step, entity and channel",
            found=f"{int(bad.sum())} of {bad.numel()} NaN or infinite",
            offenders=[f"(window, step, entity, channel) = {tuple(i)}" for i in first],
            fix="lower the learning rate, or look for a division by zero in the model",
        )
