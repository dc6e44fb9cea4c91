"""Checkpoint files: tensors and plain values, with a checksum that is compared before anything is read from them."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from delt_hpc.run.folder import writing

_HASH_BYTES = 16  # at the end of the file: BLAKE2b of all bytes before it


class DamagedCheckpointError(Exception):
    """A checkpoint that is empty, incomplete or changed; the message says which."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write one file; it replaces an older one only when it is complete."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with writing(path) as file:
        file.write(content)
        file.write(_hash(content))


def check_checkpoint(path: Path) -> None:
    """Check the file, if there is one.

    Raises:
        DamagedCheckpointError: the file is not as it was written.
    """
    if path.exists():
        _content(path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, tensors on the device.

    Raises:
        DamagedCheckpointError: the file is not as it was written.
    """
    state: dict[str, Any] = torch.load(io.BytesIO(_content(path)), map_location=device, weights_only=True)
    return state


def _content(path: Path) -> memoryview:
    content = memoryview(path.read_bytes())
    if not content:
        raise DamagedCheckpointError("is empty")
    body = content[:-_HASH_BYTES]
    if _hash(body) != content[-_HASH_BYTES:]:
        raise DamagedCheckpointError("is incomplete or was changed: its checksum does not match")
    return body


def _hash(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
