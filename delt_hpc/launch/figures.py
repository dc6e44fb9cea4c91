"""Measured speeds of the stages: from timing records of runs, or from tables of `delt-hpc bench`."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config, Recover, Stage
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.errors import UserError
from delt_hpc.launch.profile import Profile
from delt_hpc.run.folder import RunFolder

_TIMING = {"stage", "unit", "seconds", "image_iterations", "device"}
_SYNTHESIS = {"network", "size", "variant", "precision", "image_iterations_per_s", "gpu", "cpu"}
_LOADING = {"network", "size", "backend", "threads", "images_per_s", "gpu", "cpu"}
_STAGES = {"stage", "network", "teacher", "size", "settings", "keep_memory", "images_per_s", "gpu", "cpu"}
_EXPECTED = (
    "a run folder, its timing.csv or a .jsonl file of it, or stages.csv, synthesis.csv or loading.csv of"
    " `delt-hpc bench`"
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """Speed of a stage.

    Attributes:
        passes_per_s: image-iterations per second, of one process on one device.
        device: where it was measured.
        source: the file or folder it was read from, and what was measured.
        records: how many measurements it is the average or median of.
    """

    passes_per_s: float
    device: str
    source: str
    records: int


def measured(config: Config, run: RunFolder, profile: Profile, places: Iterable[Path] = ()) -> dict[Stage, Rate]:
    """For each stage the run's own speed; else that of the first place that has one.

    Args:
        profile: says which stages use a GPU; a benchmark must have been measured on the same kind of device.
        places: run folders, files of timing records, or tables of `delt-hpc bench`.

    Raises:
        UserError: a place holds no figures, or figures of another network, image size, engine or kind of device.
    """
    rates = of_run(run)
    for place in places:
        rates = _read(config, profile, place) | rates
    return rates


def of_run(run: RunFolder) -> dict[Stage, Rate]:
    """Speeds from the run's own timing records."""
    return _averages(_records(run.timing), "this run")


def _read(config: Config, profile: Profile, place: Path) -> dict[Stage, Rate]:
    _refuse_other_work(config, place)
    rows = _records(place)
    columns = set(rows[0]) if rows else set()
    if columns >= _SYNTHESIS:
        return {"recover": _recovery(config, rows, place, gpu=profile.resources("recover").gpus > 0)}
    if columns >= _LOADING:
        resources = profile.resources("rank")
        return {"rank": _ranking(config, rows, place, gpu=resources.gpus > 0, cpus=resources.cpus)}
    if columns >= _STAGES:
        return _default_settings(config, profile, rows, place)
    rates = _averages(rows, str(place))
    if not rates:
        raise UserError("holds no measured speeds", where=f"--figures {place}", expected=_EXPECTED)
    return rates


def _default_settings(config: Config, profile: Profile, rows: Sequence[Row], place: Path) -> dict[Stage, Rate]:
    """From stages.csv: the stages that were measured with the configuration's networks and image size.

    With several students, each has the same share of the work.
    """
    teacher, size = config.teacher.model, str(_size(config))
    networks: dict[Stage, list[str]] = {stage: [teacher] for stage in ("squeeze", "rank", "recover")}
    networks["evaluate"] = config.evaluate.students
    rates: dict[Stage, Rate] = {}
    for stage, wanted in networks.items():
        gpu = profile.resources(stage).gpus > 0
        chosen = {
            row["network"]: row
            for row in rows
            if (row["stage"], row["settings"], row["size"]) == (stage, _settings(config, stage), size)
            and row["images_per_s"]
            and _on_gpu(row) == gpu
            and (stage != "evaluate" or row["teacher"] == teacher)
        }
        if all(network in chosen for network in wanted):
            found = [chosen[network] for network in wanted]
            seconds = sum(1 / float(row["images_per_s"]) for row in found) / len(found)
            source = f"{place}: {', '.join(wanted)} at {size} px, {found[0]['settings']} settings"
            rates[stage] = Rate(1 / seconds, found[0]["gpu"] or found[0]["cpu"], source, int(found[0]["repeats"]))
    if not rates:
        listed = dict.fromkeys(f"{row['stage']} {row['network']} {row['size']} px" for row in rows)
        raise UserError(
            f"has no speed of a stage with {teacher} at {size} px on the devices of the cluster's profile",
            where=f"--figures {place}",
            expected=f"the file holds: {'; '.join(listed)}",
            remedy=f"delt-hpc bench stages --networks {teacher} --size {size} on such a machine, or another --cluster",
        )
    return rates


def _settings(config: Config, stage: Stage) -> str:
    """The rows of stages.csv that say how fast a stage is: those of its default settings or of an engine."""
    return "reference" if stage == "recover" and config.recover.engine == "reference" else "default"


def _recovery(config: Config, rows: Sequence[Row], place: Path, *, gpu: bool) -> Rate:
    """From synthesis.csv: the engine and the precision that the configuration runs on such a device."""
    network, size = config.teacher.model, _size(config)
    engines = _engines(config.recover, gpu=gpu)
    for variant, precision in engines:
        for row in rows:
            if _on_gpu(row) == gpu and row["image_iterations_per_s"] and _key(row) == (
                network, str(size), variant, precision
            ):  # fmt: skip
                what = f"{variant}, {precision}, IPC {row['ipc']}, batch {row['batch_size']}"
                return _rate(row, "image_iterations_per_s", f"{place}: {what}")
    variant, precision = engines[0]
    key = (network, str(size), variant, precision)
    timed = [row for row in rows if row["image_iterations_per_s"]]
    listed = [f"{' '.join(_key(row))} on a {_kind(_on_gpu(row))}" for row in timed]
    raise UserError(
        f"has no speed of {' '.join(key)} on a {_kind(gpu)}, which this run uses",
        where=f"--figures {place}",
        expected=f"the file holds: {'; '.join(listed) or 'no times'}",
        remedy=f"delt-hpc bench synthesis --networks {network} --variants {variant} --precisions {precision} on a"
        f" machine with a {_kind(gpu)}, or another --cluster",
    )


def _engines(recover: Recover, *, gpu: bool) -> list[tuple[str, str]]:
    """Variant and precision of `bench synthesis` that the configuration runs on such a device, likeliest first.

    On a CPU, `auto` depends on the processor and on the work, which the machine that plans does not know.
    """
    if recover.engine == "reference":
        return [("reference", "float32")]
    backend = recover.kernels if recover.kernels != "auto" else ("triton" if gpu else "torch")
    compiled = [recover.compile] if recover.compile != "auto" else [True] if gpu else [True, False]
    precisions: list[str] = [recover.precision]
    if recover.precision == "auto":
        precisions = ["bfloat16"] if gpu else ["bfloat16", "float32"]
    found = []
    for compiles in compiled:
        packed = gpu if recover.segments == "auto" else recover.segments > 1
        variant = backend + "-compiled" * compiles + "-packed" * packed
        found += [(variant, precision) for precision in precisions]
    return found


def _ranking(config: Config, rows: Sequence[Row], place: Path, *, gpu: bool, cpus: int) -> Rate:
    """From loading.csv, measured with a network: the loader of the configuration, with at most the stage's CPUs."""
    network, size, loader = config.teacher.model, _size(config), config.machine.loader
    preferred = ["dali-gpu" if gpu else "dali-cpu", "torchvision"] if loader == "auto" else [loader]
    fitting = [row for row in rows if _on_gpu(row) == gpu and (row["network"], row["size"]) == (network, str(size))]
    for backend in preferred:
        of_backend = [row for row in fitting if row["backend"] == backend]
        if of_backend:
            allowed = [row for row in of_backend if int(row["threads"]) <= cpus] or of_backend
            row = max(allowed, key=lambda row: int(row["threads"]))
            return _rate(row, "images_per_s", f"{place}: {backend}, {row['threads']} threads, scored by {network}")
    listed = [f"{row['network'] or 'no network'} {row['size']} px {row['backend']}" for row in rows]
    raise UserError(
        f"has no speed of ranking by {network} at {size} px with {' or '.join(preferred)} on a {_kind(gpu)}",
        where=f"--figures {place}",
        expected=f"the file holds: {'; '.join(dict.fromkeys(listed))}",
        remedy=f"delt-hpc bench loading --network {network} on a machine with a {_kind(gpu)}, or another --cluster",
    )


def _rate(row: Row, column: str, source: str) -> Rate:
    return Rate(float(row[column]), row["gpu"] or row["cpu"], source, int(row["repeats"]))


def _key(row: Row) -> tuple[str, ...]:
    return row["network"], row["size"], row["variant"], row["precision"]


def _on_gpu(row: Row) -> bool:
    return bool(row["gpu"])


def _kind(gpu: bool) -> str:
    return "GPU" if gpu else "CPU"


def _size(config: Config) -> int | None:
    """Image size in pixels; None if the data set is neither registered nor given a size."""
    return config.data.size or (SPECS[config.data.name].size if config.data.name in SPECS else None)


def _refuse_other_work(config: Config, place: Path) -> None:
    """A run's speed says nothing about another network, image size or engine."""
    if not (place / "config.yaml").exists():
        return
    this, other = _work(config), _work(load_config(str(place)))
    differing = [f"{key}: measured {other[key]!r}, now {this[key]!r}" for key in this if this[key] != other[key]]
    if differing:
        raise UserError("was measured for other work:\n    " + "\n    ".join(differing), where=f"--figures {place}")


def _work(config: Config) -> dict[str, object]:
    return {
        "data.size": _size(config),
        "teacher.model": config.teacher.model,
        "recover.engine": config.recover.engine,
        "evaluate.students": sorted(config.evaluate.students),
    }


def _averages(records: Iterable[Row], source: str) -> dict[Stage, Rate]:
    """Image-iterations over seconds, stage by stage."""
    by_stage: dict[Stage, list[Row]] = {}
    for record in records:
        if record.keys() >= _TIMING and float(record["seconds"]) > 0 and float(record["image_iterations"]) > 0:
            by_stage.setdefault(record["stage"], []).append(record)
    return {
        stage: Rate(
            sum(float(r["image_iterations"]) for r in rows) / sum(float(r["seconds"]) for r in rows),
            ", ".join(sorted({str(r["device"]) for r in rows})),
            source,
            len({r["unit"] for r in rows}),
        )
        for stage, rows in by_stage.items()
    }


def _records(place: Path) -> list[Row]:
    """Rows of a table, or timing records of a folder, a run folder or a file; broken lines are skipped."""
    if place.is_dir():
        folder = place / "timing" if (place / "timing").is_dir() else place
        return [record for path in sorted(folder.glob("*.jsonl")) for record in _records(path)]
    if not place.exists():
        return []
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    if place.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a killed process may have left half a line
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
