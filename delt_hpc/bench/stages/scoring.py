"""Scoring as rank does it, and its plain form: float32, NCHW, uncompiled."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.stages.workload import ALLOWED, Block, Case, Settings, checked, random_images, teacher
from delt_hpc.config.schema import Rank
from delt_hpc.models.folding import fold_batch_norms
from delt_hpc.ranking.score import scores
from delt_hpc.training.precision import scoring_dtype


class ScoringStep:
    """Scores of one random batch that is already on the device: loading is not timed."""

    def __init__(self, case: Case, settings: Settings) -> None:
        config = Rank()
        self._plain, self._precision = settings == "plain", config.precision
        self.batch_size = case.batch_size or config.batch_size
        self.dtype = torch.float32 if self._plain else scoring_dtype(config.precision, case.device)
        self._network = teacher(case.network, case.spec).to(case.device)
        self._folded = fold_batch_norms(self._network).to(memory_format=torch.channels_last)
        self._images = random_images(self.batch_size, case.size, "scoring").to(case.device)
        self._labels = np.arange(self.batch_size) % case.classes

    def error(self) -> float:
        exact = plain_scores(copy.deepcopy(self._network).double(), self._images.double(), self._labels)
        return checked(torch.from_numpy(self._scores()), torch.from_numpy(exact), ALLOWED[self.dtype])

    def block(self, steps: int) -> Block:
        self._scores()
        began = timer()
        for _ in range(steps):
            self._scores()
        return Block(steps * self.batch_size, steps, timer() - began)

    def _scores(self) -> np.ndarray:
        if self._plain:
            return plain_scores(self._network, self._images, self._labels)
        return scores(self._folded, self._images, self._labels, self._precision)


def plain_scores(network: nn.Module, images: Tensor, labels: np.ndarray) -> np.ndarray:
    """As `ranking.score.scores`, in the memory format and the type of the images and the network."""
    with torch.inference_mode():
        probabilities = network(images).double().softmax(1)
    found: np.ndarray = probabilities[np.arange(len(labels)), labels].cpu().numpy()
    return found
