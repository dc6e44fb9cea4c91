"""Whole comparisons on the toy data set: what is shared, what is skipped, and that an interruption loses nothing."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.program import Program

import delt_hpc
from delt_hpc.comparison import drive, plan
from delt_hpc.comparison.result import Result, read_report
from delt_hpc.config.load import dump_config
from delt_hpc.config.schema import Config
from delt_hpc.data.loader import images as load_images
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.run import stop
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter


@pytest.fixture(scope="module")
def source(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "toy.yaml"
    path.write_text(dump_config(configure({"evaluate": {"epochs": 1}})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of DELT and CDA. Tests must not change it: they copy it."""
    root = tmp_path_factory.mktemp("made") / "runs"
    delt_hpc.compare(source, ["delt", "cda"], root)
    return root


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file() and "compare." not in path.name and not path.name.startswith("compare-")
    }


def test_the_teacher_and_the_ranking_are_made_once(made: Path) -> None:
    real, delt, cda = (RunFolder(made / name) for name in ("real", "delt", "cda"))
    for path in (real.teacher / "weights.safetensors", real.ranking, real.selected / "selected.csv"):
        same = [run.root / path.relative_to(real.root) for run in (real, delt, cda)]
        assert len({copy.stat().st_ino for copy in same}) == 1
    assert not real.recover.exists()
    costs = read_report(made / "delt")["costs"]
    assert [stage["stage"] for stage in costs["stages"]][:4] == ["squeeze", "rank", "select", "recover"]


def test_rows_are_the_accuracies_of_the_runs(made: Path) -> None:
    rows = table(made / "compare")
    assert list(rows) == ["random", "selected", "delt", "cda"]
    results = [json.loads(path.read_text()) for path in made.glob("delt/evaluate/*-distilled-soft/result.json")]
    assert float(rows["delt"]["soft"]) == pytest.approx(sum(one["final"] for one in results) / 2)
    random = [json.loads(path.read_text()) for path in made.glob("real/evaluate/*-random-soft/result.json")]
    gain = float(rows["delt"]["soft"]) - sum(one["final"] for one in random) / 2
    assert float(rows["delt"]["over_random"]) == pytest.approx(gain)
    assert float(rows["delt"]["seconds_per_image"]) > 0
    assert int(rows["delt"]["image_iterations"]) < int(rows["cda"]["image_iterations"]) == 12 * 8
    page = (made / "compare" / "compare.md").read_text(encoding="utf-8")
    assert "delt against random:" in page and "![Accuracy against cost](compare-1.png)" in page
    assert (made / "compare" / "compare-1.png").stat().st_size > 1000
    assert "http" not in (made / "compare" / "compare.html").read_text(encoding="utf-8").replace("http-equiv", "")


def test_a_second_call_makes_nothing_even_without_the_run_folders(made: Path, source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    before = files(root)
    delt_hpc.compare(source, ["delt", "cda"], root)
    assert files(root) == before
    shutil.rmtree(root / "delt")
    delt_hpc.compare(source, ["delt", "cda"], root)
    assert not (root / "delt").exists()
    assert table(root / "compare") == table(made / "compare")


def test_more_seeds_train_only_what_is_missing(made: Path, source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    before = files(root)
    out = delt_hpc.compare(source, ["delt"], root, seeds=3)
    now = files(root)
    assert {name for name in now if name in before and "evaluate/" in name and now[name] != before[name]} == set()
    assert (root / "delt" / "evaluate" / "convnet3-3-distilled-hard" / "result.json").exists()
    assert {row["seeds"] for row in table(out).values()} == {"3"}


def test_an_interrupted_comparison_goes_on_with_the_same_result(
    made: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, left = tmp_path / "runs", 0

    def check() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise stop.Interrupted

    def run(checks: int) -> None:
        nonlocal left
        left = checks
        drive.run(plan.entries(str(source), methods=["delt", "cda"]), root, root / "compare", Reporter(quiet=True))

    monkeypatch.setattr(stop, "check", check)
    for checks in (12, 40, 90):
        with pytest.raises(stop.Interrupted):
            run(checks)
    run(10**9)
    keep = ("name", "soft", "hard", "over_random", "lrs", "diversity", "image_iterations")
    expected, found = table(made / "compare"), table(root / "compare")
    assert [[row[key] for key in keep] for row in found.values()] == [
        [row[key] for key in keep] for row in expected.values()
    ]


def test_another_protocol_uses_the_same_distilled_set(made: Path, source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    out = delt_hpc.compare(source, ["delt"], root, ["evaluate.seeds=[1]"], without_augmentation=True)
    one, other = (root / name / "distilled" / "manifest.csv" for name in ("delt", "delt-plain"))
    assert one.stat().st_ino == other.stat().st_ino
    assert sorted(path.name for path in (root / "delt-plain" / "evaluate").iterdir()) == ["convnet3-1-distilled-soft"]
    rows = table(out)
    assert list(rows) == ["random", "selected", "delt"]
    assert all(row["ars"] and row["lrs"] for row in rows.values())


def test_a_run_of_another_comparison_in_the_same_folder_is_shared(made: Path, source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    delt_hpc.compare(source, ["delt"], root, sweep=["recover.lr=0.25"])
    one, other = (root / name / "distilled" / "manifest.csv" for name in ("delt", "delt-recover.lr=0.25"))
    assert one.stat().st_ino == other.stat().st_ino


def test_a_result_of_another_configuration_is_not_overwritten(made: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r"delt.json: was made with another configuration:\n    recover.lr: made with"):
        delt_hpc.compare(source, ["delt"], made, ["recover.lr=0.5"])


def test_finished_runs_and_results_are_collected(made: Path, program: Program) -> None:
    answer = program("compare", made / "delt", made / "compare" / "real.json", "--out", "here")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "page: here/compare.html"
    kept, found = table(made / "compare"), table(Path("here"))
    assert list(found) == ["random", "selected", "delt"]
    assert found["delt"] == kept["delt"]


def test_what_cannot_be_collected(made: Path, program: Program, tmp_path: Path) -> None:
    answer = program("compare", made / "real")
    assert (answer.code, answer.err.splitlines()[0]) == (2, f"error: {made / 'real'}: has no report")
    (tmp_path / "bad.json").write_text("{}")
    answer = program("compare", "bad.json")
    assert (answer.code, answer.err.splitlines()[0]) == (2, "error: bad.json: is damaged")
    answer = program("compare", made / "delt", made / "cda", "--seeds", "2")
    assert answer.err.startswith(f"error: {made / 'delt'} {made / 'cda'}: several sources can only be collected")


# --- sets of other tools


def external_row(source: Path, made: Path, tmp_path: Path, folder: Path) -> tuple[dict[str, str], Result]:
    """The row of the set, in a copy of the comparison."""
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    out = delt_hpc.compare(source, ["delt"], root, external={"other": folder})
    return table(out)["other"], Result.read(out / "other.json")


ACCURACIES = ("soft", "hard", "over_random", "soft_ema", "lrs", "diversity")


def test_an_image_folder_is_evaluated_as_a_distilled_set_is(made: Path, source: Path, tmp_path: Path) -> None:
    """DELT's own set, given as that of another tool, has DELT's accuracies to the last digit."""
    folder = tmp_path / "given"
    for path in sorted((made / "delt" / "distilled").glob("*/*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.parent.name / path.name)
    row, result = external_row(source, made, tmp_path, folder)
    delt = table(made / "compare")["delt"]
    assert {key: row[key] for key in ACCURACIES} == {key: delt[key] for key in ACCURACIES}
    assert (row["images"], row["seconds_per_image"]) == ("external", "")
    assert result.external.startswith("given, 12 files, BLAKE2b ")
    assert manifest.faults(tmp_path / "runs" / "other" / "distilled") == []


@pytest.mark.parametrize("kind", ["normalised", "bytes", "folder"])
def test_tensors_are_evaluated_as_their_pixels_are(kind: str, made: Path, source: Path, tmp_path: Path) -> None:
    distilled = made / "delt" / "distilled"
    listed = manifest.read_manifest(distilled)
    spec = delt_hpc.load_distilled(distilled).spec
    images = torch.cat(list(load_images(distilled, list(listed["file"]), spec, 100)))
    labels = torch.tensor(listed["class_index"].tolist())
    given = tmp_path / "given"
    given.mkdir()
    if kind == "normalised":
        torch.save((images, torch.nn.functional.one_hot(labels, 4).float()), given / "set.pt")
    elif kind == "bytes":
        torch.save(
            {"images": ((images * 0.25 + 0.5) * 255).round().to(torch.uint8), "labels": labels}, given / "set.pt"
        )
    else:
        torch.save((images * 0.25 + 0.5).clamp(0, 1), given / "images_best.pt")
        torch.save(labels, given / "labels_best.pt")
    row, _ = external_row(source, made, tmp_path, given)
    delt = table(made / "compare")["delt"]
    assert {key: row[key] for key in ACCURACIES} == {key: delt[key] for key in ACCURACIES}


def test_an_external_set_that_changed_is_refused(made: Path, source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.pt"
    torch.save((torch.rand(12, 3, 8, 8), torch.arange(12) % 4), given)
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    delt_hpc.compare(source, [], root, external={"other": given})
    torch.save((torch.rand(12, 3, 8, 8), torch.arange(12) % 4), given)
    with pytest.raises(UserError, match=r"external set: given\.pt, 1 files, BLAKE2b"):
        delt_hpc.compare(source, [], root, external={"other": given})


def broken_sets() -> list[tuple[Any, str]]:
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    return [
        (images, "is not a distilled set"),
        ((images, labels[:5]), r"has images \[12, 3, 8, 8\] and labels \[5\]"),
        ((images[..., :4], labels), r"has images \[12, 3, 8, 4\]"),
        ((images, labels + 1), "has the label 4"),
        (
            (images, torch.arange(12) % 3),
            "4 of 4 classes do not have 3 images: 00010 has 4, 10 has 4, two words has 4, été has 0",
        ),
        ((images / 0, labels), "contains NaN or infinite values"),
        ({"images": images}, "is not a distilled set"),
    ]


@pytest.mark.parametrize(("content", "message"), broken_sets(), ids=[message for _, message in broken_sets()])
def test_what_is_no_distilled_set(content: Any, message: str, made: Path, source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.pt"
    torch.save(content, given)
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    with pytest.raises(UserError, match=message):
        delt_hpc.compare(source, [], root, external={"other": given})
    assert not (root / "other" / "distilled").exists()


def test_a_wrong_set_is_refused_before_any_training(source: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.pt"
    torch.save((torch.rand(12, 3, 8, 8), torch.arange(12) % 3), given)
    with pytest.raises(UserError, match="classes do not have 3 images"):
        delt_hpc.compare(source, [], tmp_path / "runs", external={"other": given})
    assert not list((tmp_path / "runs").glob("*/teacher"))


def test_files_that_are_no_tensors(made: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "given.pt").write_bytes(b"no pickle")
    root = Path(shutil.copytree(made, tmp_path / "runs", copy_function=shutil.copy2))
    with pytest.raises(UserError, match=r"given.pt: cannot be loaded"):
        delt_hpc.compare(source, [], root, external={"other": tmp_path / "given.pt"})
