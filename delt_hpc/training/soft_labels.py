"""Soft labels on disk: one file of the teacher's logits, a row of fixed size for each (epoch, image), epoch by epoch.

The images of an epoch are a function of the seed, so nothing else is stored: a training makes the same images again and
reads their rows through a memory map.
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from delt_hpc.config.schema import Evaluate, LabelFormat
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.loader import TrainingSet
from delt_hpc.errors import UserError
from delt_hpc.run import checksums, stop
from delt_hpc.run.folder import read_json, write_json
from delt_hpc.run.progress import Bar

FILE, UNFINISHED = "logits.bin", "logits.unfinished"
EPOCHS = "epochs.json"  # hashes of the epochs that are written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEVELS = 255  # of int8, above the lowest


@dataclass(frozen=True)
class Encoding:
    """How the logits of an image are stored.

    Attributes:
        classes: number of classes C.
        top_k: number k of logits that `top_k` stores.
        temperature: T of the loss that they are for; None for a loss of the logits themselves.
    """

    format: LabelFormat
    classes: int
    top_k: int
    temperature: float | None

    @cached_property
    def row(self) -> np.dtype[np.void]:
        """The stored form of an image's logits: 4 C bytes, or 2 C (float16), C + 8 (int8), 4 k + 2 (top_k)."""
        every, top = (self.classes,), (self.top_k,)
        if self.format == "int8":
            return np.dtype([("low", "<f4"), ("step", "<f4"), ("codes", "u1", every)])
        if self.format == "top_k":
            index = "<u2" if self.classes <= 2**16 else "<u4"
            return np.dtype([("rest", "<f2"), ("values", "<f2", top), ("indices", index, top)])
        return np.dtype([("logits", "<f4" if self.format == "float32" else "<f2", every)])

    def encode(self, logits: Tensor) -> np.ndarray:
        """Rows [B] of logits [B, C].

        Raises:
            UserError: a logit is not finite, or too large for float16.
        """
        logits = logits.float().cpu()
        fields: dict[str, Tensor] = {"logits": logits}
        if self.format == "int8":
            low, high = logits.aminmax(dim=1)
            step = ((high - low) / _LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
            fields = {"low": low, "step": step, "codes": ((logits - low[:, None]) / step[:, None]).round()}
        elif self.format == "top_k":
            values, indices = logits.topk(self.top_k)
            fields = {"rest": self._rest(logits, indices), "values": values, "indices": indices}
        rows = np.empty(len(logits), self.row)
        with np.errstate(over="ignore", invalid="ignore"):
            for name, content in fields.items():
                rows[name] = content.numpy()
        if not self.decode(rows).isfinite().all():
            raise UserError(
                "the teacher's logits are not finite, or too large for this format",
                where=f"evaluate.label_format: {self.format}",
                remedy="check the teacher's accuracy, or set evaluate.label_format: float32",
            )
        return rows

    def _rest(self, logits: Tensor, top: Tensor) -> Tensor:
        """The logit [B] that each of the other classes gets: together they keep their probability at temperature T."""
        others = self.classes - self.top_k
        if self.temperature is None:
            return logits.scatter(1, top, 0.0).sum(1) / others
        mass = (logits.scatter(1, top, -torch.inf) / self.temperature).logsumexp(1)
        rest: Tensor = self.temperature * (mass - math.log(others))
        return rest

    def decode(self, rows: np.ndarray) -> Tensor:
        """Logits float32 [B, C] of rows [B]. float32 is exact.

        The error is at most |t| / 2048 for a logit t in float16 and among the stored ones of top_k, and (max - min) /
        510 of the image's logits in int8, and rounding in float32.
        """
        if self.format == "int8":
            return _field(rows, "low")[:, None] + _field(rows, "step")[:, None] * _field(rows, "codes")
        if self.format == "top_k":
            spread = _field(rows, "rest")[:, None].repeat(1, self.classes)
            return spread.scatter(1, torch.from_numpy(rows["indices"].astype(np.int64)), _field(rows, "values"))
        return _field(rows, "logits")


def _field(rows: np.ndarray, name: str) -> Tensor:
    return torch.from_numpy(rows[name].astype(np.float32))


def encoding(config: Evaluate, classes: int) -> Encoding:
    """The encoding of a configuration.

    Raises:
        UserError: top_k would store all logits.
    """
    if config.labels == "stored" and config.label_format == "top_k" and config.label_top_k >= classes:
        raise UserError(
            f"is not less than the number of classes, {classes}",
            where=f"evaluate.label_top_k: {config.label_top_k}",
            remedy="lower it, or set evaluate.label_format: float16",
        )
    softened = config.temperature_used if config.soft_loss == "kl" else None
    return Encoding(config.label_format, classes, config.label_top_k, softened)


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """The stored logits of a training set.

    Attributes:
        folder: with FILE and EPOCHS; while FILE is being written, it has the name UNFINISHED.
        epochs: number of stored epochs, from the first.
    """

    folder: Path
    train: TrainingSet
    epochs: int
    encoding: Encoding

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.epochs * self._epoch_size

    @property
    def _epoch_size(self) -> int:
        return len(self.train.index) * self.encoding.row.itemsize

    def write(self, label: Callable[[TrainingBatch], Tensor], bar: Bar) -> None:
        """Write the epochs that are missing; the bar counts batches. Every image must be readable.

        Args:
            label: gives the logits [B, C] of a batch.

        Raises:
            UserError: the disk is full; the message has the size.
            Interrupted: a stop was requested; finished epochs are kept.
        """
        file_path, unfinished = self.folder / FILE, self.folder / UNFINISHED
        if file_path.exists():  # complete, but not marked as done
            file_path.replace(unfinished)
        unfinished.touch()
        with self._full_disk_told(), unfinished.open("r+b") as file:
            hashes = self._intact(file)
            file.truncate(len(hashes) * self._epoch_size)
            if shutil.disk_usage(self.folder).free < self.size - len(hashes) * self._epoch_size:
                raise OSError(errno.ENOSPC, "too little free space")
            bar.resume(len(hashes) * self.train.steps())
            rows = np.empty(len(self.train.index), self.encoding.row)
            with closing(self.train.batches(len(hashes), self.epochs)) as stream:
                for batch in stream:
                    stop.check()
                    rows[batch.positions] = self.encoding.encode(label(batch))
                    bar.advance(1, f"epoch {batch.epoch + 1}/{self.epochs}")
                    if batch.step == self.train.steps() - 1:
                        hashes.append(self._append(file, rows.tobytes()))
                        write_json(self.folder / EPOCHS, hashes)
        unfinished.replace(file_path)

    def logits(self, batch: TrainingBatch) -> Tensor:
        """The stored logits float32 [B, C] of a batch, on its device."""
        rows = self._rows[self.train.drawn(batch.epoch), batch.positions]
        return self.encoding.decode(rows).to(batch.images.device, non_blocking=True)

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.memmap(self.folder / FILE, self.encoding.row, "r", shape=(self.epochs, len(self.train.index)))

    def _intact(self, file: IO[bytes]) -> list[str]:
        """The hashes of the finished epochs, up to the first one whose bytes are not those that were written."""
        listed: list[str] = read_json(self.folder / EPOCHS) if (self.folder / EPOCHS).exists() else []
        for epoch, wanted in enumerate(listed):
            if checksums.of_bytes(file.read(self._epoch_size)) != wanted:
                return listed[:epoch]
        return listed

    @staticmethod
    def _append(file: IO[bytes], content: bytes) -> str:
        """Write an epoch at the end of the file, on the disk when this returns; its hash."""
        file.seek(0, os.SEEK_END)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return checksums.of_bytes(content)

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UserError(
                f"the disk is too full for the soft labels, which take {written(self.size)}",
                where=str(self.folder),
                remedy="free space; or delete labels/ and evaluate/ of this run, and set a smaller"
                " evaluate.label_format or evaluate.epochs_kept, or evaluate.labels: online",
            ) from None


def written(size: int) -> str:
    """A number of bytes: 1.2 kB, 1,234.5 GB"""
    value, unit = size / 1e3, "kB"
    for larger in ("MB", "GB"):
        if value >= 1e3:
            value, unit = value / 1e3, larger
    return f"{value:,.1f} {unit}"
