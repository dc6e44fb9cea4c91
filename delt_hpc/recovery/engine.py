"""The packed engine: one pass for batches at different rounds; iterations run without waiting for the host."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.errors import UserError, some
from delt_hpc.recovery import device_tables
from delt_hpc.recovery.compiled import compile_with_fallback
from delt_hpc.recovery.cuda_graph import WARM_UP, GraphedIteration
from delt_hpc.recovery.device_tables import Layout
from delt_hpc.recovery.precision import NumericFormat, backend_flags
from delt_hpc.recovery.reference import EPSILON, pixel_box
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import Capacity, PackingPlan, ScheduledBatch
from delt_hpc.recovery.state import State, not_finite
from delt_kernels.adam import adam_
from delt_kernels.crop_resize import crop_resize, crop_resize_backward
from delt_kernels.segments import per_segment
from delt_kernels.teacher.fused import FusedTeacher

MAX_TABLE_ITERATIONS = 500  # iterations whose tables are uploaded at once


def fuse(teacher: nn.Module, recover: Recover, numeric_format: NumericFormat) -> FusedTeacher:
    """The teacher with fused operators, in the engine's number format and memory layout."""
    return FusedTeacher(
        teacher, recover.first_bn_weight, recover.kernels, dtype=numeric_format.network_dtype, channels_last=True
    )


class OutOfGpuMemoryError(UserError):
    """The GPU memory does not suffice for a pass.

    Attributes:
        restored: whether the engine's buffers are as they were before the pass.
    """

    def __init__(
        self, batches: Sequence[str], images: int, recover: Recover, packing: PackingPlan, *, restored: bool
    ) -> None:
        fewer = f"set recover.segments below {packing.segments}"
        if recover.deterministic:
            fewer += " in a new run folder"  # the number is part of the identity of the images
        super().__init__(
            f"not enough GPU memory for a pass of {len(batches)} segment(s) with {images} images"
            f" (batches {some(batches, 8)})",
            where=f"recover.segments: {recover.segments}",
            remedy=fewer
            if packing.segments > 1
            else "set a smaller recover.batch_size in a new run folder, or use a GPU with more memory",
        )
        self.restored = restored


class Engine:
    """Optimises the images of several batches in one forward and backward pass.

    The images, Adam's moments and tables of all batches in flight stay at fixed addresses on the device, so that an
    iteration can be recorded as a CUDA graph. Each batch gets the arithmetic of the reference engine: its own
    augmentation, BatchNorm statistics, loss, learning rate and step count.
    """

    def __init__(
        self,
        network: FusedTeacher,
        recover: Recover,
        spec: DatasetSpec,
        seed: int,
        packing: PackingPlan,
        capacity: Capacity,
        numeric_format: NumericFormat,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            network: from `fuse`, on the device.
            recover: from `auto.resolve_auto`.
            dtype: of images, Adam's moments, sums and losses: float32, or float64.
        """
        self._recover, self._spec, self._seed, self._device = recover, spec, seed, device
        self._packing, self._capacity, self._format = packing, capacity, numeric_format
        self._schedule, self._network = Schedule.of(recover), network
        self._losses = self._segment_losses
        if recover.compile:
            self._losses = compile_with_fallback(
                self._segment_losses, deterministic=recover.deterministic, sizes_change=recover.blocks > 1
            )

        size, images = spec.size, capacity.images
        rows = packing.segments * capacity.slot + (images if packing.padded else 0)
        segments = packing.segments * (2 if packing.padded else 1)
        table_length = min(MAX_TABLE_ITERATIONS, self._schedule.round_length)

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        self._images, self._exp_avg, self._exp_avg_sq = (zeros(rows, 3, size, size) for _ in range(3))
        self._rows, self._labels = zeros(images, of=torch.int32), zeros(images, of=torch.int64)
        self._sample_weights, self._cross_entropy = zeros(images), zeros(images)
        self._offsets, self._segment_mask = zeros(segments + 1, of=torch.int32), zeros(segments)
        self._views = zeros(table_length, segments, 8, of=torch.int32)
        self._adam_steps = zeros(table_length * images * 2)
        self._loss_log = zeros(table_length, 3, segments)
        # The current row of the tables. It is on the device, so that replaying a recorded graph advances it.
        self._table_row = zeros(1, of=torch.int64)
        self._low, self._high = (bound.flatten() for bound in pixel_box(spec, self._images))
        self._graphed_iteration = GraphedIteration(self._iteration, device, recover.graphs)
        self._iterations_done: Counter[int] = Counter()  # for each number of images
        self.first_seconds = 0.0  # duration of the first iteration: compilation and choice of algorithms

    def enter(self, scheduled: ScheduledBatch, state: State) -> None:
        """Copy the images and moments of a batch into its slot."""
        rows = self._slot_rows(scheduled)
        self._images[rows].copy_(state.images)
        self._exp_avg[rows].copy_(state.exp_avg)
        self._exp_avg_sq[rows].copy_(state.exp_avg_sq)

    def snapshot(self, scheduled: ScheduledBatch, state: State) -> State:
        """A copy of the current state of a batch, on the CPU.

        Args:
            state: its losses and times.

        Raises:
            UserError: the images or moments contain NaN or infinity.
        """
        rows = self._slot_rows(scheduled)
        images, exp_avg, exp_avg_sq = (
            buffer[rows].to("cpu", copy=True) for buffer in (self._images, self._exp_avg, self._exp_avg_sq)
        )
        copied = State(
            images,
            exp_avg,
            exp_avg_sq,
            state.cross_entropy.clone(),
            scheduled.t,
            list(state.curve),
            list(state.round_seconds),
            state.initial,
        )
        copied.check_finite(scheduled.batch.id)
        return copied

    def run(
        self,
        running: Sequence[ScheduledBatch],
        states: Sequence[State],
        iterations: int,
        after_iteration: Callable[[int], bool],
    ) -> int:
        """Run iterations of the same batches in the same layout.

        Args:
            running: sorted by place and lane.
            states: of these batches, on the CPU; their curves, cross-entropies and times are updated. Images and
                moments stay in the engine's buffers (`snapshot`).
            iterations: at most; no batch may reach the end of its round before.
            after_iteration: called with the number of active images; the run ends early if it returns true.

        Returns:
            iterations done, at least one.

        Raises:
            OutOfGpuMemoryError: the GPU memory does not suffice. With `segments: auto`, and in the first iterations
                with this number of images, the buffers are then as they were before the call: `restored`.
            UserError: a loss is NaN or infinite, or a layer has no deterministic algorithm.
        """
        iterations = min(iterations, MAX_TABLE_ITERATIONS)
        layout = device_tables.make_layout(running, self._packing, self._capacity, self._schedule)
        start = time.perf_counter()
        self._upload(layout, iterations)
        backup = self._backup(layout.images)
        active, done = sum(segment.images for segment in layout.segments if segment.scheduled), 0
        with backend_flags(tf32=self._format.tf32, deterministic=self._recover.deterministic):
            while done < iterations:
                self._iterate(layout, backup)
                self._record_first_iteration(start)
                done += 1
                if after_iteration(active):
                    break
        # These copies wait for the device.
        loss_log, cross_entropy = self._loss_log[:done].cpu(), self._cross_entropy[: layout.images].cpu()
        self._iterations_done[layout.images] += done
        seconds_per_image = (time.perf_counter() - start) / max(1, active)
        self._record(layout, states, loss_log, cross_entropy, seconds_per_image)
        return done

    def _backup(self, images: int) -> list[Tensor] | None:
        """Copies of images and moments on the CPU, if this pass may fail for lack of memory and others may not."""
        may_go_on = self._recover.segments == "auto" and self._packing.segments > 1 and not self._recover.deterministic
        # Recording the graph, which follows the warm-up, needs memory too; later iterations need no more.
        if self._iterations_done[images] > WARM_UP or not may_go_on:
            return None
        return [buffer.to("cpu", copy=True) for buffer in (self._images, self._exp_avg, self._exp_avg_sq)]

    def _iterate(self, layout: Layout, backup: list[Tensor] | None) -> None:
        try:
            self._graphed_iteration(layout.images)
        except torch.OutOfMemoryError as error:
            if backup is not None:
                for buffer, copied in zip((self._images, self._exp_avg, self._exp_avg_sq), backup, strict=True):
                    buffer.copy_(copied)
            batches = [segment.scheduled.batch.id for segment in layout.segments if segment.scheduled]
            raise OutOfGpuMemoryError(
                batches, layout.images, self._recover, self._packing, restored=backup is not None
            ) from error
        except RuntimeError as error:
            if not self._recover.deterministic or "deterministic" not in str(error):
                raise
            raise UserError(
                str(error).splitlines()[0],
                where="recover.deterministic: true",
                remedy="set recover.deterministic: false or recover.kernels: triton, or choose another teacher.model",
            ) from error

    def _record_first_iteration(self, start: float) -> None:
        if not self.first_seconds:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.first_seconds = time.perf_counter() - start

    def _slot_rows(self, scheduled: ScheduledBatch) -> slice:
        first = scheduled.slot * self._capacity.slot
        return slice(first, first + len(scheduled.batch.entries))

    def _upload(self, layout: Layout, iterations: int) -> None:
        """Copy the host's tables for the next iterations to the device."""
        images = layout.images
        views = device_tables.view_table(layout, iterations, self._recover, self._spec, self._seed)
        adam_steps = device_tables.adam_table(layout, iterations, self._recover)
        for on_device, on_host in (
            (self._rows[:images], layout.rows),
            (self._labels[:images], layout.labels),
            (self._sample_weights[:images], layout.sample_weights),
            (self._offsets, layout.offsets),
            (self._segment_mask, layout.segment_mask),
            (self._views[:iterations], views),
            (self._adam_table(images)[:iterations], adam_steps),
        ):
            on_device.copy_(torch.from_numpy(np.ascontiguousarray(on_host)))
        self._table_row.zero_()

    def _adam_table(self, images: int) -> Tensor:
        """[iterations, images, 2]; the same address for the same number of images."""
        iterations = len(self._views)
        return self._adam_steps[: iterations * images * 2].view(iterations, images, 2)

    def _iteration(self, images: int) -> None:
        """One iteration of all running batches, on tensors at fixed addresses, without waiting for the device."""
        rows, offsets, kernels = self._rows[:images], self._offsets, self._recover.kernels
        views = self._views.index_select(0, self._table_row)[0]
        adam_steps = self._adam_table(images).index_select(0, self._table_row)[0]
        augmented = crop_resize(
            self._images, views, rows, offsets, dtype=self._format.network_dtype, backend=kernels
        ).requires_grad_()
        labels, sample_weights = self._labels[:images], self._sample_weights[:images]
        if self._recover.compile and self._device.type == "cpu":
            # One compilation for any number of images. Otherwise a shape's code depends on the shapes before it, and a
            # batch that is resumed has other last bits than one that was not interrupted.
            for tensor in (augmented, labels, sample_weights):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        cross_entropy, distance, cross_entropy_per_image = self._losses(augmented, offsets, labels, sample_weights)
        total = cross_entropy + self._recover.r_bn * distance
        scaled = (total * self._segment_mask).sum() * self._format.loss_scale
        (grad_augmented,) = torch.autograd.grad(scaled, augmented)
        grad_images = crop_resize_backward(grad_augmented, views, offsets, backend=kernels)
        if self._format.loss_scale != 1:
            grad_images = grad_images / self._format.loss_scale
        adam_(
            self._images, self._exp_avg, self._exp_avg_sq, grad_images, rows, adam_steps, self._low, self._high,
            self._recover.betas, EPSILON, backend=kernels,
        )  # fmt: skip
        losses = torch.stack([total, cross_entropy, distance]).detach()
        self._loss_log.index_copy_(0, self._table_row, losses[None])
        self._cross_entropy[:images].copy_(cross_entropy_per_image.detach())
        self._table_row += 1

    def _segment_losses(
        self, augmented: Tensor, offsets: Tensor, labels: Tensor, sample_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy and BatchNorm distance of each segment [G], cross-entropy of each image [N]."""
        logits, distance = self._network(augmented, offsets)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        return per_segment(cross_entropy * sample_weights, offsets), distance, cross_entropy

    def _record(
        self,
        layout: Layout,
        states: Sequence[State],
        loss_log: Tensor,
        cross_entropy: Tensor,
        seconds_per_image: float,
    ) -> None:
        """Write losses and times into the states of the batches."""
        remaining = iter(states)
        for g, (segment, first) in enumerate(zip(layout.segments, layout.offsets.tolist(), strict=False)):
            if segment.scheduled is None:
                continue
            state, t = next(remaining), segment.scheduled.t
            round_index, losses = self._schedule.round(t), loss_log[:, :, g].tolist()
            if not np.isfinite(losses).all():
                raise not_finite("losses", segment.scheduled.batch.id, t)
            state.cross_entropy[: segment.images] = cross_entropy[first : first + segment.images]
            state.curve += [
                (
                    *(t + i, round_index, segment.images),
                    *(self._schedule.lr(t + i), self._schedule.smallest_crop(t + i)),
                    *row,
                )
                for i, row in enumerate(losses)
            ]
            state.add_seconds(round_index, seconds_per_image * segment.images)
