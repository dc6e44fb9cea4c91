"""What happens when compilation, the recording of a CUDA graph or an allocation fails; the failures are fakes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from functorch.compile import make_boxed_func
from helpers.engines import CLASSES, IPC, by_packed, recover_of, same, small_teacher
from helpers.toy import Start
from PIL import Image
from torch._dynamo.backends.common import aot_autograd

from delt_hpc.errors import UserError
from delt_hpc.recovery import engine, memory
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.compiled import compile_with_fallback
from delt_hpc.recovery.cuda_graph import WARM_UP, GraphedIteration
from delt_hpc.recovery.engine import Engine
from delt_hpc.run.folder import read_json


def with_fake_graph_break(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return x + 1


def test_a_graph_break_falls_back_with_one_warning_that_names_it() -> None:
    function = compile_with_fallback(with_fake_graph_break, deterministic=False)
    with pytest.warns(RuntimeWarning, match=r"runs uncompiled: Call to `torch._dynamo.graph_break\(\)`"):
        assert function(torch.zeros(2)).tolist() == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(torch.zeros(3)).tolist() == [1, 1, 1]


def test_a_graph_break_is_an_error_where_bytes_must_not_change() -> None:
    function = compile_with_fallback(with_fake_graph_break, deterministic=True)
    with pytest.raises(UserError, match=r"recover.deterministic: true: torch.compile failed: Call to"):
        function(torch.zeros(2))


def test_an_engine_whose_compilation_fails_gives_the_uncompiled_result(monkeypatch: pytest.MonkeyPatch) -> None:
    recover, teacher = recover_of(iterations=4, round_iterations=2), small_teacher()
    batches = plan(CLASSES, IPC, recover)
    uncompiled = by_packed(batches, teacher, recover, segments=2)
    losses = Engine._segment_losses

    def with_fake_break(self: Engine, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch._dynamo.graph_break()
        return losses(self, *tensors)

    monkeypatch.setattr(Engine, "_segment_losses", with_fake_break)
    with pytest.warns(RuntimeWarning, match="runs uncompiled") as caught:
        fallen_back = by_packed(batches, teacher, recover.model_copy(update={"compile": True}), segments=2)
    assert len([warning for warning in caught if "uncompiled" in str(warning.message)]) == 1
    assert same(fallen_back, uncompiled)


@pytest.fixture
def backward_that_fails_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake failure of the compiler, in backward passes alone."""

    def fake_failure(*args: object) -> None:
        raise RuntimeError("fake failure: no code for the backward pass")

    def forward(graph: torch.fx.GraphModule, inputs: object) -> Any:
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=fake_failure)
    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_by(function, backend=backend, **options))


@pytest.mark.usefixtures("backward_that_fails_to_compile")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_backward_pass_that_fails_to_compile_falls_back_with_one_warning(dynamic: bool) -> None:
    function = compile_with_fallback(torch.sin, deterministic=False)
    x = torch.zeros(2, requires_grad=True)
    if dynamic:
        torch._dynamo.maybe_mark_dynamic(x, 0)
    with pytest.warns(RuntimeWarning, match="runs uncompiled.*fake failure: no code for the backward pass") as caught:
        for _ in range(2):
            (gradient,) = torch.autograd.grad(function(x).sum(), x)
    assert gradient.tolist() == [1, 1]
    assert len([warning for warning in caught if "uncompiled" in str(warning.message)]) == 1


@pytest.mark.usefixtures("backward_that_fails_to_compile")
def test_a_backward_pass_that_fails_to_compile_is_an_error_where_bytes_must_not_change() -> None:
    function = compile_with_fallback(torch.sin, deterministic=True)
    with pytest.raises(UserError, match=r"recover.deterministic: true: torch.compile failed: .*fake failure"):
        function(torch.zeros(2, requires_grad=True))


@pytest.mark.usefixtures("backward_that_fails_to_compile")
def test_an_engine_whose_backward_pass_fails_to_compile_gives_the_uncompiled_result() -> None:
    recover, teacher = recover_of(iterations=4, round_iterations=2), small_teacher()
    batches = plan(CLASSES, IPC, recover)
    uncompiled = by_packed(batches, teacher, recover, segments=2)
    with pytest.warns(RuntimeWarning, match="runs uncompiled.*fake failure"):
        fallen_back = by_packed(batches, teacher, recover.model_copy(update={"compile": True}), segments=2)
    assert same(fallen_back, uncompiled)


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[GraphedIteration, list[int]]]:
    """A GraphedIteration as on a GPU where every recording fails, and the list of iterations that ran."""

    def make(graphs: bool | Literal["auto"]) -> tuple[GraphedIteration, list[int]]:
        ran: list[int] = []
        graphed = GraphedIteration(ran.append, torch.device("cpu"), graphs)

        def fake_failure(images: int) -> None:
            raise RuntimeError("fake failure: operation not permitted when stream is capturing\nmore lines")

        monkeypatch.setattr(graphed, "_on_gpu", True)
        monkeypatch.setattr(graphed, "_warm_up", ran.append)
        monkeypatch.setattr(graphed, "_record", fake_failure)
        monkeypatch.setattr(graphed, "_limit_queue", lambda: None)
        return graphed, ran

    return make


def test_a_failed_recording_falls_back_with_one_warning(
    graphed: Callable[..., tuple[GraphedIteration, list[int]]],
) -> None:
    iteration, ran = graphed("auto")
    with pytest.warns(RuntimeWarning, match="CUDA graph, and recovery goes on without: fake failure") as caught:
        for images in [8] * (WARM_UP + 3) + [16] * (WARM_UP + 3):
            iteration(images)
    assert ran == [8] * (WARM_UP + 3) + [16] * (WARM_UP + 3)  # every iteration exactly once
    assert len(caught) == 1


def test_a_failed_recording_is_an_error_where_graphs_are_demanded(
    graphed: Callable[..., tuple[GraphedIteration, list[int]]],
) -> None:
    iteration, _ = graphed(True)
    for _ in range(WARM_UP):
        iteration(8)
    with pytest.raises(
        UserError, match=r"recover.graphs: true: the iteration could not be recorded as a CUDA graph: fake failure"
    ):
        iteration(8)


def test_without_graphs_nothing_is_recorded(graphed: Callable[..., tuple[GraphedIteration, list[int]]]) -> None:
    iteration, ran = graphed(False)
    for _ in range(WARM_UP + 2):
        iteration(8)
    assert ran == [8] * (WARM_UP + 2)


@pytest.mark.parametrize(
    ("segments", "remedy"), [(3, "set recover.segments below 3"), (1, "smaller recover.batch_size")]
)
def test_too_little_memory_is_an_error_that_names_segments_and_batches(
    segments: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_failure(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("fake failure: out of memory")

    recover = recover_of()
    monkeypatch.setattr(engine, "crop_resize", fake_failure)
    named = rf"(?s)recover.segments: {segments}: .* {segments} segment\(s\) with .*batches 00000-00001.*{remedy}"
    with pytest.raises(UserError, match=named):
        by_packed(plan(CLASSES, IPC, recover), small_teacher(), recover, segments=segments)


def images_of(run: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), np.int16) for path in sorted(run.glob("recover/**/*.png"))])


def fail_from(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake failure: no memory for passes of so many images, from the second iteration on."""
    original, large = engine.crop_resize, [0]

    def fake_failure(buffer: torch.Tensor, views: torch.Tensor, rows: torch.Tensor, *args: Any, **options: Any) -> Any:
        large[0] += len(rows) >= images
        if large[0] > 1 and len(rows) >= images:
            raise torch.OutOfMemoryError("fake failure: out of memory")
        return original(buffer, views, rows, *args, **options)

    monkeypatch.setattr(engine, "crop_resize", fake_failure)


def test_with_segments_auto_recovery_goes_on_with_fewer(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two batches in a pass fail in their second round, and then finish one after the other."""
    changes = {"recover": {"precision": "float32"}}
    one = start(tmp_path / "one", None, changes).run.root
    monkeypatch.setattr(memory, "choose_segments", lambda *args: 2)
    fail_from(8, monkeypatch)
    capsys.readouterr()
    fewer = start(tmp_path / "fewer", None, changes, quiet=False).run.root
    assert "pass of 2 segment(s) with 8 images" in (said := capsys.readouterr().err)
    assert "going on with at most 1" in said
    folders = sorted((fewer / "recover").glob("*/done.json"))
    assert len(folders) == 2
    for done in folders:
        assert read_json(done)["segments"] == 1
        assert pd.read_csv(done.with_name("curve.csv"))["iteration"].tolist() == list(range(8))
    # Another packing changes the last bits only, so no iteration is lost or done twice.
    assert np.abs(images_of(one) - images_of(fewer)).max() <= 2


@pytest.mark.parametrize("changes", [{"segments": 2}, {"deterministic": True}])
def test_a_fixed_number_of_segments_stays(
    changes: dict[str, Any], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "choose_segments", lambda *args: 2)
    fail_from(8, monkeypatch)
    with pytest.raises(UserError, match=r"set recover\.segments below 2"):
        start(tmp_path, None, {"recover": {"precision": "float32"} | changes})
