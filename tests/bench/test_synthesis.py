"""The synthesis benchmark computes what it says, and refuses to time what is wrong."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from delt_hpc.bench import peaks, synthesis, timing
from delt_hpc.bench.command import bench_synthesis
from delt_hpc.bench.stages import recovery, rows, workload
from delt_hpc.bench.stages.workload import SIZES, Block, InexactError
from delt_hpc.bench.synthesis import PRECISIONS, REFERENCE, VARIANTS, Suite, start
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.errors import UserError
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.schedule import active_images
from delt_kernels.dispatch import uses

CPU = torch.device("cpu")
SMALL = Suite(ipc=2, batch_size=4, rounds=2, repeats=2)
CASE = SMALL.case("convnet3", CPU)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(timing, "MAX_SECONDS", 1e-9)
    monkeypatch.setitem(peaks.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(peaks.MATRIX_SIZE, "cpu", 64)
    rows.peak.cache_clear()


def small(variants: tuple[str, ...], precisions: tuple[RecoverPrecision, ...] = ("float32",)) -> Suite:
    return replace(SMALL, variants=variants, precisions=precisions)


@pytest.mark.parametrize(
    ("name", "precision"),
    [(REFERENCE, "float32"), *product(("torch", "torch-packed"), ("float32", "bfloat16", "float16"))],
)
def test_variants_compute_the_same(name: str, precision: Any) -> None:
    made = start(name, CASE, precision)
    assert 0 < made.error() < workload.ALLOWED[made.dtype]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on CPU tensors in Triton's interpreter")
@pytest.mark.parametrize("name", ["triton", "triton-packed"])
def test_variants_with_triton_kernels_compute_the_same(name: str) -> None:
    """In Triton's interpreter, two images."""
    tiny = replace(SMALL, ipc=1, batch_size=1).case("convnet3", CPU)
    assert start(name, tiny, "float32").error() < 1e-3


@pytest.mark.gpu
def test_variants_run_on_a_gpu(tmp_path: Path) -> None:
    variants = (REFERENCE, "torch-compiled-packed", "triton", "triton-packed", "triton-compiled-packed")
    suite = replace(Suite.default(torch.device("cuda")), networks=("convnet3",), repeats=2)
    table = synthesis.bench(tmp_path, replace(suite, variants=variants, precisions=("float32", "bfloat16")), print)
    assert table["failure"].isna().all()
    assert len(table) == 5 + 4
    assert (table[["ratio", "ms", "peak_gib", "start_s"]] > 0).all(axis=None)


def test_wrong_images_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the widest tolerance tells the gradient of a mirrored image, in the second batch of a pass as well."""
    exact = recovery._exact_gradient
    for wrong_batch in (0, 1):

        def mirrored(case: Any, batch: int, round_index: int, wrong: int = wrong_batch) -> torch.Tensor:
            right = exact(case, batch, round_index)
            return right.flip(-1) if batch == wrong else right

        monkeypatch.setattr(recovery, "_exact_gradient", mirrored)
        with pytest.raises(InexactError, match="wrong: relative error 1"):
            start("torch-packed", CASE, "bfloat16").error()


def test_passes_have_the_recipe_s_images() -> None:
    """The packed variant has the batches of all rounds in its pass; the others go through the rounds one by one."""
    active = [2 * count for count in active_images(8, 4)]
    case = replace(SMALL, ipc=8, batch_size=16, rounds=4).case("convnet3", CPU)
    for name, passes in ((REFERENCE, 4), ("torch", 4), ("torch-packed", 1)):
        block = start(name, case, "float32").block(1)
        assert block[:2] == (sum(active), passes)


def test_a_pass_needs_a_batch_for_every_round() -> None:
    with pytest.raises(ValueError, match="a pass needs 2 batches; there are 1"):
        start("torch-packed", replace(CASE, ipc=1, batch_size=100), "float32")


def test_statistics_are_those_of_a_pass() -> None:
    images = workload.random_images(16, 32, "statistics")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with Objective(workload.teacher("convnet3", CASE.spec), 1.0, 1.0) as objective:
        labels = torch.zeros(16, dtype=torch.int64)
        near, far = (objective(x, labels).bn_distance for x in (images, noise))
    assert near < 0.01 * far


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(torch.cuda.is_available(), reason="refusals of a CPU")
def test_one_row_for_each_variant_and_precision(tmp_path: Path) -> None:
    lines: list[str] = []
    variants = (REFERENCE, "torch-packed", "triton-packed")
    table = synthesis.bench(tmp_path, small(variants, ("float32", "tf32")), lines.append)
    assert table.columns[:2].tolist() == ["ratio", "ratio_tf32"]
    found = table.set_index(["precision", "variant"])
    of_reference, packed = found.loc[("float32", REFERENCE)], found.loc[("float32", "torch-packed")]
    assert of_reference["ratio"] == 1
    assert packed["ratio"] == packed["image_iterations_per_s"] / of_reference["image_iterations_per_s"]
    assert (of_reference["images"], packed["images"]) == (3, 6)
    assert packed["image_iterations_per_s"] == pytest.approx(1000 * 6 / packed["ms"])
    assert packed["s_per_image"] == pytest.approx((2000 * 2 + 2000 * 4) / 4 / packed["image_iterations_per_s"])
    assert packed["floor_share"] == pytest.approx(packed["floor_ms"] / packed["ms"])
    failed = found.drop(index=[("float32", REFERENCE), ("float32", "torch-packed")])
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
    monkeypatch.setitem(workload.ALLOWED, torch.float32, 0.0)
    table = synthesis.bench(tmp_path, small((REFERENCE, "torch-packed")), lambda line: None)
    assert table["failure"].str.startswith("InexactError: wrong: relative error").all()
    assert table[["ratio", "ms", "image_iterations_per_s", "s_per_image", "floor_share"]].isna().all(axis=None)


@pytest.mark.usefixtures("quick")
def test_a_variant_that_falls_back_to_uncompiled_code_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TorchDynamoException("a graph break made by this test")

    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: fail)
    table = synthesis.bench(tmp_path, small(("torch-compiled",)), lambda line: None)
    assert "a graph break made by this test" in table["failure"][0] and table["ms"].isna().all()


@pytest.mark.usefixtures("quick")
def test_an_optimisation_is_off_in_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[bool, bool]] = []

    class Noting:
        dtype, batch_size = torch.float32, 4

        def error(self) -> float:
            return 0.0

        def block(self, steps: int) -> Block:
            used.append((uses("relu_bitmask"), uses("bn_stats_fork")))
            return Block(4, 1, 1.0)

    monkeypatch.setattr(synthesis, "start", lambda *args: Noting())
    monkeypatch.setattr(synthesis, "_obstacle", lambda *args: "")
    variants = ("triton-packed", "triton-packed-no-bitmask", "triton-packed-no-fork")
    table = synthesis.bench(tmp_path, small(variants), lambda line: None)
    assert table["ms"].notna().all()
    assert list(dict.fromkeys(used)) == [(True, True), (False, True), (True, False)]
    assert uses("relu_bitmask") and uses("bn_stats_fork")


def test_the_defaults_are_known_names() -> None:
    for kind in ("cpu", "cuda"):
        default = Suite.default(torch.device(kind))
        assert set(default.networks) <= set(SIZES) and set(default.variants) <= set(VARIANTS)
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
