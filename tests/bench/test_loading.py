"""The loading benchmark's images and table."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali")

from delt_hpc.bench import loading
from delt_hpc.bench.photographs import write_photographs
from delt_hpc.errors import UserError


def test_photographs_are_jpegs_in_eight_classes_and_all_different(tmp_path: Path) -> None:
    index = write_photographs(tmp_path, 3)
    assert index.counts(8).tolist() == [3] * 8
    assert len({(tmp_path / path).read_bytes() for path in index.paths}) == 24
    for path in index.paths:
        with Image.open(tmp_path / path) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))


@pytest.mark.parametrize("network", [None, "convnet3"])
def test_every_backend_is_measured_and_compared_with_pil(
    network: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ROUNDS", 1)
    monkeypatch.setattr(loading, "BATCH", 8)
    monkeypatch.setattr(loading, "backends", lambda: ["torchvision", "dali-cpu"])
    table = loading.bench([1], 16, network, tmp_path)
    assert table.columns[:5].tolist() == ["ratio", "backend", "threads", "images_per_s", "spread"]
    assert table["backend"].tolist() == ["torchvision", "dali-cpu"]
    assert (table["images_per_s"] > 0).all() and (table["spread"] == 0).all()
    pil = table.set_index("backend")["images_per_s"]["torchvision"]
    assert table["ratio"].tolist() == pytest.approx((table["images_per_s"] / pil).tolist())
    read = pd.read_csv(tmp_path / "loading.csv", keep_default_na=False)
    assert read.columns.tolist() == table.columns.tolist()
    assert read["network"].tolist() == [network or ""] * 2
    with Image.open(tmp_path / "loading.png") as plot:
        assert plot.format == "PNG"


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 128"):
        loading.bench([1], 127, None, tmp_path)
    assert not list(tmp_path.iterdir())
