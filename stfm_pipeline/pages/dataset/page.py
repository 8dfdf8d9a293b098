"""The page and its numbers, as far down the road as the dataset has come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.pages.base import linkable, source_line, templates
from stfm_pipeline.pages.dataset import coverage, facts, field, places, seasons, values
from stfm_pipeline.pages.dataset.embeddings import embeddings
from stfm_pipeline.pages.dataset.loaded import Loaded, load

STAGES = ("raw", "harmonized", "embedded", "enriched")
# Pages of many channels draw the first ones and list them all.
DRAWN = 12


@dataclass(frozen=True)
class Page:
    """The HTML, and what it says in numbers: lists of rows by topic, ready for JSON."""

    html: str
    numbers: dict[str, Any]


def dataset_page(spec: DatasetSpec, lake: Lake) -> Page:
    """The page from the spec alone, or with everything that the published tables can show."""
    stages = _current(spec.name, lake)
    d = load(spec, lake, stages)
    drawn, numbers = _measured(d, lake) if d else ({}, {})
    enriched = stages.get("enriched")
    best = facts.optimum(stages.get("raw"), spec)
    html = (
        templates(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            spec=spec,
            d=d,
            stages=stages,
            lacking=[s for s in STAGES if s not in stages],
            sources=[source_line(s.model_dump()) for s in spec.sources],
            linked=linkable(spec.homepage),
            protocol=(protocol := facts.protocol(spec)),
            channels=[facts.channel(c) for c in spec.channels],
            sides=[facts.side(j, enriched) for j in spec.joins],
            text=lake.read(enriched, "text")["text"][0] if enriched and "text" in enriched.tables else None,
            most=DRAWN,
            columns=values.COLUMNS,
            cells=values.cells,
            standing_out=seasons.standing_out,
            numbers=numbers,
            optimum=best,
            **drawn,
        )
    )
    return Page(html, {"protocol": protocol, **({"optimum": best} if best else {}), **numbers})


def _current(name: str, lake: Lake) -> dict[str, Stage]:
    """The stages that are there, without those made from an older state of another."""
    found: dict[str, Stage] = {}
    for stage in filter(None, (lake.stage(name, s) for s in STAGES)):
        if all(k in found and found[k].data_version == v for k, v in stage.inputs.items() if k in STAGES):
            found[stage.name] = stage
    return found


def _measured(d: Loaded, lake: Lake) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and what is said of them; and the numbers."""
    split = facts.split(d)
    strips, cell = coverage.charts(d, DRAWN)
    entries, histograms = values.distributions(d, lake, DRAWN)
    spectra, periodograms = seasons.spectrum(d, DRAWN)
    drawn = {
        "split_chart": facts.split_chart(d, split),
        "map": places.places(d, lake),
        "fields": field.fields(d, DRAWN) if "grid" in d.stages["harmonized"].facts else None,
        "strips": strips,
        "cell": cell,
        "histograms": histograms,
        "shapes": seasons.shape_charts(d, DRAWN),
        "periodograms": periodograms,
    }
    numbers = {
        "split": split,
        "missing": coverage.missing(d),
        "gaps": coverage.gaps(d),
        "silent": coverage.silent(d),
        "values": entries,
        "seasons": seasons.strength(d),
        "spectrum": spectra,
        "embeddings": embeddings(d.stages.get("embedded")),
    }
    return drawn, numbers
