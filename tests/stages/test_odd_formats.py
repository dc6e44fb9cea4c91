"""A folder of photographs in every odd format ranks as PIL reads it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvidia.dali")

from helpers.photographs import encoded, photograph
from helpers.toy import Start
from PIL import Image

from delt_hpc.ranking.table import read_ranking


def odd(which: int) -> dict[str, bytes]:
    """One photograph in formats that decoders treat differently."""
    image = photograph(60, 80, which)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which ImageFolder does not undo
    alpha = image.convert("RGBA")
    alpha.putalpha(100)
    return {
        "plain.jpg": encoded(image, "JPEG"),
        "gray.jpg": encoded(image.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "progressive.JPEG": encoded(image, "JPEG", progressive=True),
        "palette.png": encoded(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=32), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "deep.png": encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
        "lossy.webp": encoded(image, "WEBP"),
        "point.png": encoded(image.resize((1, 1)), "PNG"),
        "huge.jpg": encoded(photograph(1500, 2000, which), "JPEG"),
        "strip.jpg": encoded(image.resize((300, 9)), "JPEG"),
    }


def test_every_odd_format_is_scored_as_pil_reads_it(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "photographs"
    for split in ("train", "val"):
        for which, name in enumerate(("china", "flower")):
            (root / split / name).mkdir(parents=True)
            for file, content in odd(which).items():
                (root / split / name / file).write_bytes(content)
    data = {"data": {"root": str(root), "name": "photographs", "size": 32}, "select": {"ipc": 2}}
    tables = {}
    for loader in ("torchvision", "dali-cpu"):
        changes = data | {"machine": {"loader": loader}}
        run = start(tmp_path / loader, ("squeeze", "rank", "select"), changes).run
        tables[loader] = read_ranking(run.ranking).set_index("img_path").sort_index()
    one, other = tables.values()
    assert one.index.tolist() == other.index.tolist() and len(one) == 24
    assert (one["score"] - other["score"]).abs().max() < 0.01
