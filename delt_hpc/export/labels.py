"""Stored soft labels: for each view of an image, how to make it, and the teacher's logits for it."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from delt_hpc.config.schema import Evaluate
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.random_crop import draw_window
from delt_hpc.data.transforms import decode, normalise
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.export.run import FinishedRun
from delt_hpc.keyed_random import Key, uniforms
from delt_hpc.models import teacher
from delt_hpc.run import stop
from delt_hpc.run.progress import Reporter

FOLDER = "labels"
BATCH = 256


def files(views: int) -> list[str]:
    """The path of each view's file."""
    return [f"{FOLDER}/{view:05d}.safetensors" for view in range(views)]


def require_support(config: Evaluate) -> None:
    """Check that stored labels can replace the teacher in the training.

    Raises:
        UserError: they cannot, because the protocol uses the teacher in another way.
    """
    options = (
        ("soft_loss", config.soft_loss, "kl"),
        ("teacher_statistics", config.teacher_statistics, "running"),
        ("shuffle_patches", config.shuffle_patches, 1),
    )
    for name, value, expected in options:
        if value != expected:
            raise UserError(
                f"soft labels cannot be stored with evaluate.{name}: {value}",
                where="--labels",
                expected=f"evaluate.{name}: {expected}",
                remedy="omit --labels; the teacher labels the images during the training",
            )


def write(source: FinishedRun, views: int, folder: Path, device: torch.device, reporter: Reporter) -> None:
    """Write a file for each view, with these tensors, one row an image in the order of manifest.csv:

        crop      int32 [N, 4]      window in the stored image: left, top, right, bottom; then resized to the input size
        mirrored  bool [N]          whether the crop is mirrored afterwards
        partner   int32 [N]         the other image of CutMix or MixUp, in its crop of the same view
        box       int32 [N, 4]      part that CutMix replaces with the partner's: left, top, right, bottom; or empty
        share     float32 [N]       weight of the own image in MixUp; 1 without it
        logits    float16 [N, C]    of the teacher, for the mixed image

    Windows, partners and boxes are drawn as in training, with keys (seed, view, image); RandAugment is left out.
    """
    spec, config, seed = source.dataset.spec, source.config.evaluate, source.config.seed
    network = teacher.load(source.run, source.dataset, device)
    index = manifest.index(source.run.distilled)
    images = [decode(index.root / path) for path in index.paths]
    (folder / FOLDER).mkdir()
    with reporter.bar("export: soft labels", views) as bar:
        for view, name in enumerate(files(views)):
            drawn = _draw(images, spec, config, (seed, "export", "labels", view))
            crops = _crops(images, drawn, spec)
            parts = []
            for start in range(0, len(images), BATCH):
                stop.check()
                rows = torch.arange(start, min(start + BATCH, len(images)))
                parts.append(_logits(network, _mixed(crops, drawn, rows, spec).to(device)))
            (folder / name).write_bytes(save({**drawn, "logits": torch.cat(parts)}))
            bar.advance()


def _draw(images: list[Image.Image], spec: DatasetSpec, config: Evaluate, key: tuple[Key, ...]) -> dict[str, Tensor]:
    """The tensors of a view that say how it is made."""
    count = len(images)
    crop, box = (torch.zeros(count, 4, dtype=torch.int32) for _ in range(2))
    mirrored, partner = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int32)
    share = torch.ones(count)
    smallest, largest = config.crop_scale
    for row, image in enumerate(images):
        stream = uniforms(*key, row)
        window = draw_window(stream, image.height, image.width, (smallest, largest))
        corners = (window.left, window.top, window.left + window.width, window.top + window.height)
        crop[row] = torch.tensor(corners)
        mirrored[row] = spec.mirror and config.mirror and next(stream) < 0.5
        partner[row] = int(next(stream) * count)
        if config.mix == "cutmix":
            box[row] = torch.tensor(_box(stream, spec.size))
        elif config.mix == "mixup":
            share[row] = next(stream)
    return {"crop": crop, "mirrored": mirrored, "partner": partner, "box": box, "share": share}


def _box(stream: Iterator[float], size: int) -> tuple[int, int, int, int]:
    """The box of CutMix as torchvision draws it with Beta(1, 1): its area is uniform, its centre anywhere."""
    half = int(0.5 * math.sqrt(1 - next(stream)) * size)
    x, y = int(next(stream) * size), int(next(stream) * size)
    return max(x - half, 0), max(y - half, 0), min(x + half, size), min(y + half, size)


def _crops(images: list[Image.Image], drawn: dict[str, Tensor], spec: DatasetSpec) -> Tensor:
    """The crop of every image, uint8 [N, S, S, 3]."""
    pixels = []
    for image, corners, mirrored in zip(images, drawn["crop"].tolist(), drawn["mirrored"].tolist(), strict=True):
        crop = image.crop(corners).resize((spec.size, spec.size), Image.Resampling.BILINEAR)
        pixels.append(np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop))
    return torch.from_numpy(np.stack(pixels))


def _mixed(crops: Tensor, drawn: dict[str, Tensor], rows: Tensor, spec: DatasetSpec) -> Tensor:
    """The images of these rows [R, 3, S, S], blended with their partners or with a part of them pasted in."""
    own, other = (normalise(crops[chosen], spec) for chosen in (rows, drawn["partner"][rows].long()))
    share = drawn["share"][rows].view(-1, 1, 1, 1)
    images = torch.where(share < 1, share * own + (1 - share) * other, own)
    for place, (left, top, right, bottom) in enumerate(drawn["box"][rows].tolist()):
        images[place, :, top:bottom, left:right] = other[place, :, top:bottom, left:right]
    return images


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network(images.contiguous()).half().cpu()
    return logits
