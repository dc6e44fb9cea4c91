"""The loading benchmark's images and its table; its times are the machine's own affair."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali")

from delt_hpc.bench import loading
from delt_hpc.errors import UserError


def test_images_are_jpegs_of_the_usual_size_and_all_different(tmp_path: Path) -> None:
    index = loading.write_photographs(tmp_path, 6)
    contents = [(tmp_path / path).read_bytes() for path in index.paths]
    for path in index.paths:
        with Image.open(tmp_path / path) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))
    assert len(set(contents)) == 6


def test_every_backend_is_measured_and_compared_with_pil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ROUNDS", 1)
    table = loading.bench([1], 2 * loading.BATCH, tmp_path)
    assert table.columns[:4].tolist() == ["ratio", "backend", "threads", "images_per_s"]
    assert table["backend"].tolist() == list(loading.backends())
    assert (table["images_per_s"] > 0).all()
    pil = table.set_index("backend")["images_per_s"]["pil"]
    assert table["ratio"].tolist() == pytest.approx((table["images_per_s"] / pil).tolist(), abs=0.01)
    read = pd.read_csv(tmp_path / "loading.csv")
    assert read.columns.tolist() == table.columns.tolist()
    assert read["ratio"].tolist() == table["ratio"].tolist()
    with Image.open(tmp_path / "loading.png") as plot:
        assert plot.format == "PNG"


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 128"):
        loading.bench([1], 127, tmp_path)
    assert not list(tmp_path.iterdir())
