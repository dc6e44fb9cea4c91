"""Loading on a GPU: rank agreement with CPU decoding, the hardware decoder, memory beside a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from helpers.photographs import denormalised, jpeg, write_files

from delt_hpc.bench import ranking
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.crops import Crops
from delt_hpc.data.dali import pipeline
from delt_hpc.data.index import Index
from delt_hpc.data.loader import Backend, LoaderConfig, crop_batches, evaluation_batches
from delt_hpc.models.registry import build
from delt_hpc.ranking.score import scores

SPEC = SPECS["imagenet-1k"]


@pytest.fixture
def photographs(tmp_path: Path) -> Index:
    return write_files(tmp_path, {f"{i:02d}.jpg": jpeg(300 + 9 * i, 400 - 7 * i) for i in range(24)})


def read(index: Index) -> np.ndarray:
    loader_config = LoaderConfig("dali-gpu", torch.device("cuda"), 4)
    batches = evaluation_batches(index, np.arange(len(index)), SPEC, 8, loader_config, BadFiles())
    return denormalised(torch.cat([images.cpu() for images, _ in batches]), SPEC)


@pytest.mark.gpu
def test_rankings_agree_between_decoders_and_precisions(tmp_path: Path) -> None:
    table = ranking.bench(48, tmp_path)
    print(table.iloc[:, :6].to_string())
    accurate = table[table["precision"] != "bfloat16"]
    assert set(accurate["backend"]) == {"float noise", "torchvision", "dali-cpu", "dali-gpu"}
    assert accurate["spearman_min"].min() > 0.95
    assert accurate["same_medium"].min() >= 0.8


@pytest.mark.gpu
def test_the_hardware_decoder_gives_nearly_the_same_pixels(photographs: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    original = pipeline.fn.decoders.image
    for load in (0.0, 1.0):
        with monkeypatch.context() as patch:
            patch.setattr(
                pipeline.fn.decoders, "image", lambda *a, load=load, **k: original(*a, hw_decoder_load=load, **k)
            )
            found[load] = read(photographs)
    assert np.abs(found[0.0] - found[1.0]).mean() < 1


@pytest.mark.gpu
def test_crops_are_nearly_those_of_the_cpu(photographs: Index) -> None:
    crops, found = Crops(3, 112, (0.08, 1.0), (7, "crop")), {}
    backends: dict[Backend, str] = {"dali-gpu": "cuda", "torchvision": "cpu"}
    for backend, device in backends.items():
        config = LoaderConfig(backend, torch.device(device), 4)
        batches = crop_batches(photographs, np.arange(24), SPEC, 8, crops, config, BadFiles())
        found[backend] = denormalised(torch.cat([images.cpu().flatten(0, 1) for images, _ in batches]), SPEC)
    assert found["dali-gpu"].shape == (72, 112, 112, 3)
    assert np.abs(found["dali-gpu"] - found["torchvision"]).mean() < 1


@pytest.mark.gpu
def test_memory_is_left_for_the_teacher(photographs: Index) -> None:
    device = torch.device("cuda")
    network = build("resnet50", 1000, 224).eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    free = []
    for _ in range(3):
        loader_config = LoaderConfig("dali-gpu", device, 4)
        for images, positions in evaluation_batches(photographs, np.arange(24), SPEC, 8, loader_config, BadFiles()):
            assert np.isfinite(scores(network, images, np.zeros(len(positions), dtype=np.int64), "auto")).all()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[-1] >= free[0] - 64 * 2**20
