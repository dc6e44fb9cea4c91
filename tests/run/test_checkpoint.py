"""Checkpoint files: what is read is what was written."""

from pathlib import Path

import pytest
import torch

from delt_hpc.run.checkpoint import DamagedCheckpointError, read_checkpoint, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint.pt", {"images": torch.arange(600.0), "t": 3})
    return tmp_path / "checkpoint.pt"


def test_a_checkpoint_reads_back(path: Path) -> None:
    state = read_checkpoint(path, CPU)
    assert state["t"] == 3
    assert torch.equal(state["images"], torch.arange(600.0))


@pytest.mark.parametrize("size", [0, 1, 16, 500, -1])
def test_a_truncated_checkpoint_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(path, CPU)


def test_a_flipped_bit_anywhere_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path, CPU)
