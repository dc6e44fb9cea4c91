"""What `auto` stands for, on which device and for how much work."""

import pytest
import torch
from helpers.engines import CLASSES, CPU, IPC, SIZE, recover_of, small_teacher

from delt_hpc.config.schema import Recover
from delt_hpc.models.networks import ConvNet
from delt_hpc.recovery import auto
from delt_hpc.recovery.auto import estimate_compilation, image_iterations_of, resolve_auto
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.schedule import Schedule

GPU = torch.device("cuda")


@pytest.mark.parametrize("hardware", [False, True])
def test_precision_follows_the_hardware(hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "cpu_has_bfloat16", lambda: hardware)
    assert resolve_auto(Recover(), CPU).precision == ("bfloat16" if hardware else "float32")
    assert resolve_auto(Recover(), GPU).precision == "bfloat16"
    assert resolve_auto(Recover(precision="float32"), CPU).precision == "float32"


def test_a_gpu_compiles_and_a_cpu_only_if_the_work_is_worth_it() -> None:
    assert resolve_auto(Recover(), GPU).compile is True
    assert resolve_auto(Recover(), CPU).compile is False
    assert resolve_auto(Recover(), CPU, compile_on_cpu=True).compile is True
    assert resolve_auto(Recover(compile=False), CPU, compile_on_cpu=True).compile is False


def test_the_estimate_counts_image_iterations_and_passes() -> None:
    recover, teacher = recover_of(), small_teacher()
    batches = plan(CLASSES, IPC, recover)
    whole = estimate_compilation(teacher, recover, batches, SIZE, CPU)
    schedule = Schedule.of(recover)
    image_iterations = sum(image_iterations_of(batch, schedule, schedule.iterations) for batch in batches)
    multiplications = 27 * 8 * 64 + 72 * 12 * 16 + 48 * CLASSES  # two convolutions and a matrix product
    # Two operations each, forward and backward.
    assert whole.work_seconds * auto.UNCOMPILED_FLOPS == pytest.approx(image_iterations * multiplications * 4)
    assert whole.compile_seconds == 2 * auto.COMPILE_SECONDS_PER_LAYER


def test_a_demo_is_not_compiled_and_a_long_run_is() -> None:
    teacher = ConvNet(3, CLASSES, 32).eval()
    demo = recover_of()
    long = recover_of(iterations=1_000_000, round_iterations=125_000)
    for recover, worthwhile in ((demo, False), (long, True)):
        batches = plan(CLASSES, IPC, recover)
        estimate = estimate_compilation(teacher, recover, batches, 32, CPU)
        assert estimate.worthwhile == worthwhile
