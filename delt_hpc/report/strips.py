"""The sample grid: one picture a class, initial images above the distilled ones."""

import numpy as np
from PIL import Image

from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.transforms import decode, evaluation
from delt_hpc.report.content import SampleClass
from delt_hpc.run.folder import RunFolder

CELL, GAP = 96, 8


def strip(run: RunFolder, sample: SampleClass, spec: DatasetSpec) -> Image.Image:
    """The class's images side by side on transparent ground, RGBA; the upper row only where there are initial images.

    Initial images are shown as the network sees them: resized and cropped. An image below CELL pixels is enlarged by a
    whole factor, pixel by pixel; a greater one is reduced to CELL.

    Raises:
        BadImageError: an image cannot be read.
    """
    cell = cell_size(spec.size)
    has_initial = any(image.initial for image in sample.images)
    step = cell + GAP
    canvas = Image.new("RGBA", (len(sample.images) * step - GAP, (2 if has_initial else 1) * step - GAP))
    see = evaluation(spec)
    for column, image in enumerate(sample.images):
        if image.initial:
            seen = Image.fromarray(np.asarray(see(decode(run.selected / image.initial))))
            canvas.paste(_fit(seen, cell), (column * step, 0))
        distilled = decode(run.distilled / image.distilled)
        canvas.paste(_fit(distilled, cell), (column * step, step if has_initial else 0))
    return canvas


def cell_size(size: int) -> int:
    """Pixels of the grid that an image of `size` pixels is shown at."""
    return max(1, CELL // size) * size if size <= CELL else CELL


def _fit(image: Image.Image, cell: int) -> Image.Image:
    way = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
    return image.resize((cell, cell), way)
