"""Random square crops of images: candidates for mosaics (RDED, arXiv 2312.03526)."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from delt_hpc.data.random_crop import SQUARE, Window, draw_window
from delt_hpc.data.transforms import Pixels
from delt_hpc.keyed_random import Key, uniforms


class Crops(NamedTuple):
    """The crops of every image, resized (bilinear, antialias) to the same side.

    Attributes:
        number: crops of each image.
        side: height and width after resizing, pixels.
        scale: smallest and largest area, as shares of the image's area.
        key: of the random draws, to which the path of the image and the number of the crop are appended.
    """

    number: int
    side: int
    scale: tuple[float, float]
    key: tuple[Key, ...]

    def window(self, path: str, number: int, height: int, width: int) -> Window:
        """Where crop `number` lies in an image of height x width pixels.

        Args:
            path: of the image in its index.
        """
        return draw_window(uniforms(*self.key, path, number), height, width, self.scale, SQUARE)

    def cut(self, image: Image.Image, path: str, number: int) -> Pixels:
        """The pixels of crop `number`, uint8 [side, side, 3]."""
        window = self.window(path, number, image.height, image.width)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        return np.asarray(image.crop(box).resize((self.side, self.side), Image.Resampling.BILINEAR))
