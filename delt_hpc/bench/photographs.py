"""JPEG files with the content of real photographs: random windows of the two that scikit-learn ships."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from delt_hpc.data.index import Index, scan
from delt_hpc.data.random_crop import draw_window
from delt_hpc.keyed_random import uniforms

CLASSES = 8
WIDTH, HEIGHT, QUALITY = 500, 375, 95  # ImageNet's most frequent size, and about its bytes per pixel


def write_photographs(root: Path, per_class: int) -> Index:
    """Eight classes of images; each class has the windows of one quarter of a photograph."""
    names = []
    for number, pixels in enumerate(load_sample_images().images):
        height, width = (length // 2 for length in pixels.shape[:2])
        for quarter, (top, left) in enumerate([(0, 0), (0, width), (height, 0), (height, width)]):
            name = f"{number}-{quarter}"
            names.append(name)
            (root / name).mkdir(parents=True)
            part = Image.fromarray(pixels[top : top + height, left : left + width])
            for i in range(per_class):
                window = draw_window(uniforms("bench", name, i), height, width, (0.2, 1.0))
                box = (window.left, window.top, window.left + window.width, window.top + window.height)
                image = part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
                image.save(root / name / f"{i:05d}.jpg", quality=QUALITY)
    return scan(root, names)
