"""What errors and documents say about deleting files is true: the next run makes them again, with the same bytes."""

from pathlib import Path

import pytest
from helpers.toy import FOLDERS, Start, copy_run, images_of

from delt_hpc.config.schema import Stage
from delt_hpc.context import Context
from delt_hpc.errors import UserError

STAGES: tuple[Stage, ...] = ("squeeze", "rank", "select", "recover", "aggregate", "evaluate")
BATCH, TRIAL = "recover/00000-00001", "evaluate/convnet3-1-distilled-soft"
JSON = (
    *("dataset.json", "teacher/teacher.json", "teacher/made_by.json", "teacher/done.json"),
    *("rank/read_by.json", "rank/made_by.json", "rank/done.json", "selected/made_by.json", "selected/done.json"),
    *("recover/made_by.json", f"{BATCH}/done.json"),
    *("distilled/dataset.json", "distilled/made_by.json", "distilled/done.json"),
    *(f"{TRIAL}/result.json", f"{TRIAL}/made_by.json", f"{TRIAL}/done.json"),
)
OTHERS = (
    *("config.yaml", "classes.csv", "index/train.csv", "index/val.csv", "timing.csv"),
    *("teacher/weights.safetensors", "teacher/history.csv", "rank/00001.csv", "rank/00001.b2", "ranking.csv"),
    *("selected/selected.csv", f"selected/{FOLDERS[1]}/00002.png"),
    *(f"{BATCH}/images.csv", f"{BATCH}/curve.csv", f"{BATCH}/images/00001/00002.png"),
    *("distilled/manifest.csv", "distilled/classes.csv", "distilled/README.md", f"distilled/{FOLDERS[3]}/00000.png"),
    f"{TRIAL}/history.csv",
)


def obey(root: Path, error: UserError) -> None:
    """Delete what the error says is to be deleted."""
    if error.remedy.startswith("delete dataset.json"):
        (root / "dataset.json").unlink()
    elif error.remedy.startswith("delete it;"):
        assert Path(error.where).is_relative_to(root)
        Path(error.where).unlink()
    else:
        raise error


def run(start: Start, root: Path) -> None:
    """Run the stages; each remedy is followed once."""
    for _ in range(2):
        try:
            start(root, STAGES)
            return
        except UserError as error:
            obey(root, error)
    start(root, STAGES)


def contents(root: Path) -> dict[str, bytes]:
    tables = (
        "classes.csv",
        "ranking.csv",
        "distilled/manifest.csv",
        "teacher/weights.safetensors",
        f"{TRIAL}/history.csv",
    )
    images = {name: content for name, content in images_of(root).items() if not name.startswith(("broken/", "report/"))}
    return images | {name: (root / name).read_bytes() for name in tables}


@pytest.mark.parametrize("name", [*JSON, *OTHERS])
def test_a_deleted_file_is_made_again(finished: Context, start: Start, tmp_path: Path, name: str) -> None:
    root = copy_run(finished, tmp_path / "run", "evaluate")
    (root / name).unlink()
    run(start, root)
    assert (root / name).is_file()
    assert contents(root) == contents(finished.run.root)


@pytest.mark.parametrize("name", JSON)
def test_the_remedy_for_a_damaged_record_works(finished: Context, start: Start, tmp_path: Path, name: str) -> None:
    root = copy_run(finished, tmp_path / "run", "evaluate")
    (root / name).write_bytes((root / name).read_bytes()[:-3])
    run(start, root)
    assert contents(root) == contents(finished.run.root)
