"""The files of torchvision's weights: in the run folder, in torch's cache, or downloaded. Their hashes are checked."""

import hashlib
import re
import shutil
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from delt_hpc.errors import UserError
from delt_hpc.models import weights
from delt_hpc.run import network
from delt_hpc.run.folder import make_folder, writing

_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # the beginning of the file's SHA-256, in its name
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def load(member: Any, folder: Path) -> weights.State:
    """The state dict of torchvision's weights.

    Args:
        member: a member of one of torchvision's enumerations of weights.
        folder: of the files; see `fetch`.

    Raises:
        UserError: the file is neither there nor can be downloaded, or it is damaged.
    """
    # DenseNet's files use old names of its layers.
    return {_DENSENET.sub(r"\1\2.", key): tensor for key, tensor in weights.read(fetch(member, folder)).items()}


def fetch(member: Any, folder: Path) -> Path:
    """The file of the weights in `folder`; it is copied from torch's cache or downloaded unless it is there.

    Raises:
        UserError: it cannot be had, saying where to put it; or it is damaged.
    """
    path = folder / str(member.url).rsplit("/", 1)[1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / path.name
    if path.exists():
        _check_hash(path)
    elif cached.exists():
        _check_hash(cached)
        with cached.open("rb") as source, writing(path) as file:
            shutil.copyfileobj(source, file)
    else:
        _download(member, path)
    return path


def missing(member: Any, folder: Path) -> str:
    """The name of the file where it would have to be downloaded; empty if it is there."""
    name = str(member.url).rsplit("/", 1)[1]
    return "" if (folder / name).exists() or (Path(torch.hub.get_dir()) / "checkpoints" / name).exists() else name


def _download(member: Any, path: Path) -> None:
    by_hand = f"download {member.url} on a machine with network access, and put the file here"
    if not network.allowed():
        raise UserError(
            f"{path.name} is not here, and jobs download nothing",
            where=str(path),
            expected=f"torchvision's weights {member}",
            remedy=f"`delt-hpc fetch` where there is a network, or {by_hand}",
        )
    found = _HASH.search(path.name)
    try:
        make_folder(path.parent)
        with network.timeout():
            torch.hub.download_url_to_file(member.url, str(path), found and found[1], progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"{member} cannot be downloaded: {error}",
            where=str(path),
            remedy=f"{by_hand}, or set teacher.checkpoint to it (teacher.source: checkpoint)",
        ) from None


def _check_hash(path: Path) -> None:
    found = _HASH.search(path.name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if found and not digest.startswith(found[1]):
        raise UserError(
            f"is damaged: its SHA-256 begins with {digest[: len(found[1])]}",
            where=str(path),
            expected=f"{found[1]}, as its name says",
            remedy="delete it, and fetch it again",
        )
