"""Where a teacher's BatchNorm layers are called, and what runs there as one operator."""

from collections import Counter
from typing import NamedTuple


class Site(NamedTuple):
    """One call of one BatchNorm layer; a layer that is called twice has two.

    Args:
        name: of the layer in the teacher, e.g. `layer1.0.bn2`.
        operators: what runs here as one, e.g. `bn + add + relu`.
        channels: of the layer.
        forked: both consumers' gradients of the output are added inside the backward kernel.
    """

    name: str
    operators: str
    channels: int
    forked: bool = False


def table(sites: tuple[Site, ...]) -> str:
    """A row for each site in the order of their calls, and how often each combination occurs."""
    rows = [("layer", "as one operator", "channels", "forked")]
    rows += [(site.name, site.operators, str(site.channels), "yes" if site.forked else "") for site in sites]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    name, operators, channels, _ = widths
    lines = [f"{a:{name}}  {b:{operators}}  {c:>{channels}}  {d}".rstrip() for a, b, c, d in rows]
    counts = Counter(site.operators for site in sites)
    lines.append(f"{len(sites)} sites: " + ", ".join(f"{count} x {what}" for what, count in counts.most_common()))
    return "\n".join(lines)
