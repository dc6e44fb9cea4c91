"""The frozen teacher of a run."""

import torch
from torch import nn

from delt_hpc.data.dataset import Dataset
from delt_hpc.errors import UserError
from delt_hpc.models import weights
from delt_hpc.models.registry import build
from delt_hpc.run import checksums, late
from delt_hpc.run.folder import RunFolder, read_json

WEIGHTS, CARD, HISTORY = "weights.safetensors", "teacher.json", "history.csv"


def load(run: RunFolder, dataset: Dataset, device: torch.device) -> nn.Module:
    """The network that squeeze wrote to teacher/, in evaluation mode, its weights without gradients.

    Raises:
        UserError: squeeze is not finished, or its files were changed.
    """
    if not late.all_done([run.teacher]):
        raise UserError("contains no finished teacher", where=str(run.teacher), remedy="run the stage `squeeze` first")
    checksums.require(run.teacher, "squeeze", (CARD, WEIGHTS))
    card = read_json(run.teacher / CARD)
    network = build(card["model"], len(dataset.classes), dataset.spec.size)
    path = run.teacher / WEIGHTS
    weights.fit(network, weights.read(path), str(path))
    return network.to(device).eval().requires_grad_(False)
