"""GeoCLIP's location encoder: a place on Earth as a vector that knows what pictures from there look like.

Vivanco Cepeda, Nayak and Shah, GeoCLIP: Clip-Inspired Alignment between Locations and Images for Effective Worldwide
Geo-localization, NeurIPS 2023. Latitude and longitude in the Equal Earth projection (Savric, Patterson and Jenny, 2018)
pass three capsules, random Fourier features of one scale each and an MLP, whose outcomes are added.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stfm_pipeline.errors import SourceError
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import PypiSource, fetch

SOURCE = PypiSource(
    package="geoclip",
    version="1.3.0",
    archive="wheel",
    sha256="08a93791166a279d52b95c466a952c75f17f654cc61bdf6ab20355325b564dec",
    size=40_292_198,
    unpacked=37_806_041,
    members={"location_encoder_weights.pth": "geoclip/model/weights/location_encoder_weights.pth"},
)
# Of the tensors, by name: what a converted file has to hold to be taken for the pretrained one.
PINNED = "09c66b1c4b7cb4b935daf018a262e28364ac7f0d279dccb0e194df05e17618b4"
SIGMAS = (2**0, 2**4, 2**8)
SEED = 0
PLACES_AT_ONCE = 4096
EARTH = (1.340264, -0.081106, 0.000893, 0.003796)


class LocationEncoder(nn.Module):
    """Shapes: degrees (n, 2), latitude and longitude -> (n, 512) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        for k, sigma in enumerate(SIGMAS):
            self.add_module(f"LocEnc{k}", _Capsule(sigma))

    def forward(self, degrees: Tensor) -> Tensor:
        xy = equal_earth(degrees)
        return F.normalize(torch.stack([capsule(xy) for capsule in self.children()]).sum(dim=0), dim=-1)


class _Capsule(nn.Module):
    def __init__(self, sigma: float, frequencies: int = 256, hidden: int = 1024, out: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Fourier(sigma, frequencies)]
        for width in (2 * frequencies, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        self.capsule = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(hidden, out))

    def forward(self, xy: Tensor) -> Tensor:
        out: Tensor = self.head(self.capsule(xy))
        return out


class _Fourier(nn.Module):
    b: Tensor

    def __init__(self, sigma: float, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("b", torch.randn(frequencies, 2) * sigma)

    def forward(self, xy: Tensor) -> Tensor:
        # Frequencies reach hundreds of turns: in single precision, places would shift by metres between machines.
        angle = 2 * math.pi * xy.double() @ self.b.double().T
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.b.dtype)


def equal_earth(degrees: Tensor) -> Tensor:
    """(n, 2) projected, the equator from -1 to 1, of latitude and longitude in degrees."""
    a1, a2, a3, a4 = EARTH
    lat, lon = torch.deg2rad(degrees).unbind(dim=-1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat))
    slope = a1 + 3 * a2 * theta**2 + 7 * a3 * theta**6 + 9 * a4 * theta**8
    x = 2 * math.sqrt(3) / 3 * lon * torch.cos(theta) / slope
    y = a1 * theta + a2 * theta**3 + a3 * theta**7 + a4 * theta**9
    return torch.stack([x, y], dim=-1) * (math.sqrt(3) * a1 / (2 * math.pi))


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and values, whichever file they came from."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        found.update(tensors[name].detach().contiguous().to(torch.float32).numpy().tobytes())
    return found.hexdigest()


def weights(pretrained: bool, settings: Settings) -> dict[str, Tensor]:
    """The pretrained weights, fetched and converted once, or random ones of the same shapes, the same every time.

    Raises `SourceError` where the converted file does not hold the pinned tensors.
    """
    from safetensors.torch import load_file

    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return LocationEncoder().state_dict()
    path = settings.cache / "weights" / f"geoclip-{SOURCE.sha256[:16]}.safetensors"
    if not path.is_file():
        _convert(fetch(SOURCE, settings)["location_encoder_weights.pth"], path)
    tensors = load_file(path)
    if (found := digest(tensors)) != PINNED:
        raise SourceError(
            f"{path.name} does not hold the pretrained weights",
            expected=PINNED,
            found=found,
            fix=f"remove {path}; it is converted again",
        )
    return tensors


def _convert(source: Path, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = torch.load(source, map_location="cpu", weights_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, part)
    os.replace(part, path)


@torch.inference_mode()
def encode(lat: NDArray[np.float64], lon: NDArray[np.float64], tensors: dict[str, Tensor]) -> NDArray[np.float32]:
    """(n, 512) vectors of length 1; zeros where a coordinate is missing. `tensors` must fit the encoder exactly."""
    with torch.device("meta"):
        module = LocationEncoder()
    module.load_state_dict(tensors, strict=True, assign=True)
    known = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    out = np.zeros((len(lat), 512), np.float32)
    for i in range(0, len(known), PLACES_AT_ONCE):
        at = known[i : i + PLACES_AT_ONCE]
        out[at] = module.eval()(torch.from_numpy(np.stack([lat[at], lon[at]], axis=1))).numpy()
    return out
