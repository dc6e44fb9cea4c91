"""Charts in one style: SVG that uses the colours and fonts of the HTML page, PNG for Markdown."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from delt_hpc.report.palette import light, themed

SIZE = (5.4, 2.9)  # inches, width and height
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": light("text"),
    "axes.edgecolor": light("border"),
    "axes.labelcolor": light("muted"),
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": light("line"),
    "grid.linewidth": 0.8,
    "xtick.color": light("border"),
    "xtick.labelcolor": light("muted"),
    "ytick.labelcolor": light("muted"),
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: file name without suffix.
        title: what the chart shows.
        note: how to read it; may be empty.
        svg: an element for an HTML page that defines the palette's CSS properties.
        png: content of a PNG file with a white background.
    """

    name: str
    title: str
    note: str
    svg: str
    png: bytes


def chart(name: str, title: str, note: str, draw: Callable[[Axes], None], height: float = SIZE[1]) -> Chart:
    """Make a chart `height` inches high; `draw` draws it on empty axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        return Chart(name, title, note, _svg(figure, name, title), _png(figure))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, facecolor=light("card"), metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure, name: str, title: str) -> str:
    """The <svg> element without prologue, metadata, namespaces and size, so that nothing refers outside the page."""
    file = io.StringIO()
    # The salt keeps the ids of clip paths different between the charts of a page, and the same in every report.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = body.replace("xlink:href", "href")
    return themed(f'<svg {view[0]} role="img" aria-label="{escape(title)}">{body}')
