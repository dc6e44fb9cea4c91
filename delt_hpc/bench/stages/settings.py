"""The settings that are compared, and the workload of each."""

from delt_hpc.bench.stages.recovery import PackedRecovery, ReferenceRecovery
from delt_hpc.bench.stages.scoring import ScoringStep
from delt_hpc.bench.stages.training import TrainingStep
from delt_hpc.bench.stages.workload import BenchStage, Case, Settings, Workload

COMPARED: dict[BenchStage, tuple[Settings, ...]] = {
    "squeeze": ("plain",),
    "rank": ("plain",),
    "recover": ("reference", "uncompiled"),
    "evaluate": ("plain",),
}
"""What the default settings of a stage are compared with. The first is the baseline of all ratios. The last is also
measured in a process that returns freed memory to the kernel."""


def start(case: Case, settings: Settings) -> Workload:
    if case.stage == "rank":
        return ScoringStep(case, settings)
    if case.stage == "recover":
        return ReferenceRecovery(case, settings) if settings == "reference" else PackedRecovery(case, settings)
    return TrainingStep(case, settings)
