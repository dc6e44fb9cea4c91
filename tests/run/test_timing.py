"""Timing records: appended by every process, gathered into one table, robust to killed processes."""

import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch

from delt_hpc.run.folder import RunFolder
from delt_hpc.run.timing import COLUMNS, Record, device_name, gather, peak_memory_mib, record, task_name

CPU = torch.device("cpu")
CONTRACT = [
    "stage", "unit", "round", "seconds", "images", "image_iterations", "image_iterations_per_s",
    "data_wait_s", "compile_s", "device", "peak_memory_mib", "started", "host", "task",
]  # fmt: skip


def test_the_table_has_a_row_a_record(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(run, Record("rank", "00000-00009", 2.0, 100, 100, data_wait_s=0.5), CPU)
    record(run, Record("recover", "00000-00009", 4.0, 20, 600, round=1, compile_s=0.25), CPU)
    table = gather(run)
    assert list(table.columns) == list(COLUMNS) == CONTRACT
    assert len(table) == 2
    rank, recover = (table[table["stage"] == stage].iloc[0] for stage in ("rank", "recover"))
    assert rank["image_iterations_per_s"] == 50.0
    assert (rank["data_wait_s"], rank["compile_s"], rank["unit"]) == (0.5, 0.0, "00000-00009")
    assert pd.isna(rank["round"])
    assert (recover["round"], recover["image_iterations_per_s"], recover["compile_s"]) == (1, 150.0, 0.25)
    assert (recover["host"], recover["device"]) == (platform.node(), device_name(CPU))
    assert recover["peak_memory_mib"] > 1


def test_the_table_is_written_beside(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(run, Record("rank", "all", 2.0, 100, 100), CPU)
    record(run, Record("recover", "00000-00000", 1.0, 5, 50, round=0), CPU)
    gather(run)
    lines = run.timing_table.read_text().splitlines()
    assert lines[0] == ",".join(CONTRACT)
    assert sorted(line.split(",")[:3] for line in lines[1:]) == [
        ["rank", "all", ""],
        ["recover", "00000-00000", "0"],
    ]


def test_the_oldest_record_is_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for unit, seconds in (("young", 10.0), ("old", 5000.0), ("between", 300.0)):
        record(run, Record("recover", unit, seconds, 1, 1, round=0), CPU)
    table = gather(run)
    assert table["unit"].tolist() == ["old", "between", "young"]
    started = [datetime.fromisoformat(text) for text in table["started"]]
    assert started == sorted(started)
    assert abs(started[0] + timedelta(seconds=5000) - datetime.now(UTC)) < timedelta(minutes=5)


def test_records_of_all_processes_are_gathered(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(run, Record("rank", "00000-00004", 1.0, 5, 5), CPU)
    (own,) = run.timing.iterdir()
    line = own.read_text()
    (run.timing / "rank-other-17.jsonl").write_text(line.replace("00000-00004", "00005-00009"))
    assert sorted(gather(run)["unit"]) == ["00000-00004", "00005-00009"]


def test_work_that_was_done_twice_counts_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for seconds in (7.0, 2.0):
        record(run, Record("squeeze", "convnet3", seconds, 5, 5), CPU)
        record(run, Record("recover", "00000-00004", seconds, 5, 5, round=0), CPU)
        record(run, Record("recover", "00000-00004", seconds, 5, 5, round=1), CPU)
    table = gather(run)
    assert table["seconds"].tolist() == [2.0, 2.0, 2.0]
    assert sorted(table["round"].fillna(-1)) == [-1, 0, 1]


@pytest.mark.parametrize("length", [1, 30, -2])
def test_a_broken_last_line_is_ignored(length: int, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(run, Record("rank", "all", 1.0, 5, 5), CPU)
    (own,) = run.timing.iterdir()
    line = own.read_text()
    with own.open("a") as file:
        file.write(line[:length])
    table = gather(run)
    assert len(table) == 1
    assert table["unit"][0] == "all"


def test_no_records_make_an_empty_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert list(gather(run).columns) == CONTRACT
    assert run.timing_table.read_text() == ",".join(CONTRACT) + "\n"


def test_work_that_took_no_time_has_no_rate(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(run, Record("select", "all", 0.0, 5, 5), CPU)
    assert gather(run)["image_iterations_per_s"].tolist() == [0.0]


def test_the_task_is_slurm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert task_name() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert task_name() == "71"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert task_name() == "70_3"


def test_memory_is_the_process_s_own_on_a_cpu() -> None:
    before = peak_memory_mib(CPU)
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory_mib(CPU) >= before
    assert peak_memory_mib(CPU) > 64
