"""Values that are valid alone and contradict each other: each pair is named with a remedy."""

from pathlib import Path

import pytest
from helpers.config_files import given, refusal

CONTRADICTIONS = [
    (
        "recover: {iterations: 4000, round_iterations: 600}",
        "recover.round_iterations: 600 does not divide recover.iterations = 4000; use a divisor such as 250, 400, 500",
    ),
    (
        "recover: {iterations: 7, round_iterations: 8}",
        "recover.round_iterations: 8 does not divide recover.iterations = 7; use a divisor such as 1, 7",
    ),
    (
        "recover: {batching: mixed}",
        "recover.batching: `mixed` batches have a single round; set recover.round_iterations",
    ),
    (
        "recover: {engine: reference, deterministic: true}",
        "recover.deterministic: requires recover.engine: packed",
    ),
    (
        "recover: {engine: reference, precision: tf32}",
        "recover.precision: tf32: the reference engine computes in float32",
    ),
    ("teacher: {weights: V1}", "teacher.weights: is only used with teacher.source: torchvision, which is train"),
    (
        "teacher: {source: checkpoint, checkpoint: a, weights: V1}",
        "teacher.weights: is only used with teacher.source: torchvision, which is checkpoint",
    ),
    ("teacher: {checkpoint: a.pt}", "teacher.checkpoint: is only used with teacher.source: checkpoint, which is train"),
    (
        "teacher: {source: torchvision}",
        "teacher.weights: is required with teacher.source: torchvision; give e.g. IMAGENET1K_V1",
    ),
    ("teacher: {source: checkpoint}", "teacher.checkpoint: is required with teacher.source: checkpoint; give the path"),
    ("squeeze: {epochs: 5, warmup_epochs: 5}", "squeeze.warmup_epochs: 5 must be less than squeeze.epochs = 5"),
    ("squeeze: {crop_scale: [1.0, 0.5]}", "squeeze.crop_scale: [1.0, 0.5]: expected the smallest area first"),
    ("evaluate: {crop_scale: [0.6, 0.5]}", "evaluate.crop_scale: [0.6, 0.5]: expected the smallest area first"),
    ("evaluate: {seeds: [1, 2, 1]}", "evaluate.seeds: contains 1 more than once"),
    ("evaluate: {students: [a, b, b, a]}", "evaluate.students: contains a, b more than once"),
    ("evaluate: {arms: [random-soft, random-soft]}", "evaluate.arms: contains random-soft more than once"),
    (
        "evaluate: {labels: stored, arms: [random-hard]}",
        "evaluate.labels: stored: no arm has soft labels; add one to evaluate.arms, e.g. distilled-soft",
    ),
    (
        "evaluate: {labels: stored}\ndata: {on_bad: skip}",
        "evaluate.labels: stored: every image has a label, so none can be skipped; set data.on_bad: raise",
    ),
    ("evaluate: {epochs: 5, epochs_kept: 6}", "evaluate.epochs_kept: 6 is more than evaluate.epochs = 5"),
    ("data: {classes: [cat, dog, cat]}", "data.classes: contains cat more than once"),
    ("data: {classes: [cat, ../dog, '..', '']}", "data.classes: '../dog', '..', '': expected names of folders"),
    ("data: {mean: [0.5], std: [0.5, 0.5, 0.5]}", "data.mean: [0.5]: expected three numbers in 0..1"),
    ("data: {std: [0.2, 0.2, 51]}", "data.std: [0.2, 0.2, 51.0]: expected three numbers in 0..1"),
    ("data: {std: [0.2, 0, 0.2]}", "data.std: [0.2, 0.0, 0.2]: standard deviations must be above 0"),
    ("data: {mean: measure}", "data.mean: `measure` must be set for both"),
    ("data: {std: measure}", "data.mean: `measure` must be set for both"),
    ("data: {size: 64, resize: 63}", "data.resize: 63 must be at least data.size = 64"),
]


@pytest.mark.parametrize(("text", "expected"), CONTRADICTIONS, ids=[text for text, _ in CONTRADICTIONS])
def test_contradictory_values_are_named_with_a_remedy(text: str, expected: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"FILE: {expected}")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "recover: {iterations: 7, round_iterations: 1}",
        "recover: {iterations: 7, round_iterations: 7}",
        "recover: {batching: mixed, iterations: 5, round_iterations: 5}",
        "squeeze: {crop_scale: [0.5, 0.5]}",
        "teacher: {source: torchvision, weights: V1}\nsqueeze: {epochs: 5, warmup_epochs: 5}",
        "data: {mean: measure, std: measure, size: 64, resize: 64}",
    ],
)
def test_boundary_values_are_accepted(text: str, tmp_path: Path) -> None:
    given(tmp_path, text)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "sed: 1\nseed: x\nrecover: {lr: -1, engine: fast}", "evaluate.epochs=0")
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "seed", "recover.engine", "recover.lr", "evaluate.epochs", "sed",
    ]  # fmt: skip
    message = refusal(tmp_path, "recover: {round_iterations: 3}\ndata: {size: 9, resize: 8}\nevaluate: {seeds: [1, 1]}")
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "recover.round_iterations", "data.resize", "evaluate.seeds",
    ]  # fmt: skip
