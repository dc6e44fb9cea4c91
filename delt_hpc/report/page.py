"""Renders the report as one self-contained HTML page and as Markdown; all inserted text is escaped."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from delt_hpc.config import methods
from delt_hpc.config.schema import STAGES
from delt_hpc.report import palette
from delt_hpc.report.content import Report
from delt_hpc.report.drawing import Chart
from delt_hpc.report.samples import SMALL
from delt_hpc.report.templates import environment

_HERE = Path(__file__).parent


def html(
    report: Report,
    charts: Mapping[str, Sequence[Chart]],
    pictures: Mapping[int, Sequence[tuple[bytes, bytes | None]]],
) -> str:
    """The HTML page. It loads nothing; its links lead to the paper and to files of the run folder.

    Args:
        charts: those of each section.
        pictures: files of the distilled and the initial image (None: noise) of the samples, by class index.
    """
    templates = environment(_HERE, autoescape=True)
    templates.filters["data_url"] = _data_url
    templates.filters["drawing"] = Markup
    script = (_HERE / "viewer.js").read_text(encoding="utf-8")
    style = Markup(palette.css() + (_HERE / "style.css").read_text(encoding="utf-8"))
    return templates.get_template("report.html.j2").render(
        **_context(report),
        charts=charts,
        pictures=pictures,
        style=style,
        script=Markup(script),
        # The only script that the page's own policy lets a browser run.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        small=SMALL,
        configuration=_yaml(report),
    )


def markdown(report: Report, charts: Mapping[str, Sequence[Chart]]) -> str:
    """The same content; it refers to figures/<chart name>.png and figures/samples-<class index>.png."""
    templates = environment(_HERE, autoescape=False)
    templates.finalize = _escape_markdown
    text = templates.get_template("report.md.j2").render(
        **_context(report),
        charts=charts,
        configuration=Fenced(_yaml(report), "yaml"),
        command=Fenced(f"{report.command}\n"),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


class Fenced(str):
    """A fenced block of code; the fence is longer than any run of backticks in it."""

    def __new__(cls, code: str, language: str = "") -> "Fenced":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
        return super().__new__(cls, f"{fence}{language}\n{code}{fence}")


def _context(report: Report) -> dict[str, Any]:
    stages_to_run = {reason.stage for reason in report.missing.values()}
    return {
        "report": report,
        "headline": report.headline,
        "method": methods.load(report.headline.method).title,
        "to_run": [stage for stage in STAGES if stage in stages_to_run],
    }


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()


def _yaml(report: Report) -> str:
    return yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True)


def _escape_markdown(value: object) -> object:
    """Escape a value that a template inserts, except for code blocks."""
    if not isinstance(value, str) or isinstance(value, Fenced):
        return value
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", re.sub(r"\s+", " ", value))
