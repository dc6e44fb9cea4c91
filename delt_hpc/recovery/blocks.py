"""Blocks of recovery: image sizes, and merges with the images of the start (FADRM, arXiv 2506.24125)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from delt_hpc.config.schema import Config, Recover
from delt_hpc.errors import UserError
from delt_hpc.models import registry
from delt_hpc.recovery.state import State


def check_blocks(config: Config, classes: int, size: int) -> None:
    """Check the image sizes of blocks, by shapes alone.

    Args:
        size: of the distilled images, pixels.

    Raises:
        UserError: the last block has another size, a block has larger images, moments are to be kept at another size,
            or the teacher does not accept the images of a block.
    """
    recover, sizes = config.recover, config.recover.sizes_at(size)
    where = f"recover.block_sizes: {list(sizes)}"
    if sizes[-1] != size or max(sizes) > size:
        raise UserError(
            "the images of the last block are the distilled ones, and no others are larger",
            where=where,
            expected=f"{size} pixels in the last block, at most {size} in the others",
        )
    if len(set(sizes)) > 1 and recover.adam_moments == "run":
        raise UserError(
            "moments have the size of the images, which changes",
            where="recover.adam_moments: run",
            remedy=f"use per_block, or set recover.block_sizes: {[size] * len(sizes)}",
        )
    for block_size in sorted(set(sizes) - {size}):
        registry.check_other_size(config.teacher.model, classes, size, block_size, where=where)


def start(images: Tensor, recover: Recover) -> State:
    """The state before the first iteration.

    Args:
        images: float [N, 3, S, S], normalised, at the size of the distilled images.
    """
    initial = images.clone() if recover.merge < 1 and recover.iterations else None
    return State.start(resize(images, recover.sizes_at(images.shape[-1])[0]), initial)


def begin_block(state: State, recover: Recover, size: int) -> None:
    """Take a state to the block that begins at its iteration, in place.

    The images x are resized to the size of the block, then x <- a x + (1 - a) resize(P) for the images P that they
    started from. Adam starts anew unless `recover.adam_moments` says otherwise.

    Args:
        size: of the distilled images, pixels.
    """
    block = state.t * recover.blocks // recover.iterations
    images = resize(state.images, recover.sizes_at(size)[block])
    if state.initial is not None:
        images = recover.merge * images + (1 - recover.merge) * resize(state.initial, images.shape[-1])
    state.images = images
    if recover.adam_moments == "per_block":
        state.exp_avg, state.exp_avg_sq = torch.zeros_like(images), torch.zeros_like(images)


def resize(images: Tensor, size: int) -> Tensor:
    """[N, 3, S, S] to [N, 3, size, size], bilinear, without antialias; the images themselves if they have that size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
