"""The score of a training image: the teacher's probability of its true class."""

import numpy as np
import torch
from torch import Tensor, nn

from delt_hpc.config.schema import ScorePrecision
from delt_hpc.training.loop import autocast


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """The memory format in which half-precision convolutions are fast on a GPU."""
    return network.to(memory_format=torch.channels_last) if device.type == "cuda" else network


def scores(network: nn.Module, images: Tensor, labels: np.ndarray, precision: ScorePrecision) -> np.ndarray:
    """softmax(logits)[true class] of each image, float64 [B].

    The softmax is taken in float64, so that images are told apart of which the teacher is all but certain.

    Args:
        network: frozen, evaluation mode.
        images: [B, 3, S, S] normalised.
        labels: int64 [B].
    """
    with torch.inference_mode(), autocast(images.device, precision, auto=torch.float16):
        logits = network(images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images)
    chances = logits.double().softmax(1).gather(1, torch.from_numpy(labels).to(images.device)[:, None])
    array: np.ndarray = chances.squeeze(1).cpu().numpy()
    return array
