"""The packed engine on a GPU: kernels, CUDA graphs, lower precisions, determinism."""

import copy

import pytest
import torch
from helpers.engines import CLASSES, IPC, SIZE, by_packed, by_reference, randomised, recover_of, same, small_teacher
from torch import nn

from delt_hpc.models.registry import build
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.state import State

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LONG = {"iterations": 40, "round_iterations": 10}  # long enough for graphs to be recorded and replayed


@pytest.fixture(params=["small", "residual"])
def teacher(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "small":
        return small_teacher()
    torch.manual_seed(2)
    return randomised(build("resnet18-small-stem", CLASSES, SIZE))


@pytest.mark.parametrize(
    ("kernels", "compiled"), [("triton", False), ("triton", True), ("torch", False), ("torch", True)]
)
@pytest.mark.parametrize(
    ("precision", "band"), [("float32", 1e-3), ("tf32", 1e-2), ("bfloat16", 0.1), ("float16", 0.03)]
)
def test_losses_follow_the_reference_engine_s(
    precision: str, band: float, kernels: str, compiled: bool, teacher: nn.Module
) -> None:
    """Relative to the reference engine in float32 on the CPU, for the mean loss of every round."""
    recover = recover_of(**LONG, precision=precision, kernels=kernels, compile=compiled)
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, copy.deepcopy(teacher), recover, torch.float32)
    found = by_packed(batches, teacher, recover, segments=3, device=CUDA)
    for key, state in found.items():
        ours, theirs = (torch.tensor(run.curve)[:, 5].view(4, 10).mean(1) for run in (state, expected[key]))
        assert ((ours - theirs).abs() <= band * theirs).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_of_two_sizes_follow_the_reference_engine_s(compiled: bool) -> None:
    """Each size has graphs of its own."""
    torch.manual_seed(2)
    teacher = randomised(build("resnet18-small-stem", CLASSES, SIZE))
    recover = recover_of(
        iterations=40, round_iterations=None, blocks=4, block_sizes=[6, 8, 6, 8], merge=0.5, batching="mixed",
        compile=compiled,
    )  # fmt: skip
    batches = plan(CLASSES, IPC, recover)
    expected = by_reference(batches, copy.deepcopy(teacher), recover, torch.float32)
    found = by_packed(batches, teacher, recover, segments=3, device=CUDA)
    for key, state in found.items():
        ours, theirs = (torch.tensor(run.curve)[:, 5].view(4, 10).mean(1) for run in (state, expected[key]))
        assert ((ours - theirs).abs() <= 1e-3 * theirs).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_deterministic_bytes_do_not_depend_on_tasks_or_restarts(precision: str, teacher: nn.Module) -> None:
    recover = recover_of(**LONG, deterministic=True, precision=precision)
    batches = plan(CLASSES, IPC, recover)
    whole = by_packed(batches, teacher, recover, segments=4, device=CUDA)
    assert same(by_packed(batches, teacher, recover, segments=4, device=CUDA), whole)
    tasks: dict[str, State] = {}
    for batch in batches:
        tasks |= by_packed([batch], teacher, recover, segments=4, device=CUDA)
    assert same(tasks, whole)
    for stop in (5, 23, 51):
        stopped = by_packed(batches, teacher, recover, segments=4, device=CUDA, stop_after=stop)
        finished = {key: state for key, state in stopped.items() if state.t == recover.iterations}
        rest = [batch for batch in batches if batch.id not in finished]
        resumed = by_packed(rest, teacher, recover, segments=4, device=CUDA, states=stopped)
        assert same({batch.id: (finished | resumed)[batch.id] for batch in batches}, whole)
