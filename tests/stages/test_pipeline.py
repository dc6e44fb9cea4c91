"""Whole runs: the results of each stage, what is skipped, and independence of the division into tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.toy import FOLDERS, Start, copy_run, images_of
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context
from delt_hpc.data.dataset import RESERVED
from delt_hpc.distilled import manifest
from delt_hpc.models import teacher
from delt_hpc.models.networks import ConvNet
from delt_hpc.pipeline import run_stages
from delt_hpc.ranking.table import read_ranking
from delt_hpc.stages import rank
from delt_hpc.training.trial import Trial


def test_the_distilled_set_is_an_image_folder_with_the_data_set_s_own_class_names(finished: Context) -> None:
    folder = ImageFolder(finished.run.distilled)
    assert tuple(folder.classes) == FOLDERS
    assert [folder.targets.count(i) for i in range(4)] == [3] * 4
    assert manifest.problems(finished.run.distilled) == []


def test_the_manifest_says_where_each_image_comes_from(finished: Context) -> None:
    table = manifest.read_manifest(finished.run.distilled)
    assert table["class"].tolist() == [name for name in FOLDERS for _ in range(3)]
    assert table["number"].tolist() == [0, 1, 2] * 4
    assert table["entry_round"].tolist() == [0, 1, 2] * 4
    assert table["iterations"].tolist() == [8, 6, 4] * 4
    assert table[["cross_entropy", "bn_loss"]].notna().all(axis=None)
    listed = pd.read_csv(finished.run.selected / "selected.csv", dtype=str)
    assert table["source"].tolist() == listed["img_path"].tolist()
    assert all((finished.dataset.train.root / source).exists() for source in table["source"])


def test_the_ranking_is_the_teacher_s_true_class_probability(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "squeeze")
    table = read_ranking(start(root, ("rank",), {"rank": {"precision": "float32"}}).run.ranking)
    assert table["class"].tolist() == [name for name in FOLDERS for _ in range(12)]
    assert all(group["score"].is_monotonic_decreasing for _, group in table.groupby("class_index"))
    network = teacher.load(finished.run, finished.dataset, torch.device("cpu"))
    spec = finished.dataset.spec
    for row in table.iloc[::7].itertuples():
        image = Image.open(finished.dataset.train.root / row.img_path)
        pixels = torch.tensor(np.asarray(image), dtype=torch.float32)[None] / 255
        x = ((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(0, 3, 1, 2)
        assert network(x).double().softmax(1)[0, row.class_index].item() == pytest.approx(row.score, rel=1e-5)


def test_selected_images_are_copies_around_the_median(finished: Context) -> None:
    table = read_ranking(finished.run.ranking)
    for folder in FOLDERS:
        ranked = table[table["class"] == folder]["img_path"].tolist()
        for number, place in enumerate((6, 7, 5)):
            copy = finished.run.selected / folder / f"{number:05d}.png"
            assert copy.read_bytes() == (finished.dataset.train.root / ranked[place]).read_bytes()


def test_every_student_seed_and_arm_has_its_result(finished: Context) -> None:
    results = [json.loads(path.read_text()) for path in sorted(finished.run.evaluate.glob("*/result.json"))]
    arms = ("distilled-hard", "distilled-soft", "random-soft", "selected-soft")
    assert {(r["student"], r["seed"], r["arm"]) for r in results} == {("convnet3", s, a) for s in (1, 2) for a in arms}
    for result in results:
        assert 0 <= result["final"] <= result["best"] <= 100
        assert 0 <= result["ema"] <= 100
        assert result["train_images"] == 12


def test_confusion_counts_agree_with_the_accuracy(finished: Context) -> None:
    classes, val = len(finished.dataset.classes), finished.dataset.val
    for folder in finished.run.evaluate.iterdir():
        table = pd.read_csv(folder / "confusion.csv")
        counts = np.zeros((classes, classes), dtype=np.int64)
        counts[table["class_index"], table["predicted"]] = table["images"]
        assert counts.sum(1).tolist() == val.counts(classes).tolist()
        final = json.loads((folder / "result.json").read_text())["final"]
        assert 100 * counts.trace() / counts.sum() == pytest.approx(final)


def test_a_student_can_be_trained_on_the_full_data_set(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "aggregate")
    full = start(root, ("evaluate",), {"evaluate": {"arms": ["full-hard"], "seeds": [1]}})
    result = json.loads((full.run.evaluate / "convnet3-1-full-hard" / "result.json").read_text())
    assert result["train_images"] == len(full.dataset.train) > 12
    assert (result["images"], result["labels"], result["epochs"]) == ("full", "hard", 2)


def test_a_trial_alone_has_the_same_result_as_among_all(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "aggregate")
    run_stages(start(root, ()), ("evaluate",), trial=Trial("convnet3", 2, "random-soft"))
    (alone,) = (root / "evaluate").iterdir()
    assert alone.name == "convnet3-2-random-soft"
    among = finished.run.evaluate / alone.name
    assert (alone / "history.csv").read_text() == (among / "history.csv").read_text()


def test_all_real_images_are_an_arm_and_no_protocol_needs_another_run(
    finished: Context, start: Start, tmp_path: Path
) -> None:
    """Shuffled patches, a teacher in training mode, EDC's loss and no flips: each trains on the 48 real images."""
    changes = {
        "arms": ["full-hard", "distilled-soft"],
        "seeds": [1],
        "shuffle_patches": 2,
        "teacher_statistics": "batch",
        "soft_loss": "mse_ce",
        "mirror": False,
    }
    root = copy_run(finished, tmp_path / "run", "aggregate")
    start(root, ("evaluate",), {"evaluate": changes})
    real, distilled = (
        json.loads((root / "evaluate" / f"convnet3-1-{arm}" / "result.json").read_text())
        for arm in ("full-hard", "distilled-soft")
    )
    assert (real["train_images"], distilled["train_images"]) == (48, 12)
    assert distilled["loader"] == "torchvision"
    before = (finished.run.evaluate / "convnet3-1-distilled-soft" / "history.csv").read_text()
    assert (root / "evaluate" / "convnet3-1-distilled-soft" / "history.csv").read_text() != before


def test_timing_has_a_row_per_unit_and_round(finished: Context) -> None:
    table = pd.read_csv(finished.run.timing_table)
    assert set(table["stage"]) >= {"squeeze", "rank", "select", "recover", "aggregate", "evaluate"}
    rounds = table[table["stage"] == "recover"]
    assert sorted(zip(rounds["unit"], rounds["round"], strict=True)) == [
        (unit, r) for unit in ("00000-00001", "00002-00003") for r in range(4)
    ]
    assert rounds.sort_values(["unit", "round"])["images"].tolist() == [2, 4, 6, 6] * 2
    assert (rounds["image_iterations"] == rounds["images"] * 2).all()
    assert (table["seconds"] > 0).all()


def test_a_second_call_does_nothing(finished: Context, start: Start) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.run.root.rglob("*") if path.is_file()}

    volatile = {finished.run.config, finished.run.timing_table}
    before = {path: time for path, time in times().items() if path not in volatile}
    start(finished.run.root)
    assert {path: time for path, time in times().items() if path not in volatile} == before


def test_tasks_of_class_ranges_give_the_same_bytes(finished: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(finished, tmp_path / "run", "squeeze")
    for classes in (ClassRange(2, 2), ClassRange(0, 1), ClassRange(3, 3)):
        start(root, ("rank",), classes=classes)
    start(root, ("select",))
    for classes in (ClassRange(2, 3), ClassRange(0, 1)):
        start(root, ("recover",), classes=classes)
    run = start(root, ("aggregate",)).run
    assert run.ranking.read_bytes() == finished.run.ranking.read_bytes()
    assert images_of(run.distilled) == images_of(finished.run.distilled)
    assert (run.distilled / "manifest.csv").read_bytes() == (finished.run.distilled / "manifest.csv").read_bytes()


@pytest.mark.parametrize("loader", ["auto", "torchvision"])
def test_ranking_puts_no_two_classes_into_a_batch(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """The last bits of scores depend on the batch; so they do not depend on the classes of the task."""
    batches: list[list[int]] = []
    scores = rank.scores

    def recording(network: nn.Module, images: Tensor, labels: np.ndarray, precision: Any) -> np.ndarray:
        batches.append(labels.tolist())
        return scores(network, images, labels, precision)

    monkeypatch.setattr(rank, "scores", recording)
    changes = {"rank": {"batch_size": 5}, "machine": {"loader": loader}}
    start(copy_run(finished, tmp_path / "run", "squeeze"), ("rank",), changes)
    assert batches == [[label] * count for label in range(4) for count in (5, 5, 2)]


def test_the_number_of_workers_changes_nothing(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delt_hpc.data.pil_loader._MIN_IMAGES_FOR_WORKERS", 1)
    run = start(tmp_path / "run", ("squeeze", "rank"), {"machine": {"workers": 2, "cache_mib": 0}}).run
    assert run.ranking.read_bytes() == finished.run.ranking.read_bytes()


def test_a_given_ranking_is_used(finished: Context, start: Start, tmp_path: Path) -> None:
    given = tmp_path / "given.csv"
    table = read_ranking(finished.run.ranking)[["score", "img_path", "class"]]
    table["img_path"] = "/elsewhere/train/" + table["img_path"]
    table.sample(frac=1, random_state=0).to_csv(given, index=False)
    run = start(tmp_path / "run", ("rank",), {"rank": {"csv": str(given)}}).run
    assert run.ranking.read_bytes() == finished.run.ranking.read_bytes()


def test_a_checkpoint_serves_as_teacher(finished: Context, start: Start, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ConvNet(3, 4, 8)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "t.pth")
    given = {"teacher": {"source": "checkpoint", "checkpoint": str(tmp_path / "t.pth")}}
    run = start(tmp_path / "run", ("squeeze", "rank"), given).run
    loaded = teacher.load(run, finished.dataset, torch.device("cpu")).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in network.state_dict().items())
    card = json.loads((run.teacher / "teacher.json").read_text())
    assert (card["source"], card["epochs"]) == ("checkpoint", 0)


def test_noise_initialisation_needs_no_ranking(start: Start, tmp_path: Path) -> None:
    sre2l = {
        "recover": {
            "init": "noise",
            "batching": "mixed",
            "round_iterations": None,
            "crop_schedule": "constant",
            "batch_size": 3,
        },
        "evaluate": {"seeds": [1], "arms": ["distilled-soft"]},
    }
    context = start(tmp_path / "run", None, sre2l)
    assert not context.run.rank.exists() and not context.run.selected.exists()
    assert sorted(p.name for p in context.run.recover.iterdir() if p.is_dir()) == [
        f"{classes}.p{part}" for classes in ("00000-00002", "00003-00003") for part in range(3)
    ]
    table = manifest.read_manifest(context.run.distilled)
    assert (table["source"] == "").all() and (table["iterations"] == 8).all()
    assert len(set(table["sha256"])) == 12


@pytest.mark.parametrize("image_format", ["jpeg", "jpeg75", "png"])
def test_image_formats(finished: Context, start: Start, tmp_path: Path, image_format: str) -> None:
    root = copy_run(finished, tmp_path / "run", "select")
    run = start(root, ("recover", "aggregate"), {"recover": {"image_format": image_format}}).run
    with Image.open(run.distilled / FOLDERS[0] / f"00000.{'png' if image_format == 'png' else 'jpg'}") as image:
        assert image.format == ("PNG" if image_format == "png" else "JPEG")
        tables = getattr(image, "quantization", None)
    if tables:  # steps of the luminance table: small at quality 95, large at 75
        assert (tables[0][0] <= 3) == (image_format == "jpeg")
    else:
        assert images_of(run.distilled) == images_of(finished.run.distilled)


def test_no_class_can_have_the_name_of_a_file_beside_the_classes(finished: Context) -> None:
    run = finished.run
    beside = {path.name for folder in (run.selected, run.distilled) for path in folder.iterdir() if path.is_file()}
    assert beside <= RESERVED
