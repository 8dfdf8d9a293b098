"""What this machine has, what is missing, and the fix."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any

from stfm_pipeline.settings import Settings, project_root

NEEDED = ("polars", "deltalake", "duckdb", "mlflow", "torch", "lightning", "torch-geometric", "unearth")
EXTRAS = {"pipeline": "dagster", "lm": "transformers", "grib": "cfgrib", "video": "av", "ray": "ray", "dev": "pytest"}


def examine(settings: Settings) -> list[dict[str, Any]]:
    """Findings with name, ok, needed, found and fix."""
    import torch

    out = [
        _finding("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer"),
        *(_package(name, name, True) for name in NEEDED),
        *(_package(package, f"extra '{extra}'", extra == "pipeline") for extra, package in EXTRAS.items()),
    ]
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    out.append(_finding("device", True, f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"))
    nvidia = sorted(d.name for d in distributions() if d.name and d.name.startswith("nvidia-"))
    out.append(
        _finding(
            "nvidia packages on a CPU machine",
            device == "cuda" or not nvidia,
            ", ".join(nvidia) or "none",
            "reinstall torch: `make clean && make venv`",
        )
    )
    root = project_root()
    out.append(
        _finding(
            "checkout",
            root is not None,
            str(root or "none here or above"),
            "cd into the clone to use run and ui",
            False,
        )
    )
    anchor = next(p for p in (settings.root, *settings.root.parents) if p.exists())
    free = shutil.disk_usage(anchor).free / 1e9
    out += [
        _finding("STFM_HOME", True, str(settings.root)),
        _finding("lake", True, settings.lake_uri),
        _finding("tracking", True, settings.tracking_uri),
        _finding(
            "STFM_DATA",
            settings.data is None or settings.data.is_dir(),
            str(settings.data or "not set"),
            "point it at a folder",
        ),
        _finding("disk", free > 2, f"{free:.0f} GB free", "make room: a run of the default dataset takes about 1 GB"),
    ]
    return out


def _finding(name: str, ok: bool, found: str, fix: str | None = None, needed: bool = True) -> dict[str, Any]:
    return {"name": name, "ok": ok, "needed": needed, "found": found, "fix": None if ok else fix}


def _package(package: str, name: str, needed: bool) -> dict[str, Any]:
    extra = name.removeprefix("extra ").strip("'")
    try:
        return _finding(name, True, f"{package} {version(package)}", needed=needed)
    except PackageNotFoundError:
        fix = f"pip install 'stfm-pipeline[{extra}]'" if name != package else f"pip install {package}"
        return _finding(name, False, "not installed", fix, needed)
