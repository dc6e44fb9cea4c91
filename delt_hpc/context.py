"""What every stage is given."""

import os
from dataclasses import dataclass

import torch

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config, Machine
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.loader import LoaderConfig, ValidationSet
from delt_hpc.errors import UserError
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter


@dataclass(frozen=True, eq=False)
class Context:
    config: Config
    run: RunFolder
    dataset: Dataset
    device: torch.device
    reporter: Reporter

    @property
    def loader_config(self) -> LoaderConfig:
        """How images are read."""
        machine = self.config.machine
        workers = min(8, len(os.sched_getaffinity(0))) if machine.workers is None else machine.workers
        return LoaderConfig(machine.loader, self.device, workers, machine.cache_mib, self.config.data.on_bad)

    def validation_set(self) -> ValidationSet:
        """The real validation images, by which teacher and students are judged."""
        return ValidationSet(self.dataset.val, self.dataset.spec, 256, self.loader_config)

    def class_range(self, classes: ClassRange | None) -> ClassRange:
        """The classes to work on; all of the data set unless a range is given.

        Raises:
            UserError: the range lies beyond the last class.
        """
        count = len(self.dataset.classes)
        return (classes or ClassRange(0, count - 1)).within(count)


def choose_device(machine: Machine) -> torch.device:
    """The device of the configuration; auto is a GPU where torch sees one."""
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "torch sees no CUDA device",
            where="machine.device: cuda",
            remedy="check the driver, or machine.device: auto",
        )
    if machine.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
