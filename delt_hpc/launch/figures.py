"""How fast this work was measured to go: timing records of the run itself, or of others that are named."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder


@dataclass(frozen=True)
class Rate:
    """Speed of a stage.

    Attributes:
        passes_per_s: image-iterations a second, of one process on one device.
        device: where it was measured.
        source: the file or folder it was read from.
        records: how many units of work it is the average of.
    """

    passes_per_s: float
    device: str
    source: str
    records: int


def measured(config: Config, run: RunFolder, given: Iterable[Path] = ()) -> dict[Stage, Rate]:
    """Stage by stage: the run's own figures, else those of the first given place that has some.

    Args:
        given: run folders, or files of timing records (.jsonl, .csv), which must be of the same networks and size.

    Raises:
        UserError: a given place holds no timing record, or a run of other networks or another size.
    """
    rates = _rates(_records(run.timing), "this run")
    for place in given:
        _refuse_other_work(config, place)
        records = list(_records(place))
        if not records:
            raise UserError(
                "holds no timing records", where=f"--figures {place}", expected="a run folder, a .jsonl or a timing.csv"
            )
        rates = _rates(records, str(place)) | rates
    return rates


def _refuse_other_work(config: Config, place: Path) -> None:
    """A speed says nothing about another network, image size or engine; of a mere file the user knows."""
    if not (place / "config.yaml").exists():
        return
    mine, other = _work(config), _work(load_config(str(place)))
    differing = [f"{key}: measured {other[key]!r}, now {mine[key]!r}" for key in mine if mine[key] != other[key]]
    if differing:
        raise UserError("was measured for other work:\n    " + "\n    ".join(differing), where=f"--figures {place}")


def _work(config: Config) -> dict[str, object]:
    registered = SPECS[config.data.name].size if config.data.name in SPECS else None
    return {
        "data.size": config.data.size or registered,
        "teacher.model": config.teacher.model,
        "recover.engine": config.recover.engine,
        "evaluate.students": sorted(config.evaluate.students),
    }


def _rates(records: Iterable[dict[str, Any]], source: str) -> dict[Stage, Rate]:
    found: dict[Stage, list[dict[str, Any]]] = {}
    for record in records:
        if float(record["seconds"]) > 0 and float(record["image_iterations"]) > 0:
            found.setdefault(record["stage"], []).append(record)
    return {
        stage: Rate(
            sum(float(r["image_iterations"]) for r in rows) / sum(float(r["seconds"]) for r in rows),
            ", ".join(sorted({str(r["device"]) for r in rows})),
            source,
            len({r["unit"] for r in rows}),
        )
        for stage, rows in found.items()
    }


def _records(place: Path) -> Iterator[dict[str, Any]]:
    """Timing records of a folder, of a run folder, or of one file; half a line of a killed process is passed over."""
    if place.is_dir():
        folder = place / "timing" if (place / "timing").is_dir() else place
        for path in sorted(folder.glob("*.jsonl")):
            yield from _records(path)
    elif place.suffix == ".csv":
        with place.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif place.exists():
        for line in place.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
