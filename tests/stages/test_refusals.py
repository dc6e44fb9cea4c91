"""What is refused before any work, with the key, the values and the remedy."""

import shutil
from pathlib import Path
from typing import Literal

import pytest
from helpers.toy import Start, copy_run

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context
from delt_hpc.errors import UserError


@pytest.fixture
def copy(finished: Context, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return copy_run(finished, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recover": {"lr": 0.1}}, r"recover\.lr: made with 0\.25, now 0\.1"),
        ({"seed": 7}, r"seed: made with 0, now 7"),
        ({"select": {"strategy": "top"}}, r"select\.strategy: made with 'medium', now 'top'"),
        ({"squeeze": {"epochs": 3}}, r"squeeze\.epochs: made with 2, now 3"),
        ({"evaluate": {"epochs": 3}}, r"evaluate\.epochs: made with 2, now 3"),
        ({"data": {"mirror": False}}, r"data\.mirror: made with None, now False"),
    ],
)
def test_a_folder_made_by_another_configuration(start: Start, copy: Path, changes: dict, message: str) -> None:
    stored = (copy / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        start(copy, None, changes)
    assert (copy / "config.yaml").read_bytes() == stored


def test_free_values_may_change(start: Start, copy: Path) -> None:
    changes = {"evaluate": {"seeds": [1, 2, 3]}, "machine": {"cache_mib": 1}, "recover": {"checkpoint_seconds": 5.0}}
    run = start(copy, ("evaluate",), changes).run
    assert len(list(run.evaluate.glob("*/result.json"))) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"model": "vgg11"}}, r"(?s)teacher\.model.*no BatchNorm2d with running statistics"),
        ({"teacher": {"model": "resnet19"}}, r"(?s)teacher\.model.*resnet18"),
        ({"evaluate": {"students": ["convnet4"]}}, r"(?s)evaluate\.students.*8 pixels are too few.*>= 16"),
        ({"select": {"ipc": 13}}, r"(?s)13 images per class.*00010 has 12.*at most 12"),
        ({"data": {"num_classes": 5}}, r"data\.num_classes: 4 classes found, 5 expected"),
        ({"data": {"size": None}}, r"data\.size"),
        ({"data": {"mean": None, "std": None}}, r"data\.mean.*measured"),
        ({"data": {"classes": ["10", "nowhere"]}}, r"no images for 1 of 2 classes: nowhere"),
        ({"teacher": {"source": "checkpoint", "checkpoint": "nowhere.pt"}}, r"teacher\.checkpoint: nowhere\.pt"),
        ({"rank": {"csv": "nowhere.csv"}}, r"rank\.csv: nowhere\.csv"),
        (
            {"teacher": {"model": "resnet18", "source": "torchvision", "weights": "IMAGENET1K_V1"}},
            r"has 1000 classes, the data set has 4",
        ),
        (
            {"teacher": {"model": "resnet18", "source": "torchvision", "weights": "V7"}},
            r"(?s)no `V7`.*IMAGENET1K_V1",
        ),
    ],
)
def test_inconsistent_inputs_are_refused(start: Start, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(tmp_path / "run", None, changes)
    assert not (tmp_path / "run" / "teacher").exists()


def test_output_inside_input(start: Start, toy: Path) -> None:
    for root in (toy / "train" / "run", toy / "run", toy, toy.parent):
        with pytest.raises(UserError, match="overlap"):
            start(root)
    assert not (toy / "run").exists() and not (toy / "train" / "run").exists()


@pytest.mark.parametrize(
    ("stage", "needs"), [("rank", "squeeze"), ("select", "rank"), ("recover", "select"), ("evaluate", "aggregate")]
)
def test_a_stage_names_the_stage_that_must_run_first(start: Start, tmp_path: Path, stage: str, needs: str) -> None:
    with pytest.raises(UserError, match=f"`{needs}`"):
        start(tmp_path / "run", (stage,))


@pytest.mark.parametrize("stage", ["rank", "recover"])
def test_class_ranges_beyond_the_last_class(start: Start, tmp_path: Path, stage: str) -> None:
    with pytest.raises(UserError, match=r"class 4 is beyond.*\n.*0 to 3"):
        start(tmp_path / "run", (stage,), classes=ClassRange(1, 4))


def _remove_batch(run: Path) -> None:
    (run / "recover" / "00002-00003" / "done.json").unlink()


def _remove_image(run: Path) -> None:
    (run / "recover" / "00000-00001" / "images" / "00001" / "00002.png").unlink()


def _damage_image(run: Path) -> None:
    path = run / "recover" / "00000-00001" / "images" / "00000" / "00000.png"
    path.write_bytes(path.read_bytes()[:60])


def test_aggregation_names_everything_that_is_missing_or_damaged(start: Start, copy: Path) -> None:
    shutil.rmtree(copy / "distilled")
    for damage in (_remove_batch, _remove_image, _damage_image):
        damage(copy)
    with pytest.raises(UserError) as caught:
        start(copy, ("aggregate",))
    text = str(caught.value)
    assert "3 item(s) missing or damaged" in text
    assert "recover/00002-00003: not finished (classes 2-3)" in text
    assert "recover/00000-00001/images/00001/00002.png: missing" in text
    assert "recover/00000-00001/images/00000/00000.png: " in text
    assert not (copy / "distilled").exists()


def test_only_recovery_requires_a_gpu_for_its_precision(start: Start, tmp_path: Path) -> None:
    """The other stages of a run that recovers on a GPU work without one."""
    changes = {"recover": {"precision": "float16"}}
    start(tmp_path / "run", ("squeeze", "rank", "select"), changes)
    with pytest.raises(UserError, match=r"recover\.precision: float16"):
        start(tmp_path / "run", ("recover",), changes)
    assert not (tmp_path / "run" / "recover").exists()


@pytest.mark.parametrize("stage", ["squeeze", "evaluate"])
def test_a_training_that_diverges_is_an_error(
    finished: Context, start: Start, tmp_path: Path, stage: Literal["squeeze", "evaluate"]
) -> None:
    root = copy_run(finished, tmp_path / "run", "aggregate") if stage == "evaluate" else tmp_path / "run"
    with pytest.raises(UserError, match=r"the training diverged in epoch [12]") as caught:
        start(root, (stage,), {stage: {"lr": 1e30}})
    assert caught.value.where == f"{stage}.lr"
    assert not list(root.glob("evaluate/*/result.json"))
    assert not (root / "teacher" / "done.json").exists() or stage == "evaluate"
