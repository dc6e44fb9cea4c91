"""The kernels' benchmark: its ways agree, a wrong one gets no time, and every row says what it is."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from delt_hpc.bench import kernel_cases, kernel_command, kernel_tiles, kernels, stopwatch
from delt_hpc.bench.kernel_case import ROUNDS, Batch, Case, Way
from delt_hpc.bench.kernel_layers import Layer, layers_of
from delt_hpc.bench.kernel_trial import Trial, error_of, measure
from delt_hpc.bench.stopwatch import FEWEST_RUNS, WARM_UP, copy_bandwidth, times
from delt_hpc.errors import UserError
from delt_kernels import segments

CPU = torch.device("cpu")
BATCH = Batch.of(6, torch.float32, CPU)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks on images of a few pixels."""
    monkeypatch.setitem(kernel_cases.SIZES, "convnet4", 16)
    monkeypatch.setitem(kernel_cases.SIZES, "resnet18", 32)


def smallest() -> Case:
    """Adam, the quickest of all."""
    *_, case = kernel_cases.cases("convnet4", BATCH)
    return case


def values(case: Case, way: Way, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    return Trial(case, way, dtype).values


@pytest.mark.parametrize("network", ["convnet4", "resnet18"])
def test_every_operator_computes_what_is_published(network: str) -> None:
    operators = []
    for case in kernel_cases.cases(network, BATCH):
        operators.append(case.operator)
        ours, published = (values(case, way, torch.float64) for way in (case.ours("torch"), case.published))
        for one, other in zip(ours, published, strict=True):
            # Inputs were float32 before they were float64, the scale too.
            assert error_of(one, other) < 1e-6, case.operator
    assert operators[-3:] == ["bn_distance", "crop_resize", "adam"]
    kinds = {"bn", "bn + relu", "bn + relu + max pool", "bn + add + relu", "bn + add + relu, forked"}
    assert set(operators[:-3]) == (kinds if network == "resnet18" else {"bn + relu"})


def test_layers_of_a_network() -> None:
    layers = layers_of("resnet18", 32)
    assert layers.total() == 20
    assert layers[Layer("bn + relu + max pool", False, 64, 16, 16)] == 1
    assert layers[Layer("bn + add + relu", True, 128, 4, 4)] == 2


@pytest.mark.parametrize("images", [1, 2, 100, 462])
def test_a_batch_has_eight_segments(images: int) -> None:
    batch = Batch.of(images, torch.float32, CPU)
    assert len(batch.split) == 9 and batch.split[0] == 0 and batch.images == images
    assert sorted(batch.split) == list(batch.split)
    if images == sum(ROUNDS):
        assert batch.offsets.diff().tolist() == list(ROUNDS)


def test_modelled_bytes() -> None:
    batch = Batch.of(2, torch.bfloat16, CPU)
    cases = {case.operator: case for case in kernel_cases.cases("resnet18", batch)}
    elements = 2 * 512  # of the last layers, one pixel
    assert cases["bn + add + relu"].bytes == (6 * elements + elements // 8, 8 * elements + elements // 8)
    assert cases["bn + add + relu, forked"].bytes[1] == 10 * elements + elements // 8
    elements, pooled = 2 * 64 * 16 * 16, 2 * 64 * 8 * 8
    assert cases["bn + relu + max pool"].bytes == (2 * elements + 3 * pooled, 3 * pooled + 4 * elements)


def test_a_table_without_kernels_says_so(tmp_path: Path) -> None:
    table = kernels.bench(["convnet4"], 2, ["triton"], torch.float32, CPU, tmp_path)
    assert table.columns[: len(kernels.COLUMNS)].tolist() == list(kernels.COLUMNS)
    assert table["pass"].value_counts().to_dict() == {"forward": 14, "backward": 12}
    eager, fused = (table[table["form"] == form] for form in ("eager", "triton"))
    assert (eager["ratio"] == 1).all() and (eager["note"] == "").all() and (eager["error"] < 1e-6).all()
    assert (eager["gb_per_s"] * eager["median_ms"] * 1e6).tolist() == pytest.approx(
        (eager["modelled_mb"] * 1e6).tolist()
    )
    assert (eager["share_of_copy"] * eager["copy_gb_per_s"]).tolist() == pytest.approx(eager["gb_per_s"].tolist())
    assert fused["median_ms"].isna().all() and fused["note"].str.contains("CUDA").all()
    totals = kernels.totals(table).set_index("pass")
    assert totals["eager_ms"]["forward"] == pytest.approx(eager[eager["pass"] == "forward"]["median_ms"].sum())
    assert totals["triton"].isna().all()
    text = kernels.described(table)
    assert text.splitlines()[0].split() == ["network", "pass", "triton", "eager_ms"]
    assert text.count("left out") == 1
    read = pd.read_csv(tmp_path / "kernels.csv")
    assert read.columns.tolist() == table.columns.tolist() and len(read) == len(table)
    with Image.open(tmp_path / "kernels.png") as plot:
        assert plot.format == "PNG"


def test_totals_count_every_layer_and_miss_none() -> None:
    rows = [
        {"network": "n", "pass": "forward", "form": form, "median_ms": ms, "count": count}
        for form, times_of in {"eager": [(4.0, 1), (1.0, 6)], "torch": [(2.0, 1), (0.5, 6)]}.items()
        for ms, count in times_of
    ]
    rows += [row | {"pass": "backward", "median_ms": None if row["form"] == "torch" else 1.0} for row in rows]
    totals = kernels.totals(pd.DataFrame(rows)).set_index("pass")
    assert totals.loc["forward", ["torch", "eager_ms"]].tolist() == [2.0, 10.0]
    assert totals["eager_ms"]["backward"] == 7.0 and pd.isna(totals["torch"]["backward"])


def test_what_is_wrong_or_fails_gets_no_time() -> None:
    case = smallest()
    exact, allowed = values(case, case.published, torch.float64), [1e-6] * 3

    def wrong(*given: Tensor) -> tuple[Tensor, ...]:
        images, first, second = case.published.run(*given)
        return images, first * 1.001, second

    def broken(*given: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat([given[0], given[6]]),)

    assert measure(case, "eager", exact, allowed, CPU).passes
    error, note, passes = measure(replace(case, published=Way(wrong)), "eager", exact, allowed, CPU)
    assert error == pytest.approx(1e-3, rel=1e-2) and note.startswith("wrong: error 1.0e-03") and not passes
    error, note, passes = measure(replace(case, published=Way(broken)), "eager", exact, allowed, CPU)
    assert error is None and note.startswith("failed: RuntimeError") and not passes


@pytest.mark.slow
def test_compiled_ways_are_measured() -> None:
    case = smallest()
    exact = values(case, case.published, torch.float64)
    for form in ("published", "torch"):
        error, note, passes = measure(case, form, exact, [1e-6] * 3, CPU)
        assert error is not None and not note and len(passes) == 1


def test_times_are_ordered_and_warmed_up() -> None:
    calls: list[int] = []
    found = times(lambda: calls.append(1), CPU)
    assert 0 < found.p20_ms <= found.median_ms <= found.p80_ms
    assert len(calls) >= WARM_UP + FEWEST_RUNS
    assert copy_bandwidth(CPU) > 0


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="networks: `vgg` is not known"):
        kernels.bench(["vgg"], 2, ["torch"], torch.float32, CPU, tmp_path)
    with pytest.raises(UserError, match=r"forms: `fast` is not known here\n.*eager, published, torch, triton"):
        kernels.bench(["convnet4"], 2, ["fast"], torch.float32, CPU, tmp_path)
    with pytest.raises(UserError, match="on a GPU only"):
        kernel_tiles.bench(["convnet4"], 2, torch.float32, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    app = Typer()
    app.command()(kernel_command.bench_kernels)
    result = CliRunner().invoke(
        app, ["--networks", "convnet4", "--images", "1", "--forms", "eager", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"table and plot: {tmp_path}/kernels.csv, {tmp_path}/kernels.png"
    assert pd.read_csv(tmp_path / "kernels.csv")["images"].eq(1).all()


def test_tiles_are_swept_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, whose times mean nothing."""
    other = {"TILE": 512, "TILE_CHANNELS": 16}
    monkeypatch.setattr(kernel_tiles, "CHOICES", (kernel_tiles.IN_USE, other))
    monkeypatch.setattr(stopwatch, "WARM_UP", 0)
    monkeypatch.setattr(stopwatch, "FEWEST_RUNS", 1)
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0)
    case = list(kernel_cases.cases("convnet4", Batch((0, 1), torch.float32, CPU)))[3]
    table = pd.DataFrame(kernel_tiles.sweep([case], CPU))
    assert table["pass"].tolist() == ["forward", "backward"] * 2
    assert table["TILE"].tolist() == [segments.TILE] * 2 + [512] * 2
    assert {name: getattr(segments, name) for name in kernel_tiles.IN_USE} == kernel_tiles.IN_USE
    table["median_ms"] = [4.0, 3.0, 2.0, 6.0]
    best = kernel_tiles.best(table)
    assert best.columns[0] == "ratio" and best["ratio"].tolist() == [2.0, 1.0]
    assert best["TILE"].tolist() == [512, segments.TILE]


@pytest.mark.gpu
def test_kernels_are_measured_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    table = kernels.bench(["resnet18"], 32, ["triton"], torch.bfloat16, torch.device("cuda"), tmp_path)
    assert (table["note"] == "").all() and (table["median_ms"] > 0).all()
