"""How alike the images of a class are to a network: cosine similarity of their features to the class centroid."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.errors import UserError


def mean_cosine_to_centroid(features: Tensor, labels: Tensor | Sequence[int]) -> float:
    """Mean over classes of the mean cosine similarity between a class's features and their mean. Lower is more diverse.

    The centroid is the plain mean of the features, none of them normalised first. A class with one image counts 1.

    Args:
        features: [n, d].
        labels: [n], class indices in any order.

    Raises:
        ValueError: no features, or another number of labels.
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
    """What the network's last linear layer receives, flattened: float32 [n, d] in the order of the images, on the CPU.

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
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1).float().cpu())

    hook = linear[-1].register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            for batch in batches:
                network(batch.to(device))
    finally:
        hook.remove()
    if not seen:
        raise UserError("the network does not use its last linear layer", where=type(network).__name__)
    return torch.cat(seen)
