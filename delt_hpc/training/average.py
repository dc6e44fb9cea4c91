"""The exponential moving average of a network that is being trained."""

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Average of a network's parameters and buffers, with a decay that grows to its final value as (1 + n) / (10 + n).

    The growing decay lets short trainings forget their first steps. Unlike `torch.optim.swa_utils.AveragedModel` it
    counts its updates n on the host, so that an update never waits for the GPU.

    Attributes:
        model: the averaged network.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the network's current state into the average; the first update copies it."""
        n = self._updates
        decay = min(self._decay, (1 + n) / (10 + n)) if n else 0.0
        tensors = zip(_tensors(self.model), _tensors(model), strict=True)
        pairs = [pair for pair in tensors if pair[0].is_floating_point()]  # all but BatchNorm's step counters
        get_ema_multi_avg_fn(decay)([old for old, _ in pairs], [new for _, new in pairs], n)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._updates = state["updates"]


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
