"""Speeds that nobody has measured on the site: arithmetic over a sustained speed. Each says that it is modelled.

    images/s = sustained operations per second / (operations of a forward pass x passes)

On a GPU the sustained speed is an assumption. On a CPU it is what ConvNet-3 at 32 pixels reached on two cores with AMX.
"""

from delt_hpc.config.schema import Config, Stage
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.launch.figures import Rate
from delt_hpc.launch.profile import Profile

# Operations of a forward pass of one image, 1e9, at that image size; a multiplication and an addition count as two.
FORWARD: dict[str, tuple[float, int]] = {
    "resnet18": (3.63, 224),
    "resnet50": (8.18, 224),
    "resnet101": (15.6, 224),
    "mobilenet_v2": (0.602, 224),
    "resnet18-small-stem": (1.11, 32),
    "resnet101-small-stem": (5.02, 32),
    "mobilenet_v2-small-stem": (0.0489, 32),
    "convnet3": (0.1015, 32),
    "convnet4": (0.4255, 64),
    "convnet5": (5.27, 224),
    "convnet6": (5.28, 224),
}
GPU_SUSTAINED = 7.5e13  # per second, bfloat16: 8 % of the peak of an H100
# Per second and CPU core. A training also computes gradients of weights, and students wait for their augmentations.
CPU_SUSTAINED: dict[Stage, float] = {"squeeze": 2.3e11, "rank": 1.3e11, "recover": 3.7e11, "evaluate": 2.2e11}
# JPEGs of 500 x 375 pixels that a CPU core reads per second (docs/benchmarks/loading-cpu.csv), and the image size from
# which on images are taken for such.
READ_PER_CPU, JPEG_PIXELS = 560.0, 128
# Forward and backward passes of an image, in forward passes. A student's step has a forward pass of the teacher.
PASSES: dict[Stage, int] = {"squeeze": 3, "rank": 1, "recover": 2, "evaluate": 4}
# Training images of the registered data sets.
TRAIN_IMAGES = {
    "digits": 1442,
    "fashion-mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "tiny-imagenet": 100_000,
    "imagenette": 9_469,
    "imagewoof": 9_025,
    "imagenet-100": 126_689,
    "imagenet-1k": 1_281_167,
}


def rates(config: Config, profile: Profile) -> dict[Stage, Rate]:
    """The speed of each stage whose networks are in the table, of one task."""
    return {stage: rate for stage in PASSES if (rate := _rate(config, profile, stage))}


def _rate(config: Config, profile: Profile, stage: Stage) -> Rate | None:
    size = config.data.size or (SPECS[config.data.name].size if config.data.name in SPECS else None)
    networks = config.evaluate.students if stage == "evaluate" else [config.teacher.model]
    forward = [_forward(network, size) for network in networks]
    if not size or not all(forward):
        return None
    operations = PASSES[stage] * sum(forward) / len(forward)
    resources = profile.resources(stage)
    gpu = resources.gpus > 0 and config.machine.device != "cpu"
    sustained = GPU_SUSTAINED if gpu else CPU_SUSTAINED[stage] * resources.cpus
    device = "a GPU" if gpu else f"{resources.cpus} CPU cores"
    text = f"modelled: {operations / 1e9:.2g} GFLOP an image, {sustained / 1e12:.2g} TFLOP/s sustained"
    speed, reading = sustained / operations, READ_PER_CPU * resources.cpus
    if stage in ("squeeze", "rank") and size >= JPEG_PIXELS and reading < speed:
        speed, text = reading, f"modelled: {resources.cpus} CPU cores read {READ_PER_CPU:.0f} images/s each"
    return Rate(speed, device, text, 0)


def _forward(network: str, size: int | None) -> float:
    """Operations of a forward pass; 0 if they are not known. They grow with the number of pixels."""
    if network not in FORWARD or not size:
        return 0.0
    billions, at = FORWARD[network]
    return billions * 1e9 * (size / at) ** 2
