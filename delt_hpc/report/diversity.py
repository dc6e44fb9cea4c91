"""Diversity: the cosine similarity of images to the centroid of their class, in the features of the teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.loader import images
from delt_hpc.errors import UserError
from delt_hpc.models import teacher
from delt_hpc.report.content import Diversity
from delt_hpc.report.samples import Pair
from delt_hpc.run import checksums
from delt_hpc.run.folder import RunFolder


def measure(
    run: RunFolder,
    dataset: Dataset,
    pairs: Sequence[Pair],
    batch_size: int,
    device: torch.device,
    initial_spec: DatasetSpec | None = None,
) -> Diversity:
    """Diversity of all distilled images, and of their initial images if all of them have one.

    Args:
        pairs: at least one.
        initial_spec: how initial images become network input; the data set's unless given.

    Raises:
        UserError: there is no teacher, it has no linear layer, or an image is unreadable.
    """
    network = teacher.load(run, dataset, device)
    labels = [pair.class_index for pair in pairs]
    # Distilled images already have the network's input size, so they are not cropped.
    uncropped = replace(dataset.spec, resize=dataset.spec.size)
    distilled = _features(network, run.distilled, [pair.distilled for pair in pairs], uncropped, batch_size, device)
    initial = [checksums.located(run.selected, pair.initial) for pair in pairs if pair.initial]
    similarity = None
    if len(initial) == len(pairs):
        features = _features(network, run.selected, initial, initial_spec or dataset.spec, batch_size, device)
        similarity = mean_cosine_to_centroid(features, labels)
    return Diversity(similarity, mean_cosine_to_centroid(distilled, labels), len(pairs), len(set(labels)))


def _features(
    network: nn.Module, root: Path, paths: Sequence[str], spec: DatasetSpec, batch_size: int, device: torch.device
) -> Tensor:
    """float32 [len(paths), d]"""
    return penultimate(network, images(root, paths, spec, batch_size), device)


def mean_cosine_to_centroid(features: Tensor, labels: Tensor | Sequence[int]) -> float:
    """Mean over classes of the mean cosine similarity of a class's features to their centroid; lower is more diverse.

    The centroid is the mean of the features without normalisation. A class with a single image counts as 1.

    Args:
        features: [n, d].
        labels: [n], class indices in any order.

    Raises:
        ValueError: there are no features, or the numbers of features and labels differ.
    """
    classes = torch.as_tensor(labels, device=features.device)
    if not len(features) or len(features) != len(classes):
        raise ValueError(f"{len(features)} features with {len(classes)} labels")
    similarities = []
    for label in classes.unique():
        of_class = features[classes == label].double()
        centroid = of_class.mean(dim=0, keepdim=True)
        similarities.append(F.cosine_similarity(of_class, centroid, dim=1).mean())
    return float(torch.stack(similarities).mean())


def penultimate(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """The input of the network's last linear layer, flattened: float32 [n, d] in the order of the images, on the CPU.

    Args:
        network: in evaluation mode, on `device`.
        batches: float32 [B, 3, S, S] each, normalised.

    Raises:
        UserError: the network has no linear layer, or does not use its last one.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "the network has no linear layer, so it has no penultimate features", where=type(network).__name__
        )
    inputs_of_last: list[Tensor] = []

    def store(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs_of_last.append(inputs[0].flatten(1).float().cpu())

    hook = linear[-1].register_forward_pre_hook(store)
    try:
        with torch.inference_mode():
            for batch in batches:
                network(batch.to(device))
    finally:
        hook.remove()
    if not inputs_of_last:
        raise UserError("the network does not use its last linear layer", where=type(network).__name__)
    return torch.cat(inputs_of_last)
