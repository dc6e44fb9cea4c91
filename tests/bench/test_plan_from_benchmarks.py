"""From a benchmark to the cost of a run: two commands."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from delt_hpc.bench import peaks, synthesis, timing
from delt_hpc.cli import app


@pytest.mark.skipif(torch.cuda.is_available(), reason="the profile of the plan is one of CPUs")
def test_a_benchmark_s_table_feeds_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(timing, "MAX_SECONDS", 1e-9)
    monkeypatch.setitem(peaks.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(peaks.MATRIX_SIZE, "cpu", 64)
    bench = ["bench", "synthesis", "--networks", "convnet3", "--variants", "torch", "--repeats", "1"]
    bench += ["--ipc", "1", "--batch-size", "2", "--rounds", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, bench)
    assert done.exit_code == 0, done.output
    plan = ["plan", "cifar10-convnet-ipc10", "--cluster", "generic-cpu", "--stages", "recover", "--json"]
    plan += ["--run", str(tmp_path / "run"), "--figures", str(tmp_path / "synthesis.csv")]
    done = CliRunner().invoke(app, plan)
    assert done.exit_code == 0, done.output
    (stage,) = json.loads(done.output)["stages"]
    assert stage["hours"] > 0
    assert stage["rate"]["source"] == f"{tmp_path}/synthesis.csv: torch, float32, IPC 1, batch 2"
