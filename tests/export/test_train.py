"""train.py of an export, in a process that cannot import this package."""

import json
import math
import os
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.toy import Start, copy_run

import delt_hpc
from delt_hpc.context import Context
from delt_hpc.errors import UserError
from delt_hpc.export.export import export
from delt_hpc.export.images import FORMATS, Format
from delt_hpc.run.progress import Reporter

QUIET = Reporter(quiet=True)


def without_the_package(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with the installed libraries, but without the links of editable installs (-S), among them this package."""
    paths = [sysconfig.get_path("purelib")]
    if spec := find_spec("pyarrow"):
        assert spec.origin
        paths.append(str(Path(spec.origin).parents[1]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def accuracy(text: str) -> tuple[float, float]:
    found = re.search(r"seeds: ([\d.]+) ± ([\d.]+) %", text)
    assert found, text
    return float(found[1]), float(found[2])


def test_the_package_is_out_of_reach(tmp_path: Path) -> None:
    answer = without_the_package("-c", "import torch, delt_hpc", cwd=tmp_path)
    assert "No module named 'delt_hpc'" in answer.stderr


@pytest.mark.parametrize("labels", ["teacher", "stored", "hard"])
def test_training_with_each_kind_of_label(labels: str, finished: Context, toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(finished.run.root, folder, "webdataset", QUIET, views=2)
    answer = without_the_package("train.py", "--val", toy / "val", "--labels", labels, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert re.fullmatch(
        rf"seed 1: [\d.]+ % top-1\nseed 2: [\d.]+ % top-1\nconvnet3, {labels} labels, 2 seeds: [\d.]+ ± [\d.]+ %\n"
        r"(reported, [a-z-]+: [\d.]+ ± [\d.]+ %\n)+",
        answer.stdout,
    )


def test_other_protocols(finished: Context, toy: Path, tmp_path: Path, start: Start) -> None:
    changes = {
        "soft_loss": "mse_ce", "teacher_statistics": "batch", "shuffle_patches": 2, "mirror": False,
        "seeds": [1], "arms": ["distilled-soft"],
    }  # fmt: skip
    run, folder = copy_run(finished, tmp_path / "run", until="aggregate"), tmp_path / "out"
    start(run, ("evaluate",), {"evaluate": changes})
    export(run, folder, "imagefolder", QUIET)
    answer = without_the_package("train.py", "--val", toy / "val", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    with pytest.raises(UserError, match=r"cannot be stored with evaluate\.soft_loss: mse_ce"):
        export(run, tmp_path / "labels", "imagefolder", QUIET, views=1)
    assert not (tmp_path / "labels").exists()


def test_one_seed_has_no_spread(finished: Context, toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(finished.run.root, folder, "imagefolder", QUIET)
    answer = without_the_package("train.py", "--val", toy / "val", "--seeds", "7", "--epochs", "1", cwd=folder)
    assert re.search(r"^convnet3, teacher labels, 1 seed: [\d.]+ %$", answer.stdout, re.MULTILINE), answer.stderr


def test_what_the_export_lacks_cannot_be_chosen(finished: Context, toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(finished.run.root, folder, "imagefolder", QUIET, with_teacher=False)
    answer = without_the_package("train.py", "--val", toy / "val", "--labels", "teacher", cwd=folder)
    assert answer.returncode == 2
    assert "invalid choice: 'teacher'" in answer.stderr
    other = without_the_package("train.py", "--val", folder / "train" / "10", cwd=folder)
    assert other.returncode != 0
    (tmp_path / "val" / "10").mkdir(parents=True)
    ((tmp_path / "val" / "10") / "a.png").write_bytes((folder / "train" / "10" / "00000.png").read_bytes())
    fewer = without_the_package("train.py", "--val", tmp_path / "val", cwd=folder)
    assert "must have exactly these class folders: 00010, 10, two words, été" in fewer.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the recipe `digits`, of which only the students that are compared are trained."""
    root = tmp_path_factory.mktemp("digits")
    overrides = [f"data.root={root / 'data'}", "evaluate.arms=[distilled-soft]"]
    return delt_hpc.distil("digits", root / "run", overrides)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_training_on_the_export_gives_the_accuracy_of_the_report(to: Format, digits: Path, tmp_path: Path) -> None:
    if to == "huggingface":
        pytest.importorskip("pyarrow")
    folder = tmp_path / "out"
    export(digits, folder, to, QUIET)
    answer = without_the_package("train.py", "--val", digits.parent / "data" / "val", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    mean, std = accuracy(answer.stdout)
    (reported,) = json.loads((digits / "report" / "report.json").read_text(encoding="utf-8"))["accuracy"]
    final = reported["final"]
    # Three standard errors of the difference of two means over three seeds; hard labels are some 15 points lower.
    allowed = 3 * math.hypot(std, final["std"]) / math.sqrt(final["n"])
    assert mean == pytest.approx(final["mean"], abs=min(allowed, 8.0))
