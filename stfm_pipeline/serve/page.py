"""The page at /docs: the OpenAPI document as plain HTML that loads nothing from outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stfm_pipeline.serve.watch import Served


def page(document: dict[str, Any], served: Served | None) -> str:
    """HTML of an OpenAPI document, with the columns that a frame for the present model holds."""
    from jinja2 import Environment

    source = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        api=document, problem=served.forecaster.problem if served else None, served=served, type=type_of
    )


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_of(s) for s in schema[key])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"name: {type_of(schema['additionalProperties'])}"
    return "time" if schema.get("format") == "date-time" else "null" if kind == "null" else kind
