"""The score of a training image: the teacher's probability of its true class."""

import numpy as np
import torch
from torch import Tensor, nn

from delt_hpc.config.schema import ScorePrecision
from delt_hpc.training.precision import autocast, scoring_dtype

# Images that go through the network together on a CPU, so that activations stay in its caches.
_CPU_IMAGES = 32


def scores(network: nn.Module, images: Tensor, labels: np.ndarray, precision: ScorePrecision) -> np.ndarray:
    """softmax(logits)[true class] of each image, float64 [B].

    The softmax is taken in float64, to tell apart images that the teacher is almost certain of.

    Args:
        network: frozen, in evaluation mode; fastest in channels_last memory format, with folded BatchNorm layers.
        images: normalised, [B, 3, S, S].
        labels: int64 [B].
    """
    parts = images.contiguous(memory_format=torch.channels_last).split(
        _CPU_IMAGES if images.device.type == "cpu" else len(images)
    )
    with torch.inference_mode(), autocast(images.device, scoring_dtype(precision, images.device)):
        logits = torch.cat([network(part) for part in parts])
    classes = torch.from_numpy(labels).to(images.device)[:, None]
    probabilities: np.ndarray = logits.double().softmax(1).gather(1, classes).squeeze(1).cpu().numpy()
    return probabilities
