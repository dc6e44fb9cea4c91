"""protocol.json of an export: how images become network input, how the students were trained, what they reached."""

from typing import Any

from delt_hpc.export import labels
from delt_hpc.export.images import Format
from delt_hpc.export.run import FOLLOWED, FinishedRun
from delt_hpc.version import VERSION

TEACHER = "teacher.safetensors"


def describe(source: FinishedRun, to: Format, teacher_sha256: str | None, views: int) -> dict[str, Any]:
    """The content of protocol.json.

    Args:
        teacher_sha256: of teacher.safetensors; None if it is not part of the export.
        views: number of stored soft labels per image.
    """
    config, spec = source.config, source.dataset.spec
    return {
        "format": to,
        "made_by": f"delt-hpc {VERSION}",
        "data": {**spec.to_json(), "images_per_class": config.select.ipc},
        "training": _training(source),
        "teacher": None if teacher_sha256 is None else _teacher(source, teacher_sha256),
        "labels": {"views": views, "folder": labels.FOLDER, "randaugment": False} if views else None,
        "results": [
            {"student": row.student, "arm": row.arm, "mean": row.final.mean, "std": row.final.std, "seeds": row.final.n}
            for row in source.results
        ],
    }


def _training(source: FinishedRun) -> dict[str, Any]:
    given = source.config.evaluate
    return {
        "students": given.students,
        "seeds": given.seeds,
        "optimizer": "AdamW",
        **given.model_dump(include=set(FOLLOWED)),
        "temperature": given.temperature_used,
        "mirror": source.dataset.spec.mirror and given.mirror,
        "precision": source.precision,
    }


def _teacher(source: FinishedRun, sha256: str) -> dict[str, Any]:
    card = source.teacher
    return {
        "file": TEACHER,
        "sha256": sha256,
        "model": card["model"],
        "weights": card["weights"],
        "parameters": card["parameters"],
        "val_accuracy": card["val_accuracy"],
    }
