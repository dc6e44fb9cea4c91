"""Mosaics of the crops that the teacher scores best (RDED, arXiv 2312.03526): candidates, scores, tiles."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.config.schema import Config, ScorePrecision
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.crops import Crops
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import Pixels
from delt_hpc.ranking.score import scores
from delt_hpc.ranking.selection import choose

TABLE = "mosaics.csv"
COLUMNS = (
    *("class_index", "number", "row", "column", "img_path", "score", "crop"),
    *("top", "left", "height", "width"),
)


def crops_of(config: Config, spec: DatasetSpec) -> Crops:
    """The crops that a run ranks: as large as the tiles of its mosaics."""
    rank = config.rank
    smallest, largest = rank.crop_scale
    return Crops(rank.crops, spec.size // rank.tiles_at(spec.size), (smallest, largest), (config.seed, "rank", "crop"))


def pool(index: Index, class_index: int, count: int, seed: int) -> np.ndarray:
    """The images of a class that crops are taken of: at most `count` positions in the index, drawn at random, sorted.

    The draw orders the images by a hash of seed, class and path, so whether an image comes before another does not
    depend on the rest.
    """
    positions = index.positions(class_index, class_index)
    paths = [index.paths[p] for p in positions.tolist()]
    chosen = choose("random", paths, min(count, len(paths)), seed, "rank", "pool", class_index)
    return np.sort(positions[chosen])


def best_crops(
    network: nn.Module, crops: Tensor, labels: np.ndarray, size: int, precision: ScorePrecision
) -> tuple[np.ndarray, np.ndarray]:
    """The score of each image's best crop, float64 [B], and the number of that crop, int64 [B].

    A crop is padded with zeros, which is the mean colour, to the input size of the teacher. Its score is the teacher's
    probability of the true class. Ordered by it, crops are in the order of their cross-entropy, by which RDED ranks
    them, best first. Of equal crops the first is the best.

    Args:
        network: see `scores`.
        crops: normalised, [B, N, 3, s, s].
        labels: int64 [B].
        size: height and width of the network's input, pixels.
    """
    number = crops.shape[1]
    padded = pad(crops.flatten(0, 1), size)
    each = scores(network, padded, np.repeat(labels, number), precision).reshape(-1, number)
    best = each.argmax(1)
    return each[np.arange(len(each)), best], best


def pad(crops: Tensor, size: int) -> Tensor:
    """[B, 3, s, s] in the middle of zeros, [B, 3, size, size]; an odd margin is larger at the bottom and right."""
    margin = size - crops.shape[-1]
    return F.pad(crops, (margin // 2, margin - margin // 2) * 2)


def ranks(number: int, ipc: int, tiles: int) -> list[int]:
    """The places in the order of selection of the crops of mosaic `number`, row by row.

    The cell in row i and column j has the crop at place (i * tiles + j) * ipc + number, so that every mosaic has crops
    from all parts of the order.
    """
    return [cell * ipc + number for cell in range(tiles**2)]


def compose(crops: list[Pixels], tiles: int) -> Pixels:
    """The mosaic of tiles x tiles crops, given row by row: uint8 [s, s, 3] each to [tiles s, tiles s, 3]."""
    rows = [np.concatenate(crops[first : first + tiles], axis=1) for first in range(0, len(crops), tiles)]
    return np.concatenate(rows, axis=0)
