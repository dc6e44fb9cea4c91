"""The context of a stage: class range, device, validation images."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Machine
from delt_hpc.context import Context, choose_device
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap, scan
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter

FOLDERS = ("z", "a", "m")


@pytest.fixture
def context(tmp_path: Path, image_folder: Callable[..., Path]) -> Context:
    train = image_folder(tmp_path / "train", dict.fromkeys(FOLDERS, 3), size=16)
    val = image_folder(tmp_path / "val", dict.fromkeys(FOLDERS, 2), size=16)
    dataset = Dataset(SPECS["digits"], ClassMap(FOLDERS, FOLDERS), scan(train, FOLDERS), scan(val, FOLDERS))
    run = RunFolder(tmp_path / "run")
    return Context(Config(), run, dataset, torch.device("cpu"), Reporter(quiet=True))


def test_class_ranges(context: Context) -> None:
    assert context.class_range(None) == ClassRange(0, 2)
    assert context.class_range(ClassRange(1, 2)) == ClassRange(1, 2)
    with pytest.raises(UserError, match="class 3 is beyond the last class"):
        context.class_range(ClassRange(0, 3))


def test_validation_shows_the_validation_images(context: Context) -> None:
    ((images, labels),) = context.validation_set().batches()
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("given", [0, 3])
def test_workers_as_given(given: int, context: Context) -> None:
    assert replace(context, config=Config(machine=Machine(workers=given))).loader_config.workers == given


def test_workers_are_the_cpus_this_process_may_use(context: Context) -> None:
    allowed = os.sched_getaffinity(0)
    assert context.loader_config.workers == min(8, len(allowed))
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert context.loader_config.workers == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_cpu_where_it_is_asked_for() -> None:
    assert choose_device(Machine(device="cpu")) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert choose_device(Machine()) == torch.device("cpu")
    with pytest.raises(UserError, match="no CUDA device") as caught:
        choose_device(Machine(device="cuda"))
    assert caught.value.where == "machine.device: cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_a_gpu_auto_takes_it() -> None:
    assert choose_device(Machine()) == choose_device(Machine(device="cuda")) == torch.device("cuda", 0)
