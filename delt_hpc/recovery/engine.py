"""The packed engine: batches at different rounds in one pass, the whole iteration free of waiting for the host."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.config.schema import Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.errors import UserError
from delt_hpc.recovery import device_tables
from delt_hpc.recovery.cuda_graph import Replay
from delt_hpc.recovery.device_tables import Layout
from delt_hpc.recovery.precision import Precision, backends
from delt_hpc.recovery.reference import EPSILON, pixel_box
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.scheduler import Capacity, PackingPlan, ScheduledBatch
from delt_hpc.recovery.state import State
from delt_kernels.adam import adam_
from delt_kernels.crop_resize import crop_resize, crop_resize_backward
from delt_kernels.segments import per_segment
from delt_kernels.teacher.fused import FusedTeacher

LONGEST = 500  # iterations whose tables are made at once


def fuse(teacher: nn.Module, recover: Recover, precision: Precision) -> FusedTeacher:
    """The teacher as the engine runs it."""
    return FusedTeacher(teacher, recover.first_bn_weight, recover.kernels, dtype=precision.network, channels_last=True)


class Engine:
    """Images, moments and tables of all batches on their way, at fixed places on the device.

    The arithmetic of every batch is the reference engine's: its own view, statistics, loss, learning rate and step
    count in every iteration.
    """

    def __init__(
        self,
        network: FusedTeacher,
        recover: Recover,
        spec: DatasetSpec,
        seed: int,
        packing: PackingPlan,
        capacity: Capacity,
        precision: Precision,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            network: from `fuse`, on the device.
            dtype: of images, moments, sums and losses: float32, or float64.
        """
        self._recover, self._spec, self._seed = recover, spec, seed
        self._packing, self._room, self._precision = packing, capacity, precision
        self._schedule, self._network = Schedule.of(recover), network
        self._losses = self._plain_losses
        if recover.compiles_on(device.type):
            # Without it, graphs with an autograd.Function (sums of segments) are compiled anew in every process.
            torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
            torch._dynamo.config.recompile_limit = 64  # shapes, of all engines of a process
            # Which code runs for a shape must not depend on the shapes before it where bytes are promised.
            dynamic = False if recover.deterministic else None
            self._losses = torch.compile(self._plain_losses, fullgraph=True, dynamic=dynamic)

        size, most = spec.size, capacity.images
        rows = packing.segments * capacity.slot + (most if packing.padded else 0)
        segments = packing.segments * (2 if packing.padded else 1)
        longest = min(LONGEST, self._schedule.round_length)

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        self._images, self._first, self._second = (zeros(rows, 3, size, size) for _ in range(3))
        self._rows, self._labels = zeros(most, of=torch.int32), zeros(most, of=torch.int64)
        self._shares, self._each = zeros(most), zeros(most)
        self._offsets, self._live = zeros(segments + 1, of=torch.int32), zeros(segments)
        self._views = zeros(longest, segments, 8, of=torch.int32)
        self._steps = torch.zeros(longest * most * 2, dtype=dtype, device=device)
        self._log = zeros(longest, 3, segments)
        self._i = zeros(1, of=torch.int64)
        self._low, self._high = (bound.flatten() for bound in pixel_box(spec, self._images))
        self._replay = Replay(self._iteration, device)
        self._device = device
        self.first_seconds = 0.0  # of the first iteration: compilation, and the choice of algorithms

    def enter(self, scheduled: ScheduledBatch, state: State) -> None:
        """Take a batch's images and moments in."""
        part = self._slot(scheduled)
        self._images[part].copy_(state.images)
        self._first[part].copy_(state.first)
        self._second[part].copy_(state.second)

    def snapshot(self, scheduled: ScheduledBatch, state: State) -> State:
        """What the batch is now, a copy on the CPU.

        Raises:
            UserError: it is no numbers any more; nothing of it should be kept.
        """
        part = self._slot(scheduled)
        images, first, second = (ours[part].to("cpu", copy=True) for ours in (self._images, self._first, self._second))
        if not all(bool(each.isfinite().all()) for each in (images, first, second)):
            raise _not_finite("images", scheduled)
        return State(
            images,
            first,
            second,
            state.cross_entropy.clone(),
            scheduled.t,
            list(state.curve),
            list(state.round_seconds),
        )

    def run(
        self,
        running: Sequence[ScheduledBatch],
        states: Sequence[State],
        iterations: int,
        after_iteration: Callable[[int], bool],
    ) -> int:
        """Optimise the running batches for some iterations of one layout.

        Args:
            running: by place and lane.
            states: theirs, on the CPU; get curve, cross-entropies, times. Images and moments stay here (`snapshot`).
            iterations: at most those to the first end of a round.
            after_iteration: called with the images of the pass; true ends the run early.

        Returns:
            iterations done, at least one.

        Raises:
            UserError: a loss is not a number.
        """
        iterations = min(iterations, LONGEST)
        placed = device_tables.layout(running, self._packing, self._room, self._schedule)
        began = time.perf_counter()
        self._upload(placed, iterations)
        active, done = sum(run.images for run in placed.runs if run.scheduled), 0
        with backends(self._precision.tf32, self._recover.deterministic):
            while done < iterations:
                self._one(placed.images)
                self._note_first(began)
                done += 1
                if after_iteration(active):
                    break
        log, each = self._log[:done].cpu(), self._each[: placed.images].cpu()  # waits for the device
        self._note(placed, list(states), log, each, (time.perf_counter() - began) / max(1, active))
        return done

    def _one(self, images: int) -> None:
        try:
            self._replay(images)
        except RuntimeError as error:
            if not self._recover.deterministic or "deterministic" not in str(error):
                raise
            raise UserError(
                str(error).splitlines()[0],
                where="recover.deterministic: true",
                remedy="false, recover.kernels: triton, or another teacher.model",
            ) from error

    def _note_first(self, began: float) -> None:
        if not self.first_seconds:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.first_seconds = time.perf_counter() - began

    def _slot(self, scheduled: ScheduledBatch) -> slice:
        first = scheduled.slot * self._room.slot
        return slice(first, first + len(scheduled.batch.entries))

    def _upload(self, placed: Layout, iterations: int) -> None:
        """All that the iterations of this layout need from the host."""
        images = placed.images
        views = device_tables.views(placed, iterations, self._recover, self._spec, self._seed)
        steps = device_tables.steps(placed, iterations, self._recover)
        for ours, theirs in (
            (self._rows[:images], placed.rows),
            (self._labels[:images], placed.labels),
            (self._shares[:images], placed.sample_weights),
            (self._offsets, placed.offsets),
            (self._live, placed.live),
            (self._views[:iterations], views),
            (self._step_table(images)[:iterations], steps),
        ):
            ours.copy_(torch.from_numpy(np.ascontiguousarray(theirs)))
        self._i.zero_()

    def _step_table(self, images: int) -> Tensor:
        """[longest, images, 2], the same place in memory for the same number of images."""
        longest = len(self._views)
        return self._steps[: longest * images * 2].view(longest, images, 2)

    def _iteration(self, images: int) -> None:
        """One iteration of all running batches. Reads and writes this object's tensors alone; never waits."""
        rows, offsets = self._rows[:images], self._offsets
        views = self._views.index_select(0, self._i)[0]
        steps = self._step_table(images).index_select(0, self._i)[0]
        seen = crop_resize(
            self._images, views, rows, offsets, dtype=self._precision.network, backend=self._recover.kernels
        )
        seen.requires_grad_()
        cross_entropy, distance, each = self._losses(seen, offsets, self._labels[:images], self._shares[:images])
        total = cross_entropy + self._recover.r_bn * distance
        (slope,) = torch.autograd.grad((total * self._live).sum() * self._precision.loss_scale, seen)
        gradient = crop_resize_backward(slope, views, offsets, backend=self._recover.kernels)
        if self._precision.loss_scale != 1:
            gradient = gradient / self._precision.loss_scale
        adam_(
            self._images, self._first, self._second, gradient, rows, steps, self._low, self._high,
            self._recover.betas, EPSILON, backend=self._recover.kernels,
        )  # fmt: skip
        self._log.index_copy_(0, self._i, torch.stack([total, cross_entropy, distance]).detach()[None])
        self._each[:images].copy_(each.detach())
        self._i += 1

    def _plain_losses(
        self, seen: Tensor, offsets: Tensor, labels: Tensor, sample_weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Mean cross-entropy and BatchNorm distance of each segment [G], cross-entropy of each image [N]."""
        logits, distance = self._network(seen, offsets)
        each = F.cross_entropy(logits, labels, reduction="none")
        return per_segment(each * sample_weights, offsets), distance, each

    def _note(self, placed: Layout, states: list[State], log: Tensor, each: Tensor, seconds_an_image: float) -> None:
        """What the iterations gave, into the states of the batches."""
        for segment, (run, first) in enumerate(zip(placed.runs, placed.offsets.tolist(), strict=False)):
            if run.scheduled is None:
                continue
            state, t, now = states.pop(0), run.scheduled.t, self._schedule.round(run.scheduled.t)
            values = log[:, :, segment].tolist()
            if not np.isfinite(values).all():
                raise _not_finite("losses", run.scheduled)
            state.cross_entropy[: run.images] = each[first : first + run.images]
            state.curve += [
                (t + i, now, run.images, self._schedule.lr(t + i), self._schedule.smallest_crop(t + i), *row)
                for i, row in enumerate(values)
            ]
            state.spent(now, seconds_an_image * run.images)


def _not_finite(what: str, scheduled: ScheduledBatch) -> UserError:
    return UserError(
        f"{what} of batch {scheduled.batch.id} that are not numbers",
        where=f"from iteration {scheduled.t}",
        remedy="with recover.precision: float16 a smaller recover.loss_scale, and the run goes on from its last"
        " checkpoint; else another precision, in another run folder",
    )
