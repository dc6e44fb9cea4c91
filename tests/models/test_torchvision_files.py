"""torchvision's weights are fetched once into the run folder and checked; jobs download none. No network is used."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.models import WeightsEnum
from torchvision.models._api import Weights

from delt_hpc.errors import UserError
from delt_hpc.models import torchvision_files, weights
from delt_hpc.models.registry import build
from delt_hpc.run import network

STATE = {"0.weight": torch.arange(6.0).view(2, 3)}


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache of downloaded weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "home" / "hub" / "checkpoints"


def published(folder: Path, state: dict[str, torch.Tensor] = STATE) -> type[WeightsEnum]:
    """A fake of torchvision's enumerations, whose one file lies in `folder`, named after its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "file.pth")
    path = folder / f"net-{hashlib.sha256((folder / 'file.pth').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "file.pth").rename(path)

    class Published(WeightsEnum):
        V1 = Weights(url=path.as_uri(), transforms=torch.nn.Identity, meta={})

    return Published


def name(member: WeightsEnum) -> str:
    return str(member.url.rsplit("/", 1)[1])


def test_weights_are_downloaded_once_into_the_run_folder(torch_home: Path, tmp_path: Path) -> None:
    member = published(tmp_path / "server").V1
    run = tmp_path / "run"
    assert torchvision_files.missing(member, run) == name(member)
    path = torchvision_files.fetch(member, run)
    assert torchvision_files.missing(member, run) == ""
    assert [file.name for file in run.iterdir()] == [path.name] == [name(member)]
    shutil.rmtree(tmp_path / "server")
    assert torch.equal(torchvision_files.load(member, run)["0.weight"], STATE["0.weight"])
    assert list(torch_home.iterdir()) == []


def test_weights_in_torch_s_cache_are_copied(torch_home: Path, tmp_path: Path) -> None:
    member = published(tmp_path / "server").V1
    shutil.move(tmp_path / "server" / name(member), torch_home)
    assert torchvision_files.missing(member, tmp_path / "run") == ""
    torchvision_files.fetch(member, tmp_path / "run")
    shutil.rmtree(torch_home)
    assert torchvision_files.load(member, tmp_path / "run").keys() == STATE.keys()


def test_a_job_downloads_nothing_and_says_which_file_belongs_where(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = published(tmp_path / "server").V1
    monkeypatch.setenv(network.VARIABLE, "0")
    with pytest.raises(UserError, match="jobs download nothing") as caught:
        torchvision_files.load(member, tmp_path / "run")
    assert caught.value.where == str(tmp_path / "run" / name(member))
    assert member.url in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_a_failed_download_says_which_file_belongs_where(torch_home: Path, tmp_path: Path) -> None:
    member = published(tmp_path / "server").V1
    shutil.rmtree(tmp_path / "server")
    with pytest.raises(UserError, match="V1 cannot be downloaded") as caught:
        torchvision_files.fetch(member, tmp_path / "run")
    assert caught.value.where == str(tmp_path / "run" / name(member))
    assert "teacher.checkpoint" in caught.value.remedy
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("place", ["run", "cache"])
def test_a_damaged_file_is_refused(torch_home: Path, tmp_path: Path, place: str) -> None:
    member = published(tmp_path / "server").V1
    folder = tmp_path / "run" if place == "run" else torch_home
    folder.mkdir(exist_ok=True)
    (folder / name(member)).write_bytes((tmp_path / "server" / name(member)).read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged: its SHA-256 begins with"):
        torchvision_files.load(member, tmp_path / "run")


def test_a_damaged_download_is_refused(torch_home: Path, tmp_path: Path) -> None:
    member = published(tmp_path / "server").V1
    (tmp_path / "server" / name(member)).write_bytes(b"an error page")
    with pytest.raises(UserError, match="cannot be downloaded: invalid hash value"):
        torchvision_files.fetch(member, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_densenet_s_old_names_are_converted(tmp_path: Path) -> None:
    state = build("densenet121", 1000, 32).state_dict()
    old = {key: tensor for key, tensor in state.items() if "num_batches" not in key}
    for layer in ("norm", "conv"):
        for number in "12":
            old = {
                key.replace(f"{layer}{number}", f"{layer}.{number}") if "denselayer" in key else key: tensor
                for key, tensor in old.items()
            }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    ours = build("densenet121", 1000, 32)
    member = published(tmp_path / "server", old).V1
    weights.fit(ours, torchvision_files.load(member, tmp_path / "run"), str(member))
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in state.items() if "num_batches" not in key)
