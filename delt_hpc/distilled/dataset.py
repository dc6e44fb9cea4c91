"""A distilled data set as a data set of torchvision, for training in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.datasets import VisionDataset

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.run.folder import RunFolder, is_done, read_json


class DistilledDataset(VisionDataset):
    """The images of a folder made by the stage `aggregate`: items are (image, label).

    The labels are those of the class map, which for unsorted class folders differ from ImageFolder's.

    Attributes:
        spec: image size, mean and standard deviation.
        classes: readable name of each class, by label.
        samples: (path, label) of each image.
        targets: the label of each image.
    """

    def __init__(self, folder: Path, transform: Callable[[Any], Any] | None = None) -> None:
        """Images are PIL images unless `transform` changes them. Each is compared with its checksum when it is read.

        Raises:
            UserError: the manifest, the class map or dataset.json is missing, changed or damaged.
        """
        super().__init__(folder, transform=transform)
        self._folder = folder
        self._index = manifest.index(folder)
        manifest.require_tables(folder)
        self._digests = tuple(manifest.read_manifest(folder)["sha256"])
        self._class_map = ClassMap.read(folder / manifest.CLASSES)
        try:
            self.spec = DatasetSpec.from_json(read_json(folder / manifest.FACTS)["spec"])
        except (KeyError, TypeError):
            raise UserError("is damaged", where=str(folder / manifest.FACTS), expected="spec") from None
        self.classes = self._class_map.names
        self.targets: list[int] = self._index.labels.tolist()
        paths = (str(folder / path) for path in self._index.paths)
        self.samples = list(zip(paths, self.targets, strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        path, label = self.samples[position]
        image = manifest.read_image(Path(path), self._digests[position])
        return self.transform(image) if self.transform else image, label

    def teacher(self, device: str = "cpu") -> nn.Module:
        """The frozen teacher in evaluation mode: normalised images [B, 3, size, size] -> logits [B, classes].

        Raises:
            UserError: the folder is not in its run folder, next to teacher/.
        """
        run = RunFolder(self._folder.absolute().parent)
        if not is_done(run.teacher):
            raise UserError(
                "there is no teacher beside the distilled set",
                where=str(self._folder),
                expected="the folder distilled/ in its run folder, next to teacher/",
            )
        dataset = Dataset(self.spec, self._class_map, self._index, self._index)
        return teacher.load(run, dataset, torch.device(device))
