"""The images of this folder as a data set of PyTorch. protocol.json says how they become network input."""

import csv
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

View = dict[str, Tensor]


def to_input(data: dict[str, Any]) -> v2.Compose:
    """Image -> normalised float32 [3, height, width]."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data["mean"], data["std"])])


def shuffle_patches(image: Image.Image, strips: int) -> Image.Image:
    """Cut the image into columns and permute them, then the same with rows (RDED, arXiv 2312.03526)."""
    pixels = np.asarray(image)
    for axis in (1, 0):
        parts = np.split(pixels, [i * (pixels.shape[axis] // strips) for i in range(1, strips)], axis)
        random.shuffle(parts)
        pixels = np.concatenate(parts, axis)
    return Image.fromarray(pixels)


def validation_set(root: Path, folder: Path, data: dict[str, Any]) -> ImageFolder:
    """Real images, resized and cropped, with the labels of classes.csv."""
    with (root / "classes.csv").open(encoding="utf-8", newline="") as file:
        labels = {row["folder"]: int(row["index"]) for row in csv.DictReader(file)}
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    if found != set(labels):
        raise SystemExit(f"{folder} must have exactly these class folders: {', '.join(labels)}")
    shape = [v2.Resize(data["resize"], antialias=True), v2.CenterCrop(data["size"])]
    images = ImageFolder(folder, v2.Compose([*shape, to_input(data)]))
    images.target_transform = lambda place: labels[images.classes[place]]
    return images


def encoded_images(root: Path) -> list[tuple[bytes, int]]:
    """Encoded image and label of every row of manifest.csv; the labels are the indices in classes.csv."""
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["file"], int(row["class_index"])) for row in csv.DictReader(file)]
    if (root / "train").is_dir():
        return [((root / "train" / path).read_bytes(), label) for path, label in rows]
    if (root / "data").is_dir():
        from pyarrow.parquet import read_table  # noqa: PLC0415  # only for Parquet

        table = read_table(root / "data").to_pylist()
        return [(row["image"]["bytes"], row["label"]) for row in table]
    members: dict[str, bytes] = {}
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return [
        (members[f"{number:08d}{Path(path).suffix}"], int(members[f"{number:08d}.cls"]))
        for number, (path, _) in enumerate(rows)
    ]


class Distilled(Dataset[tuple[Tensor, Any]]):
    """Augmented, normalised images [3, S, S] with their labels; with stored views, mixed images with their logits."""

    def __init__(self, root: Path, protocol: dict[str, Any], *, stored: bool = False) -> None:
        data, training = protocol["data"], protocol["training"]
        self.images, self.size = encoded_images(root), data["size"]
        self.files = sorted((root / protocol["labels"]["folder"]).iterdir()) if stored else []
        self.view: View = {}
        self.to_input = to_input(data)
        crop = v2.RandomResizedCrop(self.size, scale=training["crop_scale"])
        self.augment = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if training["mirror"] else 0.0)])
        self.strips = training["shuffle_patches"]
        self.policy: Any = None
        if training["randaugment"]:
            from randaugment import RandAugment  # noqa: PLC0415  # beside this file

            self.policy = RandAugment()

    def start(self, epoch: int) -> None:
        """Load the stored view of this epoch, before its batches; all of them in turn, then from the first again."""
        if self.files:
            self.view = load_file(self.files[epoch % len(self.files)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        if self.files:
            return self.mixed(number), self.view["logits"][number].float()
        image = self.augment(shuffle_patches(self.decode(number), self.strips))
        if self.policy:
            image = self.policy(image, iter(random.random, None))
        return self.to_input(image), self.images[number][1]

    def decode(self, number: int) -> Image.Image:
        return Image.open(io.BytesIO(self.images[number][0])).convert("RGB")

    def mixed(self, number: int) -> Tensor:
        """The image whose logits are stored: a crop, blended with its partner's by `share`, or with a `box` of it."""
        own, other = self.crop(number), self.crop(int(self.view["partner"][number]))
        share = float(self.view["share"][number])
        image = share * own + (1 - share) * other if share < 1 else own
        left, top, right, bottom = self.view["box"][number].tolist()
        image[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return image

    def crop(self, number: int) -> Tensor:
        image = self.decode(number).crop(tuple(self.view["crop"][number].tolist()))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.view["mirrored"][number]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels: Tensor = self.to_input(image)
        return pixels
