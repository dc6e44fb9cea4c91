"""The synthesis benchmark computes what it says, and refuses to time what is wrong."""

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from delt_hpc.bench import peaks, timing
from delt_hpc.bench.synthesis import cases, check, measure, suite
from delt_hpc.bench.synthesis.cases import Case, Recipe
from delt_hpc.bench.synthesis.check import Errors, InexactError
from delt_hpc.bench.synthesis.command import bench_synthesis
from delt_hpc.bench.synthesis.engines import Outcome
from delt_hpc.bench.synthesis.suite import Suite
from delt_hpc.bench.synthesis.variants import PRECISIONS, VARIANTS
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.errors import UserError
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.schedule import active_images

CPU = torch.device("cpu")
SMALL = Recipe(ipc=2, batch_size=4, iterations=4, rounds=2)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("convnet3", SMALL, CPU)


@pytest.fixture(scope="module")
def exact(case: Case) -> dict[int, Outcome]:
    return check.expected(case, CPU)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(timing, "MAX_SECONDS", 1e-9)
    monkeypatch.setitem(peaks.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(peaks.MATRIX_SIZE, "cpu", 64)


def small(variants: tuple[str, ...], precisions: tuple[RecoverPrecision, ...] = ("float32",)) -> Suite:
    return Suite(("convnet3",), variants, precisions, SMALL, repeats=2)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("reference", "float32"), *product(("torch", "torch-packed"), ("float32", "bfloat16", "float16"))],
)
def test_variants_compute_the_same(name: str, precision: Any, case: Case, exact: dict[int, Outcome]) -> None:
    engine, errors = VARIANTS[name].start(case, precision, CPU), list[Errors]()
    for rounds in VARIANTS[name].passes(SMALL.rounds):
        engine.enter(rounds)
        engine.iterate(1)
        errors += check.check(engine, rounds, exact, precision)
    assert 0 < check.worst(errors).gradient < check.ALLOWED[precision].gradient


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on CPU tensors in Triton's interpreter")
@pytest.mark.parametrize("name", ["triton", "triton-packed"])
def test_variants_with_triton_kernels_compute_the_same(name: str) -> None:
    """In Triton's interpreter, two images."""
    small = Case("convnet3", Recipe(ipc=1, batch_size=1, iterations=2, rounds=2), CPU)
    engine, exact = VARIANTS[name].start(small, "float32", CPU), check.expected(small, CPU)
    for rounds in VARIANTS[name].passes(2):
        engine.enter(rounds)
        engine.iterate(1)
        check.check(engine, rounds, exact, "float32")


@pytest.mark.gpu
def test_variants_run_on_a_gpu(tmp_path: Path) -> None:
    variants = ("reference", "torch-compiled-packed", "triton", "triton-packed", "triton-compiled-packed")
    table = suite.bench(tmp_path, Suite(("convnet3",), variants, ("float32", "bfloat16"), Recipe(), 2), print)
    assert table["failure"].isna().all()
    assert len(table) == 5 + 4
    assert (table[["ratio", "ms", "peak_gib", "start_s"]] > 0).all(axis=None)


def test_wrong_images_do_not_pass(case: Case, exact: dict[int, Outcome]) -> None:
    """Even the widest tolerance tells a gradient of the mirrored image, and a loss without BatchNorm's part."""
    engine = VARIANTS["torch-packed"].start(case, "bfloat16", CPU)
    engine.enter((0, 1))
    engine.iterate(1)
    right = exact[1]
    for wrong in (
        right._replace(gradient=right.gradient.flip(-1)),
        right._replace(loss=right.loss * 0.95),
        right._replace(loss=float("nan")),
    ):
        with pytest.raises(InexactError, match="wrong in round 2"):
            check.check(engine, (0, 1), exact | {1: wrong}, "bfloat16")


def test_passes_have_the_recipe_s_images() -> None:
    full = Case("convnet3", Recipe(), CPU)
    active = [2 * count for count in active_images(50, 8)]
    engine = VARIANTS["reference"].start(full, "float32", CPU)
    assert [engine.enter(rounds) for rounds in VARIANTS["reference"].passes(8)] == active
    packed = VARIANTS["torch-packed"]
    assert [packed.start(full, "float32", CPU).enter(rounds) for rounds in packed.passes(8)] == [sum(active)]
    assert full.iterations_per_image == sum(active) * 500 / 100


def test_statistics_are_those_of_a_pass(case: Case) -> None:
    images = cases.random_images(16, 32, "statistics")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with Objective(case.teacher, 1.0, 1.0) as objective:
        labels = torch.zeros(16, dtype=torch.int64)
        near, far = (objective(x, labels).bn_distance for x in (images, noise))
    assert near < 0.01 * far


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a CPU")
def test_one_row_for_each_variant_and_precision(tmp_path: Path) -> None:
    lines: list[str] = []
    variants = ("reference", "torch-packed", "triton-packed")
    table = suite.bench(tmp_path, small(variants, ("float32", "tf32")), lines.append)
    assert table.columns[:2].tolist() == ["ratio", "ratio_tf32"]
    rows = table.set_index(["precision", "variant"])
    of_reference, packed = rows.loc[("float32", "reference")], rows.loc[("float32", "torch-packed")]
    assert of_reference["ratio"] == 1
    assert packed["ratio"] == packed["image_iterations_per_s"] / of_reference["image_iterations_per_s"]
    assert (of_reference["images"], packed["images"]) == (3, 6)
    assert packed["image_iterations_per_s"] == pytest.approx(1000 * 6 / packed["ms"])
    assert packed["s_per_image"] == pytest.approx(3 * 2 * 2 / 4 / packed["image_iterations_per_s"])
    assert packed["floor_share"] == pytest.approx(packed["floor_ms"] / packed["ms"])
    assert packed["gflop"] == pytest.approx(2 * of_reference["gflop"])
    failed = rows.drop(index=[("float32", "reference"), ("float32", "torch-packed")])
    assert failed["failure"].tolist() == [
        "Triton kernels require a GPU; this run is on the CPU",
        "this device has no TF32",
        "this device has no TF32",
        "Triton kernels require a GPU; this run is on the CPU",
    ]
    assert failed["ms"].isna().all()
    assert len(lines) == len(table)


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a CPU")
def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_synthesis(variants="reference,triton", ipc=2, batch_size=4, rounds=2, repeats=1, profile=True, out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("convnet3 float32 reference: 1.00 x reference, ")
    assert lines[1] == "convnet3 float32 triton: Triton kernels require a GPU; this run is on the CPU"
    read = pd.read_csv(tmp_path / "synthesis.csv")
    assert read["ms"].notna().tolist() == [True, False]
    assert "convolution" in (tmp_path / "profile-convnet3-float32-reference.txt").read_text()


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.ALLOWED, "float32", Errors(1e-5, 0.0))
    table = suite.bench(tmp_path, small(("reference", "torch-packed")), lambda line: None)
    assert table["failure"].str.startswith("InexactError: wrong in round 1: relative error of the loss").all()
    assert table[["ratio", "ms", "image_iterations_per_s", "s_per_image", "floor_share"]].isna().all(axis=None)


@pytest.mark.usefixtures("quick")
def test_a_variant_that_falls_back_to_uncompiled_code_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TorchDynamoException("a graph break made by this test")

    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: fail)
    table = suite.bench(tmp_path, small(("torch-compiled",)), lambda line: None)
    assert "a graph break made by this test" in table["failure"][0] and table["ms"].isna().all()


def test_the_defaults_are_known_names() -> None:
    for kind in ("cpu", "cuda"):
        default = Suite.default(torch.device(kind))
        assert set(default.networks) <= set(cases.NETWORKS) and set(default.variants) <= set(VARIANTS)
    assert Suite.default(torch.device("cuda")).precisions == PRECISIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": "resnet18,alexnet"}, "--networks resnet18,alexnet: `alexnet` is unknown"),
        ({"variants": "fast"}, "`fast` is unknown"),
        ({"precisions": "int8"}, "`int8` is unknown"),
        ({"rounds": 3}, "4000 iterations cannot be split into 3 equal rounds"),
    ],
)
def test_unknown_names_and_impossible_rounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench_synthesis(**options)
