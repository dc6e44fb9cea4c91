"""When a training is compiled, and what happens if that fails."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import Start, copy_run
from torch import nn

from delt_hpc.context import Context
from delt_hpc.models import weights
from delt_hpc.models.registry import build
from delt_hpc.training.compiled import WORTHWHILE, CompileEstimate, compile_network, forward_flops, resolve_compile

CPU, OTHER = torch.device("cpu"), torch.device("meta")  # OTHER stands for a GPU: it computes shapes and FLOPs only


def resolved(option: Any, passes: int, device: torch.device) -> tuple[bool, list[str]]:
    lines: list[str] = []
    student, teacher = (build("convnet3", 10, 32).to(device) for _ in range(2))
    return resolve_compile(option, student, [teacher.eval()], passes, 32, device, lines.append), lines


def test_auto_compiles_on_a_gpu_if_the_work_is_worth_it() -> None:
    small, line = resolved("auto", 10**5, OTHER)
    assert not small and line[0].startswith("not compiled; 0 s of work uncompiled, 30 s to compile")
    large, line = resolved("auto", 10**9, OTHER)
    assert large and line[0].startswith("compiled; ")


def test_auto_never_compiles_on_a_cpu() -> None:
    assert resolved("auto", 10**12, CPU) == (False, [])


@pytest.mark.parametrize("option", [True, False])
def test_a_configured_value_is_taken(option: bool) -> None:
    assert resolved(option, 1, CPU) == (option, [])
    assert resolved(option, 10**12, OTHER) == (option, [])


def test_work_of_several_times_the_compilation_is_worthwhile() -> None:
    assert CompileEstimate(WORTHWHILE, 1.0).worthwhile
    assert not CompileEstimate(0.99 * WORTHWHILE, 1.0).worthwhile


def test_flops_of_a_forward_pass_leave_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).train()
    assert forward_flops(network, 8, CPU) == 2 * 3 * 4 * 8 * 8
    assert network.training and network[1].num_batches_tracked == 0


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> list[object]:
    """Let torch.compile use a backend that needs no C++ compiler; returns the list of what is compiled."""
    compiled: list[object] = []
    real = partial(torch.compile, backend=backend)

    def compile_(function: Any) -> Any:
        compiled.append(function)
        return real(function)

    monkeypatch.setattr(torch, "compile", compile_)
    return compiled


def test_a_failed_compilation_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise ValueError("broken by this test")

    with_backend(monkeypatch, fail)
    network = nn.Linear(2, 3)
    compiled, x = compile_network(network), torch.randn(4, 2)
    with pytest.warns(RuntimeWarning, match="runs uncompiled.*broken by this test"):
        assert torch.equal(compiled(x), network(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(compiled(2 * x), network(2 * x))


def test_compiled_trainings_learn_the_same(
    finished: Context, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = with_backend(monkeypatch, "eager")
    teacher = start(tmp_path / "teacher", ("squeeze",), {"squeeze": {"compile": True}}).run.teacher
    assert len(compiled) == 1
    one, other = (weights.read(folder / "weights.safetensors") for folder in (teacher, finished.run.teacher))
    assert all(torch.equal(one[name], other[name]) for name in other)

    compiled.clear()
    arms = {"compile": True, "seeds": [1], "arms": ["distilled-soft", "distilled-hard"]}
    run = start(copy_run(finished, tmp_path / "students", "aggregate"), ("evaluate",), {"evaluate": arms}).run
    assert len(compiled) == 3  # two students and a teacher
    for folder in run.evaluate.iterdir():
        found, expected = (
            json.loads((f / "result.json").read_text()) for f in (folder, finished.run.evaluate / folder.name)
        )
        assert (found["final"], found["ema"]) == (expected["final"], expected["ema"])
