"""The accuracy table of a report, for a terminal."""

from pathlib import Path
from typing import Any

from delt_hpc.run.folder import read_json

_HEAD = ("student", "images", "labels", "seeds", "final", "best", "EMA")


def text(numbers: Path) -> str:
    """A table of top-1 accuracies in per cent, mean ± sample standard deviation over seeds.

    Args:
        numbers: report.json.
    """
    arms = read_json(numbers)["accuracy"]
    if not arms:
        return "accuracy: not evaluated yet"
    rows = [_HEAD]
    for arm in arms:
        scores = (_score(arm[key]) for key in ("final", "best", "ema"))
        rows.append((arm["student"], arm["images"], arm["labels"], str(arm["final"]["n"]), *scores))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _score(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    spread = "" if value["std"] is None else f" ± {value['std']:.2f}"
    return f"{value['mean']:.2f}{spread}"
