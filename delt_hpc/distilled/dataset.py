"""A distilled data set as a data set of torchvision, for training in Python."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import VisionDataset

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap, Index
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.models import teacher, weights
from delt_hpc.models.registry import build
from delt_hpc.run.folder import RunFolder, is_done, read_json

# Names in an export, which has this layout where its images are an ImageFolder.
PROTOCOL, TRAIN = "protocol.json", "train"


class DistilledDataset(VisionDataset):
    """The images of a folder made by the stage `aggregate`, or of an export: items are (image, label).

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
            UserError: the manifest, the class map, dataset.json or protocol.json is missing, changed or damaged; or the
                export has another format.
        """
        super().__init__(folder, transform=transform)
        self._folder = folder
        self._protocol = read_json(folder / PROTOCOL) if (folder / PROTOCOL).is_file() else None
        listed = manifest.index(folder)
        self._index = listed if self._protocol is None else Index(folder / TRAIN, listed.paths, listed.labels)
        if self._protocol is None:
            manifest.require_tables(folder)
        self._digests = tuple(manifest.read_manifest(folder)["sha256"])
        self._class_map = ClassMap.read(folder / manifest.CLASSES)
        self.spec = self._read_spec()
        self.classes = self._class_map.names
        self.targets: list[int] = self._index.labels.tolist()
        paths = (str(self._index.root / path) for path in self._index.paths)
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
            UserError: the folder is not in its run folder, next to teacher/; or the export has no teacher, or its
                weights were changed.
        """
        if self._protocol is not None:
            return self._exported_teacher(self._protocol).to(device)
        run = RunFolder(self._folder.absolute().parent)
        if not is_done(run.teacher):
            raise UserError(
                "there is no teacher beside the distilled set",
                where=str(self._folder),
                expected="the folder distilled/ in its run folder, next to teacher/",
            )
        dataset = Dataset(self.spec, self._class_map, self._index, self._index)
        return teacher.load(run, dataset, torch.device(device))

    @property
    def soft_labels(self) -> Sequence[dict[str, Tensor]]:
        """The stored views of an export: how each is made of the images, and the teacher's logits for it.

        A view has the tensors `logits` [N, classes], `crop`, `mirrored`, `partner`, `box` and `share`, one row an image
        (see `delt_hpc.export.labels`). It is read when it is asked for.

        Raises:
            UserError: no views are stored.
        """
        stored = self._protocol["labels"] if self._protocol is not None else None
        if not stored:
            raise UserError(
                "there are no stored soft labels",
                where=str(self._folder),
                remedy="make an export with `delt-hpc export RUN --to imagefolder --labels K`, or use `teacher()`",
            )
        return _Views(self._folder / stored["folder"], stored["views"])

    def _read_spec(self) -> DatasetSpec:
        if self._protocol is None:
            path, read = self._folder / manifest.FACTS, lambda content: DatasetSpec.from_json(content["spec"])
        else:
            path, read = self._folder / PROTOCOL, _exported_spec
        try:
            return read(read_json(path))
        except (KeyError, TypeError):
            raise UserError("is damaged", where=str(path), expected="size, mean and std") from None

    def _exported_teacher(self, protocol: dict[str, Any]) -> nn.Module:
        facts = protocol["teacher"]
        if facts is None:
            raise UserError(
                "the export has no teacher", where=str(self._folder), remedy="export the run without --no-teacher"
            )
        path = self._folder / facts["file"]
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"]:
            raise UserError(f"was changed: its SHA-256 is not that in {PROTOCOL}", where=str(path))
        network = build(facts["model"], self.spec.classes, self.spec.size)
        weights.fit(network, weights.read(path), str(path))
        return network.eval().requires_grad_(False)


class _Views(Sequence[dict[str, Tensor]]):
    """The files of stored views, read when they are asked for."""

    def __init__(self, folder: Path, count: int) -> None:
        self._files = [folder / f"{view:05d}.safetensors" for view in range(count)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, view: Any) -> Any:
        path = self._files[view]
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot be read: {error}", where=str(path)) from None


def _exported_spec(protocol: dict[str, Any]) -> DatasetSpec:
    if protocol["format"] != "imagefolder":
        raise UserError(
            f"is an export with --to {protocol['format']}",
            where=PROTOCOL,
            expected="distilled/ of a run, or an export with --to imagefolder",
        )
    names = ("name", "classes", "size", "resize", "mean", "std", "mirror", "teacher")
    return DatasetSpec.from_json({name: protocol["data"][name] for name in names})
