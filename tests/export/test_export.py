"""Exports in all formats: their content, their bytes, and what is refused."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from helpers.program import Program
from helpers.toy import FOLDERS, copy_run, images_of
from torchvision.datasets import ImageFolder

from delt_hpc.config.schema import Evaluate, is_free
from delt_hpc.context import Context
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.export import images
from delt_hpc.export.export import export
from delt_hpc.export.images import FORMATS, Format
from delt_hpc.export.run import FOLLOWED, WITHOUT_EFFECT, open_finished
from delt_hpc.run import stop
from delt_hpc.run.progress import Reporter

QUIET = Reporter(quiet=True)


def make(
    finished: Context, target: Path, to: Format = "imagefolder", *, with_teacher: bool = True, views: int = 0
) -> Path:
    export(finished.run.root, target, to, QUIET, with_teacher=with_teacher, views=views)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_imagefolder_has_the_images_and_everything_to_train_on_them(finished: Context, tmp_path: Path) -> None:
    folder = make(finished, tmp_path / "out")
    assert images_of(folder / "train") == images_of(finished.run.distilled)
    loaded = ImageFolder(folder / "train")
    assert (loaded.classes, len(loaded)) == (list(FOLDERS), 12)
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "SHA256SUMS", "classes.csv", "dataset.py", "manifest.csv", "model.py", "protocol.json"),
        *("randaugment.py", "teacher.safetensors", "train", "train.py"),
    }
    teacher = (finished.run.teacher / "weights.safetensors").read_bytes()
    assert (folder / "teacher.safetensors").read_bytes() == teacher


def test_every_file_is_in_the_checksums(finished: Context, tmp_path: Path) -> None:
    folder = make(finished, tmp_path / "out", views=1)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {line.split("  ", 1)[1] for line in lines} == contents(folder).keys() - {"SHA256SUMS"}
    facts = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))["teacher"]
    assert f"{facts['sha256']}  teacher.safetensors" in lines


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_run_gives_the_same_bytes(to: Format, finished: Context, tmp_path: Path) -> None:
    if to == "huggingface":
        pytest.importorskip("pyarrow")
    first = make(finished, tmp_path / "a", to, views=2)
    moved = copy_run(finished, tmp_path / "moved")
    export(moved, tmp_path / "b", to, QUIET, views=2)
    assert contents(first) == contents(tmp_path / "b")


def test_tar_files_have_image_and_label_of_every_row_and_no_times(
    finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "IMAGES_PER_TAR", 5)
    folder = make(finished, tmp_path / "out", "webdataset")
    shards = sorted(folder.glob("*.tar"))
    assert [path.name for path in shards] == [f"train-0000{number}-of-00003.tar" for number in range(3)]
    members: dict[str, bytes] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gname) == (0, 0, "")
                content = tar.extractfile(member)
                assert content
                members[member.name] = content.read()
    table = manifest.read_manifest(finished.run.distilled)
    distilled = images_of(finished.run.distilled)
    for row, (file, label) in enumerate(zip(table["file"], table["class_index"], strict=True)):
        assert members.pop(f"{row:08d}.png") == distilled[file]
        assert int(members.pop(f"{row:08d}.cls")) == label
    assert not members
    assert '{00000..00002}-of-00003.tar").decode("pil").to_tuple("png", "cls")' in (folder / "README.md").read_text()


@pytest.mark.parametrize("to", FORMATS)
def test_the_datasets_library_loads_every_format(
    to: Format, finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = make(finished, tmp_path / "out", to)
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 12
    image, label = ("png", "cls") if to == "webdataset" else ("image", "label")
    assert rows[0][image].size == (8, 8)
    if to != "webdataset":
        assert rows.features["label"].names == list(FOLDERS)
    assert sorted(rows[label]) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_webdataset_library_loads_the_shards(finished: Context, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = make(finished, tmp_path / "out", "webdataset")
    shards = [str(path) for path in folder.glob("*.tar")]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert sorted(label for _, label in samples) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {image.size for image, _ in samples} == {(8, 8)}


def test_the_card_begins_with_what_the_hub_reads(finished: Context, tmp_path: Path) -> None:
    text = (make(finished, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["pretty_name"] == "toy, distilled: 3 images per class"
    assert (facts["task_categories"], facts["size_categories"]) == (["image-classification"], ["n<1K"])
    assert facts["configs"][0]["data_files"] == [{"split": "train", "path": "train/**"}]
    (result,) = (row for row in open_finished(finished.run.root).results if row.arm == "distilled-hard")
    assert f"| convnet3 | distilled | hard | 2 | {result.final.mean:.2f} ± {result.final.std:.2f} |" in body
    assert "the terms of use of\n`toy` apply" in body
    assert "python train.py --val" in body
    bare = (make(finished, tmp_path / "bare", with_teacher=False) / "README.md").read_text(encoding="utf-8")
    assert "soft labels are not part of this export" in bare
    assert "teacher.safetensors" not in bare


def test_names_of_classes_are_the_folders_where_two_are_the_same(finished: Context) -> None:
    classes = finished.dataset.classes
    twice = type(classes)(classes.folders, ("crane", "crane", "a", "b"))
    assert images.label_names(twice) == classes.folders
    assert images.label_names(type(classes)(classes.folders, ("a", "b", "c", "d"))) == ("a", "b", "c", "d")


def test_a_folder_in_use_is_refused(finished: Context, tmp_path: Path) -> None:
    folder = make(finished, tmp_path / "out")
    before = contents(folder)
    with pytest.raises(UserError, match="already exists"):
        make(finished, folder)
    with pytest.raises(UserError, match="is inside the run folder"):
        make(finished, finished.run.root / "export")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("distilled/10/00001.png", r"10/00001\.png: its content has changed"),
        ("distilled/classes.csv", r"classes\.csv: "),
        ("teacher/weights.safetensors", r"weights\.safetensors"),
        ("evaluate/convnet3-1-distilled-hard/result.json", r"result\.json"),
    ],
)
def test_a_damaged_run_is_refused(path: str, problem: str, finished: Context, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")
    content = (run / path).read_bytes()
    (run / path).write_bytes(content[:-9] + bytes(9))
    with pytest.raises(UserError, match=problem):
        export(run, tmp_path / "out", "imagefolder", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_is_refused(finished: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distilled: is missing or not finished[\s\S]*stage `aggregate`"):
        export(copy_run(finished, tmp_path / "a", until="recover"), tmp_path / "out", "imagefolder", QUIET)
    with pytest.raises(UserError, match=r"No student has been trained yet[\s\S]*stage `evaluate`"):
        export(copy_run(finished, tmp_path / "b", until="aggregate"), tmp_path / "out", "imagefolder", QUIET)
    run = copy_run(finished, tmp_path / "c")
    shutil.rmtree(run / "evaluate" / "convnet3-2-distilled-hard")
    with pytest.raises(UserError, match="convnet3-2-distilled-hard"):
        export(run, tmp_path / "out", "imagefolder", QUIET)
    with pytest.raises(UserError, match="is not a run folder"):
        export(tmp_path / "nothing", tmp_path / "out", "imagefolder", QUIET)


def test_every_option_of_the_students_training_is_followed_refused_or_without_effect(
    finished: Context, tmp_path: Path
) -> None:
    """An option that nobody has assigned is refused unless it has its default."""
    refused = {"labels": "stored", "epochs_kept": 1}
    values = {name for name, field in Evaluate.model_fields.items() if not is_free(field)}
    assert {*FOLLOWED, *WITHOUT_EFFECT} <= values
    assert values - {*FOLLOWED, *WITHOUT_EFFECT} == refused.keys()
    for name, value in refused.items():
        root = copy_run(finished, tmp_path / name)
        config = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
        config["evaluate"][name] = value
        (root / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        with pytest.raises(UserError, match=rf"evaluate\.{name}: {value}\n"):
            open_finished(root)


def test_the_training_script_reads_every_setting_that_it_is_given(finished: Context, tmp_path: Path) -> None:
    folder = make(finished, tmp_path / "out")
    training = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))["training"]
    assert training.keys() == {*FOLLOWED, "students", "seeds", "optimizer"}
    script = (folder / "train.py").read_text(encoding="utf-8") + (folder / "dataset.py").read_text(encoding="utf-8")
    assert [name for name in training if f'["{name}"]' not in script] == ["optimizer"]  # only told to readers


def test_a_stop_leaves_nothing(finished: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_requested", [15])
    with pytest.raises(stop.Interrupted):
        make(finished, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command(finished: Context, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = program("export", finished.run.root, "--to", "webdataset", "--no-teacher", "-q")
    assert (answer.code, answer.out) == (0, "export: exports/run-webdataset\n")
    assert not Path("exports/run-webdataset/teacher.safetensors").exists()
    wrong = program("export", finished.run.root, "--to", "zip")
    assert wrong.code == 2
    assert "expected: imagefolder, huggingface, webdataset" in wrong.err
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    without = program("export", finished.run.root, "--to", "huggingface")
    assert without.code == 2
    assert "pip install 'delt-hpc[huggingface]'" in without.err
