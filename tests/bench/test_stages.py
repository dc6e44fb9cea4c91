"""The benchmark of the stages times what is right, and its table feeds the plan."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from delt_hpc.bench import peaks, timing
from delt_hpc.bench.stages import rows, workload
from delt_hpc.bench.stages import table as stage_table
from delt_hpc.bench.stages.recovery import PackedRecovery
from delt_hpc.bench.stages.rows import Elsewhere, other_process
from delt_hpc.bench.stages.table import COMPARED, start
from delt_hpc.bench.stages.workload import BenchStage, Case, InexactError, Workload
from delt_hpc.cli import app
from delt_hpc.recovery.schedule import active_images

CPU = torch.device("cpu")


def small(stage: BenchStage) -> Case:
    return Case(stage, "convnet3", "convnet3", 8, 2, 8, 4, CPU)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_SECONDS", 1e-9)
    monkeypatch.setitem(peaks.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(peaks.MATRIX_SIZE, "cpu", 64)
    rows.peak.cache_clear()


@pytest.mark.parametrize("stage", list(COMPARED))
def test_all_settings_compute_the_same(stage: BenchStage) -> None:
    for settings in ("default", *COMPARED[stage]):
        made = start(small(stage), settings)
        assert 0 <= made.error() <= workload.ALLOWED[made.dtype]
        assert made.block(2).images >= 2 * made.batch_size


def test_a_step_of_recovery_is_an_iteration_of_every_round() -> None:
    """A batch of four images: of a class with eight, half of them."""
    for settings in ("default", "reference", "uncompiled"):
        assert start(small("recover"), settings).block(1).images % sum(active_images(4, 8)) == 0


def test_a_wrong_result_is_an_error() -> None:
    exact = torch.ones(3)
    with pytest.raises(InexactError, match="relative error 2"):
        workload.checked(-exact, exact, 0.4)
    with pytest.raises(InexactError, match="relative error nan"):
        workload.checked(exact * torch.nan, exact, 0.4)


@pytest.mark.usefixtures("quick")
def test_what_fails_has_a_row_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("broken by this test")

    monkeypatch.setattr(PackedRecovery, "block", fail)
    lines: list[str] = []
    table = stage_table.bench([small("recover")], 0.0, 1, False, tmp_path, lines.append).set_index("settings")
    assert table["images_per_s"].notna().to_dict() == {"default": False, "reference": True, "uncompiled": False}
    assert table["failure"]["default"] == "ValueError: broken by this test"
    assert "  uncompiled float32: ValueError: broken by this test" in lines[0].splitlines()


def test_another_process_answers_and_reports_errors() -> None:
    with other_process() as process:
        other = Elsewhere(process, partial(start, small("rank"), "plain"))
        assert (other.batch_size, other.dtype) == (4, torch.float32)
        assert other.block(2)[:2] == (8, 2)
        with pytest.raises(RuntimeError, match="broken by this test"):
            Elsewhere(process, broken)


def broken() -> Workload:
    raise RuntimeError("broken by this test")


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the profile of the plan is one of CPUs")
def test_the_table_feeds_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELT_KEEP_MEMORY", "0")
    bench = ["bench", "stages", "--networks", "convnet3", "--size", "32", "--batch-size", "2", "--classes", "2"]
    done = CliRunner().invoke(app, [*bench, "--ipc", "1", "--seconds", "0", "--repeats", "2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "stages.csv")
    assert table["stage"].tolist() == ["squeeze"] * 2 + ["rank"] * 2 + ["recover"] * 3 + ["evaluate"] * 2
    assert (table["repeats"] == 2).all() and (table["spread"] >= 0).all() and table["ratio_before"].isna().all()
    baseline = table[table["settings"].isin(["plain", "reference"])]
    assert (baseline["ratio"] == 1).all()
    assert (table["floor_share"][table["settings"] == "default"] > 0).all()

    plan = ["plan", "cifar10-convnet-ipc10", "--cluster", "generic-cpu", "--json", "--run", str(tmp_path / "run")]
    planned = CliRunner().invoke(app, [*plan, "--figures", str(tmp_path / "stages.csv")])
    assert planned.exit_code == 0, planned.output
    rates = {stage["stage"]: stage["rate"] for stage in json.loads(planned.output)["stages"]}
    assert {stage for stage, rate in rates.items() if rate} == set(COMPARED)
    default = table[table["settings"] == "default"].set_index("stage")["images_per_s"]
    assert rates["rank"]["passes_per_s"] == pytest.approx(default["rank"])
    assert rates["evaluate"]["source"] == f"{tmp_path}/stages.csv: convnet3 at 32 px, default settings"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "select"], "`select` is unknown"),
        (["--networks", "vgg11_bn"], "has no usual image size"),
    ],
)
def test_unknown_names_are_refused(options: list[str], message: str) -> None:
    assert message in str(CliRunner().invoke(app, ["bench", "stages", *options]).exception)
