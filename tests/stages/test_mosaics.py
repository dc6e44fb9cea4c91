"""Runs that start from mosaics, and runs without recovery."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers.toy import FOLDERS, Start, copy_run, images_of
from PIL import Image

from delt_hpc.config.class_range import ClassRange
from delt_hpc.config.schema import Config
from delt_hpc.context import Context
from delt_hpc.data.dataset import RESERVED
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import digest, uniforms
from delt_hpc.models import teacher
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.batches import plan
from delt_hpc.report.samples import read_pairs

# 2 mosaics of 2 x 2 of a class, from 10 of its 12 images.
RDED: dict[str, Any] = {
    "method": "rded",
    "rank": {
        **{"candidates": "crops", "pool": 10, "crops": 3, "crop_scale": [0.25, 1.0], "tiles": 2, "batch_size": 7},
        "precision": "float32",  # that of the plain code
    },
    "select": {"ipc": 2, "strategy": "top"},
    "recover": {"iterations": 0, "round_iterations": None},
    "evaluate": {"seeds": [1], "arms": ["distilled-soft", "selected-hard"]},
    "machine": {"loader": "torchvision"},  # exactly PIL's pixels, so that no near tie of scores is decided otherwise
}
PLAIN: dict[str, Any] = {"recover": {"iterations": 0, "round_iterations": None}, "evaluate": {"seeds": [1]}}


@pytest.fixture(scope="module")
def rded(tmp_path_factory: pytest.TempPathFactory, finished: Context, start: Start) -> Context:
    """A finished run of RDED. Tests must not change it."""
    return start(copy_run(finished, tmp_path_factory.mktemp("rded") / "run", "squeeze"), None, RDED)


def crop(context: Context, path: str, number: int) -> np.ndarray:
    """A crop as uint8 [4, 4, 3], by PIL, with the window drawn here."""
    image = Image.open(context.dataset.train.root / path)
    stream = uniforms(0, "rank", "crop", path, number)
    while True:
        area, _, top, left = (next(stream) for _ in range(4))
        side = round((64 * (0.25 + 0.75 * area)) ** 0.5)
        if side <= 8:
            break
    corner = int(left * (9 - side)), int(top * (9 - side))
    box = (*corner, corner[0] + side, corner[1] + side)
    return np.asarray(image.crop(box).resize((4, 4), Image.Resampling.BILINEAR))


def test_mosaics_are_those_of_plain_code(rded: Context) -> None:
    """Pool, crops, cross-entropies, order and tiles, computed image by image."""
    train, spec = rded.dataset.train, rded.dataset.spec
    network = teacher.load(rded.run, rded.dataset, torch.device("cpu"))
    for label, folder in enumerate(FOLDERS):
        paths = [path for path in train.paths if path.startswith(f"{folder}/")]
        pool = sorted(paths, key=lambda path: digest(0, "rank", "pool", label, path))[:10]
        best = []
        for path in pool:
            losses = []
            for number in range(3):
                x = torch.zeros(1, 3, 8, 8)
                scaled = torch.tensor(crop(rded, path, number) / 255, dtype=torch.float32)
                x[0, :, 2:6, 2:6] = ((scaled - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1)
                with torch.no_grad():
                    losses.append(F.cross_entropy(network(x), torch.tensor([label])).item())
            best.append((min(losses), path, int(np.argmin(losses))))
        best.sort()
        for mosaic in range(2):
            picture = np.zeros((8, 8, 3), np.uint8)
            for i in range(2):
                for j in range(2):
                    _, path, number = best[(i * 2 + j) * 2 + mosaic]
                    picture[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = crop(rded, path, number)
            found = np.asarray(Image.open(rded.run.selected / folder / f"{mosaic:05d}.png"))
            assert (found == picture).all()


def test_without_iterations_the_distilled_images_are_the_mosaics(rded: Context) -> None:
    def pixels(folder: Path) -> dict[str, list[int]]:
        return {name: np.asarray(Image.open(folder / name)).tolist() for name in images_of(folder)}

    assert pixels(rded.run.distilled) == pixels(rded.run.selected)
    assert manifest.problems(rded.run.distilled) == []
    table = manifest.read_manifest(rded.run.distilled)
    assert (table["iterations"] == 0).all() and (table["entry_round"] == 0).all()
    sources = [source.split(manifest.SEPARATOR) for source in table["source"]]
    assert all(len(set(paths)) == 4 for paths in sources)
    assert all((rded.dataset.train.root / path).exists() for paths in sources for path in paths)
    card = (rded.run.distilled / "README.md").read_text(encoding="utf-8")
    assert "8 images composed of crops (nothing was optimised) of the 48 training images" in card
    assert "RDED (arXiv 2312.03526)" in card and "| optimisation | none |" in card and "cross-entropy" not in card


def test_the_losses_of_images_that_were_not_optimised_are_their_own(rded: Context) -> None:
    network = teacher.load(rded.run, rded.dataset, torch.device("cpu"))
    table, spec = manifest.read_manifest(rded.run.distilled), rded.dataset.spec
    for row in table.itertuples():
        pixels = torch.tensor(np.asarray(Image.open(rded.run.distilled / row.file)) / 255, dtype=torch.float32)
        x = ((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1)[None]
        loss = F.cross_entropy(network(x), torch.tensor([row.class_index])).item()
        assert row.cross_entropy == pytest.approx(loss, rel=1e-4)
    assert (table["bn_loss"] > 0).all()


def test_every_tile_is_listed(rded: Context) -> None:
    table = pd.read_csv(rded.run.selected / "mosaics.csv", dtype={"img_path": str})
    assert len(table) == 4 * 2 * 4
    assert table[["row", "column"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    ranking = pd.read_csv(rded.run.ranking, dtype={"img_path": str}).set_index("img_path")
    listed = table.set_index("img_path")
    assert (listed["crop"] == ranking["crop"].loc[listed.index]).all()
    assert (listed["height"] == listed["width"]).all() and (listed["top"] + listed["height"] <= 8).all()
    assert {path.name for path in rded.run.selected.iterdir() if path.is_file()} <= RESERVED


def test_class_ranges_give_the_same_bytes(rded: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(rded, tmp_path / "run", "squeeze")
    for classes in (ClassRange(2, 3), ClassRange(1, 1), ClassRange(0, 0)):
        start(root, ("rank",), RDED, classes)
    start(root, ("select",), RDED)
    run = start(root, ("recover", "aggregate"), RDED).run
    for name in ("ranking.csv", "selected/selected.csv", "selected/mosaics.csv", "distilled/manifest.csv"):
        assert (run.root / name).read_bytes() == (rded.run.root / name).read_bytes()
    assert images_of(run.distilled) == images_of(rded.run.distilled)


@pytest.mark.parametrize("name", ["mosaics.csv", f"{FOLDERS[1]}/00001.png"])
def test_a_damaged_mosaic_is_made_again(rded: Context, start: Start, tmp_path: Path, name: str) -> None:
    root = copy_run(rded, tmp_path / "run", "select")
    (root / "selected" / name).write_bytes(b"damaged")
    run = start(root, ("select",), RDED).run
    assert (run.selected / name).read_bytes() == (rded.run.selected / name).read_bytes()
    assert len(list(run.broken.iterdir())) == 1


def test_an_interrupted_selection_gives_the_same_bytes(rded: Context, start: Start, tmp_path: Path) -> None:
    root = copy_run(rded, tmp_path / "run", "select")
    for name in ("done.json", "selected.csv", "mosaics.csv", f"{FOLDERS[3]}/00000.png"):
        (root / "selected" / name).unlink()
    run = start(root, ("select",), RDED).run
    assert images_of(run.selected) == images_of(rded.run.selected)
    assert (run.selected / "selected.csv").read_bytes() == (rded.run.selected / "selected.csv").read_bytes()


def test_delt_starts_from_mosaics_as_they_are(rded: Context, start: Start, tmp_path: Path) -> None:
    """They are not resized and cropped, as copies of real images would be with `data.resize` above `data.size`."""
    root = tmp_path / "run"
    changes = RDED | {"data": {"resize": 10}, "recover": {"iterations": 4, "round_iterations": 2}}
    context = start(root, ("squeeze", "rank", "select"), changes)
    batch = plan(4, 2, context.config.recover)[0]
    initial = BatchFolder(context, batch).load().images
    spec = context.dataset.spec
    for image, entry in zip(initial, batch.entries, strict=True):
        pixels = np.asarray(Image.open(context.run.selected / FOLDERS[entry.class_index] / f"{entry.number:05d}.png"))
        x = ((torch.tensor(pixels / 255) - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1)
        torch.testing.assert_close(image, x.float(), atol=1e-5, rtol=1e-5)
    start(root, ("recover", "aggregate"), changes)
    table = manifest.read_manifest(context.run.distilled)
    assert (table["iterations"] > 0).all() and manifest.problems(context.run.distilled) == []


def test_the_report_shows_what_the_images_are(rded: Context) -> None:
    report = (rded.run.report / "report.md").read_text(encoding="utf-8")
    assert "Composed 2 mosaics of 2 x 2 crops for each class" in report
    assert "Nothing was optimised (0 iterations)" in report
    assert [pair.initial for pair in read_pairs(rded.run)][:2] == [f"{FOLDERS[0]}/00000.png", f"{FOLDERS[0]}/00001.png"]
    content = json.loads((rded.run.report / "report.json").read_text(encoding="utf-8"))
    assert content["diversity"]["initial"] == pytest.approx(content["diversity"]["distilled"], rel=1e-5)
    assert "\n| recover | " in report


@pytest.mark.parametrize("strategy", ["random", "medium"])
def test_real_images_without_recovery(finished: Context, start: Start, tmp_path: Path, strategy: str) -> None:
    root = copy_run(finished, tmp_path / "run", "rank")
    context = start(root, None, PLAIN | {"method": "random", "select": {"strategy": strategy}})
    assert manifest.problems(context.run.distilled) == []
    table = manifest.read_manifest(context.run.distilled)
    for row in table.itertuples():
        real = np.asarray(Image.open(context.dataset.train.root / row.source))
        assert (np.asarray(Image.open(context.run.distilled / row.file)) == real).all()
    card = (context.run.distilled / "README.md").read_text(encoding="utf-8")
    assert "12 real images (nothing was optimised) chosen from the 48 training images" in card
    assert (context.run.report / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"ipc": 4}}, r"(?s)rank\.pool.*10 is less than rank\.tiles\^2 \* select\.ipc = 16 crops"),
        ({"rank": {"tiles": None, "pool": 1}}, r"(?s)rank\.pool.*1 images give as many crops.*need 2"),
        ({"rank": {"pool": 300}, "select": {"ipc": 4}}, r"(?s)each of crops of 4 images.*00010 has 12.*at most 3"),
        ({"rank": {"csv": "given.csv"}}, r"rank\.csv: is a ranking of whole images"),
        ({"rank": {"crop_scale": [1.0, 0.5]}}, r"rank\.crop_scale: \[1\.0, 0\.5\]: expected the smallest area first"),
        ({"data": {"size": 9}}, r"rank\.tiles: 2 does not divide data\.size = 9"),
        ({"recover": {"init": "noise"}}, r"recover\.iterations: 0 iterations leave the noise as it is"),
    ],
)
def test_what_contradicts_is_refused_before_work(
    start: Start, configure: Callable[..., Config], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    merged = {key: RDED.get(key, {}) | body for key, body in (RDED | changes).items() if isinstance(body, dict)}
    with pytest.raises(UserError, match=message):
        start(tmp_path / "run", (), merged)
