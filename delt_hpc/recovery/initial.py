"""Recovery of no iterations: the initial images of a batch are its result."""

import time
from collections.abc import Sequence

import torch

from delt_hpc.context import Context
from delt_hpc.models import teacher
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.objective import Objective
from delt_hpc.recovery.precision import backend_flags
from delt_hpc.run import stop


def keep_initial(context: Context, folders: Sequence[BatchFolder]) -> None:
    """Write the initial images of the batches as their results, with the losses of these images, not augmented.

    The losses are computed in float32. The loss curve has one row, for these losses; its learning rate is 0.
    """
    network, recover = teacher.load(context.run, context.dataset, context.device), context.config.recover
    title = f"recover {folders[0].batch.id}" if len(folders) == 1 else f"recover {len(folders)} batches"
    with (
        context.reporter.bar(title, len(folders)) as bar,
        Objective(network, recover.r_bn, recover.first_bn_weight) as objective,
    ):
        for folder in folders:
            stop.check()
            start = time.perf_counter()
            state = folder.load()
            labels = torch.tensor([entry.class_index for entry in folder.batch.entries], device=context.device)
            with torch.no_grad(), backend_flags(tf32=False):
                loss = objective(state.images.to(context.device), labels)
            state.cross_entropy = loss.cross_entropy_per_image.cpu()
            values = (loss.total.item(), loss.cross_entropy.item(), loss.bn_distance.item())
            state.curve.append((0, 0, len(labels), 0.0, 1.0, *values))
            state.add_seconds(0, time.perf_counter() - start)
            folder.finish(state, wait_seconds=0.0, segments=1)
            bar.advance()
