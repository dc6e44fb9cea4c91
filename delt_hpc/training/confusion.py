"""How often a network takes a validation image of one class for one of another."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from delt_hpc.config.schema import Precision
from delt_hpc.data.loader import ValidationSet
from delt_hpc.run import stop
from delt_hpc.run.folder import write_csv
from delt_hpc.training.precision import autocast, training_dtype

TABLE = "confusion.csv"
COLUMNS = ("class_index", "predicted", "images")


def measure(network: nn.Module, val: ValidationSet, precision: Precision, classes: int) -> np.ndarray:
    """The number of images of each class (row) that the network takes for each class (column), int64 [C, C].

    The passes are those of `training.loop.accuracies`, so the diagonal agrees with the accuracy.

    Raises:
        Interrupted: a stop was requested.
    """
    network.eval()
    counts = np.zeros(classes * classes, dtype=np.int64)
    with torch.inference_mode():
        for images, labels in val.batches():
            stop.check()
            with autocast(images.device, training_dtype(precision, images.device)):
                predicted = network(images).argmax(1)
            counts += np.bincount((labels * classes + predicted).cpu().numpy(), minlength=classes * classes)
    return counts.reshape(classes, classes)


def write(path: Path, counts: np.ndarray) -> None:
    """A CSV with a row for each pair of classes that occurs."""
    rows, columns = np.nonzero(counts)
    table = pd.DataFrame(dict(zip(COLUMNS, (rows, columns, counts[rows, columns]), strict=True)))
    write_csv(path, lambda file: table.to_csv(file, index=False))
