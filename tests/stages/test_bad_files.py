"""Unreadable images and mixed image decoders in whole stages."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.toy import FOLDERS, Start, copy_run

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context
from delt_hpc.data import bad_files
from delt_hpc.errors import UserError
from delt_hpc.ranking.table import read_ranking


@pytest.fixture
def damaged(toy: Path, tmp_path: Path) -> Path:
    """The toy data set with three training files and a validation file that are no images."""
    root = tmp_path / "damaged"
    shutil.copytree(toy, root)
    for file in (f"train/{FOLDERS[1]}/00003.png", f"train/{FOLDERS[3]}/00000.png", f"train/{FOLDERS[3]}/00011.png"):
        (root / file).write_bytes(b"")
    (root / "val" / FOLDERS[0] / "00001.png").write_text("no image")
    return root


@pytest.mark.parametrize("loader", ["auto", "torchvision"])
def test_skipped_files_are_listed_with_the_ranking_and_in_the_report(
    start: Start, damaged: Path, tmp_path: Path, loader: str
) -> None:
    changes = {
        "data": {"root": str(damaged), "on_bad": "skip"},
        "machine": {"loader": loader},
        "evaluate": {"seeds": [1], "arms": ["distilled-soft"]},
    }
    run = start(tmp_path / "run", None, changes).run
    table = read_ranking(run.ranking)
    assert table.groupby("class_index").size().tolist() == [12, 11, 12, 10]
    assert table["score"].notna().all()
    listed = bad_files.gather(run)
    assert sorted(zip(listed["split"], listed["img_path"], strict=True)) == [
        ("train", f"{FOLDERS[1]}/00003.png"),
        ("train", f"{FOLDERS[3]}/00000.png"),
        ("train", f"{FOLDERS[3]}/00011.png"),
        ("val", f"{FOLDERS[0]}/00001.png"),
    ]
    report = json.loads((run.report / "report.json").read_text())
    assert {f"{file['split']}/{file['path']}" for file in report["left_out"]} == {
        f"{split}/{path}" for split, path in zip(listed["split"], listed["img_path"], strict=True)
    }
    for page in ("report.html", "report.md"):
        assert "00011.png" in (run.report / page).read_text()


def test_unreadable_files_are_an_error_otherwise(start: Start, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)unreadable image.*00003\.png|00000\.png.*data\.on_bad=skip"):
        start(tmp_path / "run", ("squeeze",), {"data": {"root": str(damaged)}})


def test_a_class_with_too_few_readable_images_is_refused(start: Start, damaged: Path, tmp_path: Path) -> None:
    changes = {"data": {"root": str(damaged), "on_bad": "skip"}, "select": {"ipc": 11}}
    with pytest.raises(UserError, match=f"class {FOLDERS[3]} has 10 ranked images, but select.ipc is 11"):
        start(tmp_path / "run", ("squeeze", "rank", "select"), changes)


def test_scores_of_different_decoders_are_not_mixed(finished: Context, start: Start, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    root = copy_run(finished, tmp_path / "run", "squeeze")
    start(root, ("rank",), {"machine": {"loader": "torchvision"}}, classes=ClassRange(0, 1))
    with pytest.raises(UserError, match="loader: made with 'torchvision', now 'dali-cpu'"):
        start(root, ("rank",), {"machine": {"loader": "dali-cpu"}}, classes=ClassRange(2, 3))
    run = start(root, ("rank",), {"machine": {"loader": "torchvision"}}).run
    assert len(read_ranking(run.ranking)) == 48


def test_the_image_decoder_is_recorded(finished: Context) -> None:
    read_by = json.loads((finished.run.rank / "read_by.json").read_text())
    assert read_by == finished.loader_config.facts(training=False)
    result = json.loads(next(finished.run.evaluate.glob("*/result.json")).read_text())
    assert result["loader"] == "torchvision"


def test_the_precision_of_scores_is_as_configured(finished: Context, start: Start, tmp_path: Path) -> None:
    runs = [
        start(copy_run(finished, tmp_path / name, "squeeze"), ("rank",), {"rank": {"precision": name}}).run
        for name in ("float32", "bfloat16")
    ]
    one, other = (read_ranking(run.ranking).set_index("img_path")["score"].sort_index() for run in runs)
    assert not one.equals(other)
    assert (one - other).abs().max() < 0.02
