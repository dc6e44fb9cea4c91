"""A run folder like that of a finished run, written in a second: real digits and plausible numbers, no training."""

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from delt_hpc.config.schema import Arm, Config, Data, Evaluate, Recover, Select, Teacher
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.dataset import Dataset, open_dataset
from delt_hpc.recovery.schedule import active_images, entry_rounds
from delt_hpc.run import checksums
from delt_hpc.run.folder import RunFolder, mark_done

ARMS: tuple[Arm, ...] = ("distilled-soft", "distilled-hard", "selected-soft", "random-soft")
LEVEL = {"distilled": 87.0, "selected": 82.0, "random": 79.0}
TEACHER = 98.61


@dataclass(frozen=True)
class Shape:
    """The properties of the run; tests vary one field at a time."""

    classes: Sequence[str] = tuple(str(digit) for digit in range(10))
    ipc: int = 10
    iterations: int = 400
    rounds: int = 4
    noise: bool = False
    students: Sequence[str] = ("convnet3",)
    seeds: Sequence[int] = (3407, 4663, 2897)
    arms: Sequence[Arm] = ARMS
    epochs: int = 60
    stages: Sequence[str] = ("squeeze", "select", "recover", "aggregate", "evaluate")
    names: Sequence[str] = field(default_factory=tuple)


def config_of(shape: Shape) -> Config:
    return Config(
        name="digits",
        data=Data(name="digits"),
        teacher=Teacher(model="convnet3"),
        select=Select(ipc=shape.ipc),
        recover=Recover(
            init="noise" if shape.noise else "selected",
            iterations=shape.iterations,
            round_iterations=shape.iterations // shape.rounds,
        ),
        evaluate=Evaluate(
            students=list(shape.students), seeds=list(shape.seeds), arms=list(shape.arms), epochs=shape.epochs
        ),
    )


def write(root: Path, shape: Shape = Shape()) -> tuple[Config, RunFolder, Dataset]:
    """Write the run folder with the results of `shape.stages`."""
    run, config = RunFolder(root), config_of(shape)
    write_data_set(run, shape)
    makers = {
        "squeeze": write_teacher,
        "select": write_selected,
        "recover": write_recovery,
        "aggregate": write_distilled,
        "evaluate": write_evaluation,
    }
    for stage in shape.stages:
        if not (stage == "select" and shape.noise):
            makers[stage](run, shape)
    write_timing(run, shape)
    return config, run, open_dataset(config, run)


def write_data_set(run: RunFolder, shape: Shape) -> None:
    spec = SPECS["digits"].to_json() | {"classes": len(shape.classes)}
    _json(
        run.dataset, {"spec": spec, "fingerprint": "f" * 64, "train_images": 1437, "val_images": 360, "made_with": {}}
    )
    names = shape.names or shape.classes
    _table(
        run.classes, "index,folder,name", [(i, c, n) for i, (c, n) in enumerate(zip(shape.classes, names, strict=True))]
    )
    for split, images in (("train", 1437), ("val", 360)):
        rows = [(i * len(shape.classes) // images, f"{split}-{i}.png") for i in range(images)]
        _table(run.index(split), "class_index,img_path", rows)


def write_teacher(run: RunFolder, shape: Shape) -> None:
    from safetensors.torch import save_file

    from delt_hpc.models.registry import build

    torch.manual_seed(0)
    network = build("convnet3", len(shape.classes), 16)
    run.teacher.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, run.teacher / "weights.safetensors"
    )
    card = {"model": "convnet3", "source": "train", "weights": "trained here", "bn_layers": 3, "parameters": 320010}
    _json(
        run.teacher / "teacher.json", card | {"val_accuracy": TEACHER, "epochs": 30, "seconds": 14.2, "device": "cpu"}
    )
    rows = [
        (e, 0.1 * (1 + math.cos(math.pi * e / 30)) / 2, 2.3 * math.exp(-e / 5) + 0.02, _rise(e / 30, TEACHER, 0.16))
        for e in range(1, 31)
    ]
    _table(run.teacher / "history.csv", "epoch,lr,train_loss,val_accuracy", rows)
    finish(run.teacher)


def write_selected(run: RunFolder, shape: Shape) -> None:
    rows = []
    for index, folder in enumerate(shape.classes):
        for number in range(shape.ipc):
            file = f"{folder}/{number:05d}.png"
            _picture(run.selected / file, _digit(index, number))
            rows.append((index, folder, number, source(folder, number), 0.9, file))
    _table(run.selected / "selected.csv", "class_index,class,number,img_path,score,file", rows)
    finish(run.selected)


def write_recovery(run: RunFolder, shape: Shape) -> None:
    """Two batches with the same curve, except that the loss of the second is 0.2 higher."""
    length = shape.iterations // shape.rounds
    active = active_images(shape.ipc, shape.rounds)
    rng = np.random.default_rng(1)
    for batch, offset in (("00000-00004", 0.0), ("00005-00009", 0.2)):
        rows = []
        for t in range(shape.iterations):
            now, since = t // length, t % length
            fresh = math.exp(-since / (0.25 * length)) / (1 + now)
            cross_entropy = 0.05 + 2.2 * fresh + 0.1 * rng.random()
            bn_loss = 22 + 90 * fresh + 3 * rng.random()
            loss = cross_entropy + 0.01 * bn_loss + offset
            rows.append((t, now, 5 * active[now], 0.25, 0.5, loss, cross_entropy, bn_loss))
        folder = run.recover / batch
        _table(folder / "curve.csv", "iteration,round,active,lr,min_crop,loss,cross_entropy,bn_loss", rows)
        finish(folder)


def write_distilled(run: RunFolder, shape: Shape) -> None:
    length = shape.iterations // shape.rounds
    rng = np.random.default_rng(2)
    rows = []
    for index, folder in enumerate(shape.classes):
        for number, entry in enumerate(entry_rounds(shape.ipc, shape.rounds)):
            file = f"{folder}/{number:05d}.png"
            texture = np.kron(rng.normal(0, 26 * (shape.rounds - entry) / shape.rounds, (8, 8, 3)), np.ones((2, 2, 1)))
            _picture(run.distilled / file, (0.8 * _digit(index, number) + 30 + texture).clip(0, 255))
            origin = "" if shape.noise else source(folder, number)
            iterations = shape.iterations - entry * length
            digest = hashlib.sha256((run.distilled / file).read_bytes()).hexdigest()
            rows.append((file, digest, index, folder, number, origin, entry, iterations, 0.05, 22.0))
    header = "file,sha256,class_index,class,number,source,entry_round,iterations,cross_entropy,bn_loss"
    _table(run.distilled / "manifest.csv", header, rows)
    finish(run.distilled)


def write_evaluation(run: RunFolder, shape: Shape) -> None:
    for student in shape.students:
        for arm in shape.arms:
            for place, seed in enumerate(shape.seeds):
                write_training(run, shape, student, seed, arm, final_accuracy(arm, place))


def write_training(run: RunFolder, shape: Shape, student: str, seed: int, arm: Arm, final: float) -> None:
    images, labels = arm.split("-")
    folder = run.evaluate / f"{student}-{seed}-{arm}"
    result = {"student": student, "seed": seed, "arm": arm, "images": images, "labels": labels}
    result |= {"final": final, "best": final + 0.5, "best_epoch": shape.epochs - 5, "ema": final + 0.25}
    result |= {"epochs": shape.epochs, "train_images": 100, "parameters": 320010, "seconds": 6.5, "device": "cpu"}
    _json(folder / "result.json", result)
    rows: list[tuple[object, ...]] = []
    for epoch in range(1, shape.epochs + 1):
        shown = epoch % 5 == 0
        accuracy = _rise(epoch / shape.epochs, final, 0.25) if epoch < shape.epochs else final
        rows.append(
            (epoch, 1e-3, 2.3 - epoch / shape.epochs, accuracy if shown else "", accuracy + 0.25 if shown else "")
        )
    _table(folder / "history.csv", "epoch,lr,train_loss,val_accuracy,ema_accuracy", rows)
    _table(folder / "confusion.csv", "class_index,predicted,images", confusion(len(shape.classes), final))
    finish(folder)


def confusion(classes: int, accuracy: float) -> list[tuple[int, int, int]]:
    """Of 36 images of each class about that many per cent right; class 0 is confused with the next two classes."""
    rows = []
    for index in range(classes):
        wrong = min(30, round(36 * (1 - accuracy / 100)) * (2 if index == 0 else 1))
        rows += [(index, index, 36 - wrong), (index, (index + 1) % classes, wrong - wrong // 3)]
        rows += [(index, (index + 2) % classes, wrong // 3)]
    return [row for row in rows if row[2]]


def finish(folder: Path) -> None:
    """Mark the folder as done, as a stage does."""
    mark_done(folder, {"files": checksums.listing(folder)})


def write_timing(run: RunFolder, shape: Shape) -> None:
    """One record per stage, per round of each of two batches, and per training of a student."""
    length = shape.iterations // shape.rounds
    lines = []
    if "squeeze" in shape.stages:
        lines.append(record("squeeze", "all", None, 14.2, 1437, 43110, memory=512.0))
        lines.append(record("rank", "00000-00009", None, 1.1, 1437, 1437, memory=530.0))
    if "recover" in shape.stages:
        for batch in ("00000-00004", "00005-00009"):
            for now, active in enumerate(active_images(shape.ipc, shape.rounds)):
                passes = 5 * active * length
                lines.append(record("recover", batch, now, 0.5 + passes / 1000, 5 * active, passes, memory=700.0 + now))
    if "evaluate" in shape.stages:
        for student in shape.students:
            for arm in shape.arms:
                lines += [record("evaluate", f"{student}-{seed}-{arm}", None, 6.5, 100, 6000) for seed in shape.seeds]
    run.timing.mkdir(parents=True)
    (run.timing / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def record(
    stage: str, unit: str, now: int | None, seconds: float, images: int, passes: int, memory: float = 600.0
) -> dict[str, object]:
    return {
        "stage": stage, "unit": unit, "round": now, "seconds": seconds, "images": images, "image_iterations": passes,
        "image_iterations_per_s": passes / seconds, "data_wait_s": 0.1, "compile_s": 0.0, "device": "cpu (2 threads)",
        "peak_memory_mib": memory, "started": "2026-03-02T10:00:00+00:00", "host": "node-1", "task": "",
    }  # fmt: skip


def final_accuracy(arm: str, place: int) -> float:
    """The accuracy of the seed at `place`: the level of the arm, 1 above it, 2 below it, and so on."""
    images, labels = arm.split("-")
    return LEVEL[images] - (9.0 if labels == "hard" else 0.0) + (0.0, 1.0, -2.0)[place % 3]


def source(folder: str, number: int) -> str:
    return f"{folder}/real-{number}.png"


def _rise(share: float, end: float, scale: float) -> float:
    """An accuracy curve from 10 % to `end` that saturates after about `scale` of the time."""
    return 10 + (end - 10) * (1 - math.exp(-share / scale)) / (1 - math.exp(-1 / scale))


_digits = cache(load_digits)


def _digit(index: int, number: int) -> np.ndarray:
    """A real digit, float [16, 16, 3] in 0..255."""
    digits = _digits()
    place = np.flatnonzero(digits.target == index % 10)[number]
    return np.kron(digits.images[place][..., None] / 16 * 255, np.ones((2, 2, 3)))


def _picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _table(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header.split(","))
        table.writerows(rows)
