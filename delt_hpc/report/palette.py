"""The colours of the report for light and dark pages. Figures are drawn in the light ones."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    light: str
    dark: str


# Blue, teal, amber and magenta are distinguishable with the common forms of colour blindness, on white and on black.
COLOURS: dict[str, Colour] = {
    "page": Colour("#f5f6f8", "#0f1217"),
    "card": Colour("#ffffff", "#181c23"),
    "line": Colour("#e3e6eb", "#2b313c"),
    "text": Colour("#1d232e", "#e8eaef"),
    "muted": Colour("#667080", "#98a1b0"),
    "border": Colour("#c3c9d3", "#48505e"),
    "distilled": Colour("#2b6be0", "#77a8ff"),
    "selected": Colour("#12937f", "#47cbb5"),
    "random": Colour("#d2741a", "#f4a95c"),
    "full": Colour("#b8326f", "#ff8fbd"),
    "teacher": Colour("#7656d6", "#ac97ff"),
    "active": Colour("#d3e1fa", "#253859"),
    "warn": Colour("#fff6e5", "#2e2615"),
}


def light(name: str) -> str:
    return COLOURS[name].light


def css() -> str:
    """CSS properties `--<name>`, for light and dark by the reader's preference."""
    properties = {
        mode: "".join(f"--{name}:{getattr(c, mode)};" for name, c in COLOURS.items()) for mode in ("light", "dark")
    }
    return f":root{{{properties['light']}}}@media(prefers-color-scheme:dark){{:root{{{properties['dark']}}}}}"


def themed(svg: str) -> str:
    """The SVG with every light colour replaced by the CSS property of that name."""
    for name, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{name})")
    return svg
