"""The kernels' benchmark: a wrong operator gets no time, and every row says what it is."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from delt_hpc.bench import timing
from delt_hpc.bench.command import bench_kernels
from delt_hpc.bench.kernels import cases, table, tiles
from delt_hpc.bench.kernels.cases import SEGMENTS, Batch, Case
from delt_hpc.bench.kernels.measure import expected, measure
from delt_hpc.bench.peaks import copy_bandwidth
from delt_hpc.errors import UserError
from delt_kernels import segments
from delt_kernels.dispatch import Backend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks on images of a few pixels, and few runs."""
    monkeypatch.setitem(cases.SIZES, "convnet4", 16)
    monkeypatch.setitem(cases.SIZES, "resnet18", 32)
    monkeypatch.setattr(timing, "MAX_SECONDS", 1e-9)


def adam() -> Case:
    """The fastest operator."""
    *_, case = cases.cases("convnet4", Batch.of(6, torch.float32, CPU))
    return case


@pytest.mark.parametrize("images", [1, 2, 100, 462])
def test_a_batch_has_eight_segments(images: int) -> None:
    batch = Batch.of(images, torch.float32, CPU)
    assert batch.segments == 8 and batch.borders[0] == 0 and batch.images == images
    assert sorted(batch.borders) == list(batch.borders)
    if images == sum(SEGMENTS):
        assert batch.offsets.diff().tolist() == list(SEGMENTS)


def test_modelled_bytes() -> None:
    found = {case.operator: case for case in cases.cases("resnet18", Batch.of(2, torch.bfloat16, CPU))}
    elements = 2 * 512  # of the last layers, one pixel
    assert found["bn + add + relu"].bytes == (6 * elements + elements // 8, 8 * elements + elements // 8)
    assert found["bn + add + relu, forked"].bytes[1] == 10 * elements + elements // 8
    elements, pooled = 2 * 64 * 16 * 16, 2 * 64 * 8 * 8
    assert found["bn + relu + max pool"].bytes == (2 * elements + 3 * pooled, 3 * pooled + 4 * elements)


def test_a_table_of_every_operator(tmp_path: Path) -> None:
    """Triton kernels have rows without times where there is no GPU."""
    found = table.bench(["resnet18"], 2, ["triton"], torch.float32, CPU, tmp_path)
    assert found.columns[: len(table.COLUMNS)].tolist() == list(table.COLUMNS)
    kinds = {"bn", "bn + relu", "bn + relu + max pool", "bn + add + relu", "bn + add + relu, forked"}
    assert set(found["operator"]) == kinds | {"bn_distance", "crop_resize", "adam"}
    torch_rows, triton_rows = (found[found["variant"] == name] for name in ("torch", "triton"))
    assert (torch_rows["ratio"] == 1).all() and (torch_rows["note"] == "").all() and (torch_rows["error"] < 1e-6).all()
    bandwidth = torch_rows["modelled_mb"] / torch_rows["median_ms"]
    assert torch_rows["gb_per_s"].tolist() == pytest.approx(bandwidth.tolist())
    share = torch_rows["gb_per_s"] / torch_rows["copy_gb_per_s"]
    assert torch_rows["share_of_copy"].tolist() == pytest.approx(share.tolist())
    assert triton_rows["median_ms"].isna().all() and triton_rows["note"].str.contains("require a GPU").all()
    text = table.summary(found)
    assert text.splitlines()[0].split() == ["network", "pass", "triton", "torch_ms"]
    assert text.count("not measured") == 1
    read = pd.read_csv(tmp_path / "kernels.csv")
    assert read.columns.tolist() == found.columns.tolist() and len(read) == len(found)


def test_totals_count_every_layer_and_miss_none() -> None:
    rows = [
        {"network": "n", "pass": "forward", "variant": name, "median_ms": ms, "count": count}
        for name, times in {"torch": [(4.0, 1), (1.0, 6)], "triton": [(2.0, 1), (0.5, 6)]}.items()
        for ms, count in times
    ]
    rows += [row | {"pass": "backward", "median_ms": None if row["variant"] == "triton" else 1.0} for row in rows]
    totals = table.totals(pd.DataFrame(rows)).set_index("pass")
    assert totals.loc["forward", ["triton", "torch_ms"]].tolist() == [2.0, 10.0]
    assert totals["torch_ms"]["backward"] == 7.0 and pd.isna(totals["triton"]["backward"])


def test_what_is_wrong_or_fails_gets_no_time() -> None:
    case = adam()
    exact, allowed = expected(case)

    def wrong(backend: Backend, *inputs: Tensor) -> tuple[Tensor, ...]:
        images, exp_avg, exp_avg_sq = case.run(backend, *inputs)
        return images, exp_avg * 1.001, exp_avg_sq

    def broken(backend: Backend, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat([inputs[0], inputs[6]]),)

    assert measure(case, "torch", exact, allowed, CPU).passes
    error, note, passes = measure(replace(case, run=wrong), "torch", exact, allowed, CPU)
    assert error == pytest.approx(1e-3, rel=1e-2) and note.startswith("wrong: error 1.0e-03") and not passes
    error, note, passes = measure(replace(case, run=broken), "torch", exact, allowed, CPU)
    assert error is None and note.startswith("failed: RuntimeError") and not passes


@pytest.mark.slow
def test_compiled_operators_are_measured() -> None:
    case = adam()
    error, note, passes = measure(case, "torch-compiled", *expected(case), CPU)
    assert error is not None and not note and len(passes) == 1


def test_times_are_ordered() -> None:
    found = timing.measure(lambda: None, CPU)
    assert 0 < found.p20_ms <= found.median_ms <= found.p80_ms
    assert copy_bandwidth(CPU) > 0


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--networks vgg: `vgg` is unknown"):
        bench_kernels(networks="vgg", tiles=True, out=tmp_path)
    with pytest.raises(UserError, match=r"--variants fast: `fast` is unknown\n.*torch, torch-compiled, triton"):
        bench_kernels(variants="fast", out=tmp_path)
    with pytest.raises(UserError, match="requires a GPU"):
        tiles.bench(["convnet4"], 2, torch.float32, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the command measures there")
def test_the_command(tmp_path: Path) -> None:
    app = Typer()
    app.command()(bench_kernels)
    given = ["--networks", "convnet4", "--images", "1", "--variants", "torch", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"table: {tmp_path}/kernels.csv"
    assert pd.read_csv(tmp_path / "kernels.csv")["images"].eq(1).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on CPU tensors in Triton's interpreter")
def test_tile_sizes_are_tried_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, whose times mean nothing."""
    other = {"TILE_BYTES": 1024, "TILE_CHANNELS": 16}
    monkeypatch.setattr(tiles, "CHOICES", (tiles.IN_USE, other))
    monkeypatch.setattr(tiles, "measure", lambda run, device: (run(), timing.Times(1.0, 1.0, 1.0))[1])
    case = list(cases.cases("convnet4", Batch((0, 1), torch.float32, CPU)))[3]
    found = pd.DataFrame(tiles.sweep([case], CPU))
    assert found["pass"].tolist() == ["forward", "backward"] * 2
    assert found["TILE_BYTES"].tolist() == [segments.TILE_BYTES] * 2 + [1024] * 2
    assert {name: getattr(segments, name) for name in tiles.IN_USE} == tiles.IN_USE
    found["median_ms"] = [4.0, 3.0, 2.0, 6.0]
    best = tiles.best(found)
    assert best.columns[0] == "ratio" and best["ratio"].tolist() == [2.0, 1.0]
    assert best["TILE_BYTES"].tolist() == [1024, segments.TILE_BYTES]


@pytest.mark.gpu
def test_kernels_are_measured_on_a_gpu(tmp_path: Path) -> None:
    found = table.bench(["resnet18"], 32, ["triton"], torch.bfloat16, torch.device("cuda"), tmp_path)
    assert (found["note"] == "").all() and (found["median_ms"] > 0).all()
