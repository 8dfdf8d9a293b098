"""A fitted system with everything it needs to forecast: problem, weights, intervals, lineage. Saved without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stfm_pipeline.errors import StfmError
from stfm_pipeline.systems import own
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.tasks.forecasting import check_forecast, forecast_of, hide
from stfm_pipeline.windows import Problem, Window

FORMAT = 2
OWN_CODE = "system.py"
# Scaling there and back leaves a 0 at about 1e-7 of a deviation.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Forecast:
    """Data units. `values` (b h n c), `bounds` (q b h n c) or None, `fallback` (b h n c) or None."""

    values: Float[Tensor, "b h n c"]
    bounds: Float[Tensor, "q b h n c"] | None
    fallback: Bool[Tensor, "b h n c"] | None


def in_data_units(standard: Float[Tensor, "*t n c"], problem: Problem) -> Float[Tensor, "*t n c"]:
    """Standardised values as they were measured."""
    std = problem.tensors["std"]
    values = standard * std + problem.tensors["mean"]
    # Metrics ask for exact zeros.
    return torch.where(values.abs() < ROUNDING * std, 0.0, values)


def truth(window: Window, problem: Problem) -> tuple[Tensor, Tensor]:
    """The hidden targets of a window of this problem in data units, and which of them are observed."""
    _, target = hide(window, problem.look_back)
    return in_data_units(target.values, problem), target.observed


@dataclass
class Forecaster:
    """Applies a system's module to windows and turns its answer into data units with intervals.

    `absent` is the value of a step without a row, per channel or planned side column (None = unobserved).
    """

    system: str
    problem: Problem
    module: nn.Module
    absent: dict[str, float | None]
    levels: tuple[float, ...] = ()
    offsets: Float[Tensor, "q h n c"] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def forecast(self, window: Window) -> Forecast:
        """Forecast every window of a batch; only its look-back and what is known ahead is shown to the module."""
        inputs, target = hide(window, self.problem.look_back)
        standard, fallback = forecast_of(self.module(inputs), target, self.system)
        check_forecast(standard, self.system)
        mean, std = self.problem.tensors["mean"], self.problem.tensors["std"]
        bounds = None
        if self.offsets is not None:
            bounds = torch.stack([self._clip((standard + o) * std + mean) for o in self.offsets])
        return Forecast(self._clip(standard * std + mean), bounds, fallback)

    def _clip(self, values: Tensor) -> Tensor:
        lows = [-torch.inf if m is None else m for m in self.problem.minimum]
        return values.clamp(min=torch.tensor(lows, dtype=values.dtype))

    def predict(self, frame: Any, **columns: Any) -> Any:
        """Forecast from a long frame of recent observations; see `stfm_pipeline.predict.predict`."""
        from stfm_pipeline.predict import predict

        return predict(self, frame, **columns)

    @property
    def trainable(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def save(self, folder: Path) -> Path:
        """Write config.json, model.safetensors and lineage.json, and the code of a user's own system."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"module.{k}": v.detach().contiguous() for k, v in self.module.state_dict().items()}
        tensors |= {f"problem.{k}": v.contiguous() for k, v in self.problem.tensors.items()}
        if self.offsets is not None:
            tensors["interval.offsets"] = self.offsets.contiguous()
        config = {
            "format": FORMAT,
            "system": self.system,
            "problem": self.problem.to_config(),
            "absent": self.absent,
            "levels": self.levels,
            "facts": self.facts,
        }
        save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        (folder / "lineage.json").write_text(json.dumps(self.lineage, indent=1))
        if (code := own.source_of(self.module)) is not None:
            (folder / OWN_CODE).write_bytes(code)
        return folder

    @classmethod
    def load(cls, folder: Path) -> Forecaster:
        config = json.loads((folder / "config.json").read_text())
        if config["format"] != FORMAT:
            raise StfmError("the model has another format", expected=str(FORMAT), found=str(config["format"]))
        tensors = load_file(folder / "model.safetensors")

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        problem = Problem.from_config(config["problem"], under("problem."))
        code = folder / OWN_CODE
        system = own.load(code, config["system"]) if code.is_file() else get_system(config["system"])
        module = system.module(problem)
        module.load_state_dict(under("module."))
        module.eval()
        return cls(
            config["system"],
            problem,
            module,
            config["absent"],
            tuple(config["levels"]),
            tensors.get("interval.offsets"),
            config["facts"],
            json.loads((folder / "lineage.json").read_text()),
        )
