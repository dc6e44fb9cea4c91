"""The diversity of a run's images in its teacher's features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.loader import images
from delt_hpc.models import teacher
from delt_hpc.report.content import Diversity
from delt_hpc.report.diversity import mean_cosine_to_centroid, penultimate
from delt_hpc.report.pairs import Pair
from delt_hpc.run.folder import RunFolder


def measure(
    run: RunFolder, dataset: Dataset, pairs: Sequence[Pair], batch_size: int, device: torch.device
) -> Diversity:
    """Over all distilled images, and over their initial images where every one has one.

    Args:
        pairs: at least one; classes with one image count 1.

    Raises:
        UserError: no teacher, one without a linear layer, or an unreadable image.
    """
    network = teacher.load(run, dataset, device)
    labels = [pair.class_index for pair in pairs]
    # A distilled image is of the network's size already: no margin is cut off it.
    whole = replace(dataset.spec, resize=dataset.spec.size)
    distilled = _features(network, run.distilled, [pair.distilled for pair in pairs], whole, batch_size, device)
    initial = [pair.initial for pair in pairs if pair.initial]
    similarity = None
    if len(initial) == len(pairs):
        features = _features(network, run.selected, initial, dataset.spec, batch_size, device)
        similarity = mean_cosine_to_centroid(features, labels)
    return Diversity(similarity, mean_cosine_to_centroid(distilled, labels), len(pairs), len(set(labels)))


def _features(
    network: nn.Module, root: Path, paths: Sequence[str], spec: DatasetSpec, batch_size: int, device: torch.device
) -> Tensor:
    """float32 [len(paths), d]"""
    return penultimate(network, images(root, paths, spec, batch_size), device)
