"""Writes docs/config.md from the types: `python -m delt_hpc.config.reference > docs/config.md`."""

import sys
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from delt_hpc.config.schema import SECTIONS, Config, Section, is_free

_HEAD = """\
# Configuration

Every option, with its type, default and meaning. This page is made from the types in `delt_hpc/config/schema.py` by
`python -m delt_hpc.config.reference > docs/config.md`.

A configuration is a YAML file with these sections. All options have defaults: first those of the method's preset
(`method`), then those of this page. `--set section.option=value` overrides a file; `delt-hpc config CONFIG` prints the
resolved configuration.

An option marked with * does not change results, and may differ between two calls on the same run folder. All others are
part of a result's identity: a stage refuses a folder that was made with other values.
"""
_TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def markdown() -> str:
    """The page."""
    parts = [_HEAD, _section("The run", Config)]
    parts += [_section(f"`{name}`", section) for name, section in SECTIONS.items()]
    return "\n".join(parts)


def _section(title: str, section: type[Section]) -> str:
    described = section.__dict__.get("__doc__")
    schema = section.model_json_schema()
    rows = [
        f"| `{name}`{'*' if is_free(field) else ''} | {_type(schema['properties'][name])} | {_default(field)} |"
        f" {_escape(field.description or '')} |"
        for name, field in section.model_fields.items()
        if name not in SECTIONS
    ]
    paragraphs = [f"## {title}\n"]
    paragraphs += [f"{' '.join(described.split())}\n"] if described else []
    return "\n".join([*paragraphs, "| option | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _type(schema: dict[str, Any]) -> str:
    return _escape(" or ".join(_alternatives(schema)))


def _alternatives(schema: dict[str, Any]) -> Iterator[str]:
    if "anyOf" in schema:
        for inner in schema["anyOf"]:
            yield from _alternatives(inner)
    elif "enum" in schema:
        yield from (f"`{choice}`" for choice in schema["enum"])
    elif "const" in schema:
        yield f"`{schema['const']}`"
    elif schema.get("type") == "array":
        inner = " or ".join(_alternatives(schema["items"]))
        count = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        yield f"list of {f'{count}: ' if count else ''}{inner}"
    elif schema.get("format") == "path":
        yield "path"
    else:
        bounds = [f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
        yield f"{_TYPES[schema['type']]} {' and '.join(bounds)}".strip()


def _number(bound: float) -> str:
    return "2^63" if bound == 2**63 else f"{bound:g}"


def _default(field: FieldInfo) -> str:
    text = yaml.safe_dump(field.default, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{text}`"


def _escape(text: str) -> str:
    """Markdown would end the cell at `|` and hide `<...>`."""
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    sys.stdout.write(markdown())
