"""The synthesis benchmark computes what it says, refuses to time what is wrong; times are the machine's own affair."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from delt_hpc.bench import peaks, stopwatch, synthesis, synthesis_times
from delt_hpc.bench import synthesis_cases as cases
from delt_hpc.bench import synthesis_checks as checks
from delt_hpc.bench.synthesis_cases import Case, Recipe
from delt_hpc.bench.synthesis_checks import Errors, InexactError
from delt_hpc.bench.synthesis_command import bench_synthesis
from delt_hpc.bench.synthesis_options import Options
from delt_hpc.bench.synthesis_runs import Outcome, Published
from delt_hpc.bench.synthesis_variants import PRECISIONS, VARIANTS
from delt_hpc.errors import UserError
from delt_hpc.recovery import reference
from delt_hpc.recovery.device_tables import draw_key
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.recovery.schedule import active_images
from delt_hpc.recovery.state import State

CPU = torch.device("cpu")
SMALL = Recipe(ipc=2, batch_size=4, iterations=4, rounds=2)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("convnet3", SMALL, CPU)


@pytest.fixture(scope="module")
def due(case: Case) -> dict[int, Outcome]:
    return checks.expected(case, CPU)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis_times, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0)
    monkeypatch.setitem(stopwatch.COPIED, "cpu", 2**16)
    monkeypatch.setitem(peaks.SIDE, "cpu", 64)


def options(variants: str, precisions: str = "float32", **changes: Any) -> Options:
    chosen = {"networks": "convnet3", **vars(SMALL), "repeats": 2} | changes
    return Options.usual(CPU).changed(variants=variants, precisions=precisions, **chosen)


def test_the_published_loop_is_the_reference_engine_s(case: Case) -> None:
    """One round, so that nothing is held back: the same images, moments and losses."""
    alone = Case("convnet3", Recipe(ipc=2, batch_size=4, iterations=3, rounds=1), CPU)
    run = Published(alone, NumericFormat(), CPU)
    run.enter((0,))
    run.iterate(3)
    state, batch = State.start(alone.images(0)), alone.batches[0]
    key = draw_key(cases.SEED, batch)
    reference.recover(state, batch, alone.teacher, alone.recipe.recover(), alone.spec, key, lambda *_: None)
    for name in ("images", "exp_avg", "exp_avg_sq", "cross_entropy"):
        assert torch.equal(getattr(run._state, name), getattr(state, name))
    assert run._state.curve == state.curve


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "torch", "torch-packed"])
def test_variants_compute_the_same(name: str, precision: Any, case: Case, due: dict[int, Outcome]) -> None:
    run, checked = VARIANTS[name].start(case, precision, CPU), []
    for rounds in VARIANTS[name].passes(SMALL.rounds):
        run.enter(rounds)
        run.iterate(1)
        checked.append(checks.check(run, rounds, due, precision))
    assert 0 < checks.worst(checked).gradient < checks.ALLOWED[precision].gradient


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on CPU tensors in Triton's interpreter")
@pytest.mark.parametrize("name", ["triton", "triton-packed"])
def test_variants_with_triton_kernels_compute_the_same(name: str) -> None:
    """In Triton's interpreter, two images."""
    small = Case("convnet3", Recipe(ipc=1, batch_size=1, iterations=2, rounds=2), CPU)
    run, due = VARIANTS[name].start(small, "float32", CPU), checks.expected(small, CPU)
    for rounds in VARIANTS[name].passes(2):
        run.enter(rounds)
        run.iterate(1)
        checks.check(run, rounds, due, "float32")


@pytest.mark.gpu
def test_variants_run_on_a_gpu(tmp_path: Path) -> None:
    variants = "reference,compiled-packed,triton,triton-packed,triton-compiled-packed"
    usual = Options.usual(torch.device("cuda"))
    chosen = usual.changed("convnet3", variants, "float32,bfloat16", repeats=2)
    table = synthesis.bench(tmp_path, chosen, print)
    assert table["failure"].isna().all()
    assert len(table) == 5 + 4
    assert (table[["ratio", "ms", "peak_gib", "start_s"]] > 0).all(axis=None)


@pytest.mark.slow
def test_the_compiled_published_formula_is_the_same(case: Case, due: dict[int, Outcome]) -> None:
    run = VARIANTS["published-compiled"].start(case, "float32", CPU)
    run.enter((0,))
    run.iterate(1)
    checks.check(run, (0,), due, "float32")


def test_wrong_images_do_not_pass(case: Case, due: dict[int, Outcome]) -> None:
    """Even the widest tolerance tells a gradient of the mirrored image, and a loss without BatchNorm's part."""
    run = VARIANTS["torch-packed"].start(case, "bfloat16", CPU)
    run.enter((0, 1))
    run.iterate(1)
    right = due[1]
    for wrong in (
        right._replace(gradient=right.gradient.flip(-1)),
        right._replace(loss=right.loss * 0.95),
        right._replace(loss=float("nan")),
    ):
        with pytest.raises(InexactError, match="wrong in round 2"):
            checks.check(run, (0, 1), due | {1: wrong}, "bfloat16")


def test_passes_have_the_recipe_s_images() -> None:
    full = Case("convnet3", Recipe(), CPU)
    active = [2 * count for count in active_images(50, 8)]
    run = VARIANTS["reference"].start(full, "float32", CPU)
    assert [run.enter(rounds) for rounds in VARIANTS["reference"].passes(8)] == active
    packed = VARIANTS["torch-packed"]
    assert [packed.start(full, "float32", CPU).enter(rounds) for rounds in packed.passes(8)] == [sum(active)]
    assert full.passes == sum(active) * 500 / 100


def test_statistics_are_those_of_a_pass(case: Case) -> None:
    seen = cases.pictures(16, 32, "statistics")
    noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    with Objective(case.teacher, 1.0, 1.0) as objective:
        labels = torch.zeros(16, dtype=torch.int64)
        near, far = (objective(images, labels).bn_distance for images in (seen, noise))
    assert near < 0.01 * far


@pytest.mark.usefixtures("quick")
def test_everything_is_told_in_one_table(tmp_path: Path) -> None:
    told: list[str] = []
    table = synthesis.bench(tmp_path, options("reference,torch-packed,triton-packed", "float32,tf32"), told.append)
    assert table.columns[:2].tolist() == ["ratio", "ratio_tf32"]
    rows = table.set_index(["precision", "variant"])
    by_reference, packed = rows.loc[("float32", "reference")], rows.loc[("float32", "torch-packed")]
    assert by_reference["ratio"] == 1
    assert packed["ratio"] == packed["image_iterations_per_s"] / by_reference["image_iterations_per_s"]
    assert (by_reference["images"], packed["images"]) == (3, 6)
    assert packed["image_iterations_per_s"] == pytest.approx(1000 * 6 / packed["ms"])
    assert packed["s_per_image"] == pytest.approx(3 * 2 * 2 / 4 / packed["image_iterations_per_s"])
    assert packed["hours_cifar100"] == pytest.approx(200 * packed["s_per_image"] / 3600)
    assert packed["floor_share"] == pytest.approx(packed["floor_ms"] / packed["ms"])
    assert packed["gflop"] == pytest.approx(2 * by_reference["gflop"])
    failed = rows.drop(index=[("float32", "reference"), ("float32", "torch-packed")])
    assert failed["failure"].tolist() == [
        "there is no GPU for Triton's kernels",
        "this device has no TF32",
        "this device has no TF32",
        "there is no GPU for Triton's kernels",
    ]
    assert failed["ms"].isna().all()
    assert len(told) == len(table)


@pytest.mark.usefixtures("quick")
def test_the_command_writes_table_page_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_synthesis(variants="reference,triton", **vars(SMALL), repeats=1, out=tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("convnet3 float32 reference: 1.00 x reference, ")
    assert told[1] == "convnet3 float32 triton: there is no GPU for Triton's kernels"
    read = pd.read_csv(tmp_path / "synthesis.csv")
    assert read.columns[:2].tolist() == ["ratio", "ratio_tf32"]
    assert read["ms"].notna().tolist() == [True, False]
    page = (tmp_path / "synthesis.md").read_text()
    assert "| 1.00 |  | float32 | reference |" in page
    assert "- float32, triton: there is no GPU for Triton's kernels" in page
    with Image.open(tmp_path / "synthesis-convnet3.png") as plot:
        assert plot.format == "PNG"


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.ALLOWED, "float32", Errors(1e-5, 0.0))
    table = synthesis.bench(tmp_path, options("reference,torch-packed"), lambda line: None)
    assert table["failure"].str.startswith("InexactError: wrong in round 1: loss off by").all()
    assert table[["ratio", "ms", "image_iterations_per_s", "s_per_image", "floor_share"]].isna().all(axis=None)


def test_usual_options_are_known_names() -> None:
    for kind in ("cpu", "cuda"):
        usual = Options.usual(torch.device(kind))
        again = usual.changed(",".join(usual.networks), ",".join(usual.variants), ",".join(usual.precisions))
        assert again == usual
    assert Options.usual(torch.device("cuda")).precisions == PRECISIONS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": "resnet18,alexnet"}, "there is no `alexnet`"),
        ({"variants": "fast"}, "there is no `fast`"),
        ({"precisions": "int8"}, "there is no `int8`"),
        ({"variants": "reference", "precisions": "float16"}, "reference is not measured in float16"),
        ({"iterations": 10, "rounds": 4}, "10 iterations are not 4 rounds of one length"),
        ({"iterations": 0}, "0 is too few"),
        ({"repeats": 0}, "0 is too few"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options.usual(CPU).changed(**changes)
