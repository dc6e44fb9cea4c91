"""The typed configuration of a run: one section a stage, every value checked before any work starts.

A value marked `free` may change between two calls on the same run folder without changing any result that is already
there (where files lie, how many workers read them, which students are evaluated). Every other value belongs to the
identity of what was made with it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.fields import FieldInfo

Stage = Literal["squeeze", "rank", "select", "recover", "aggregate", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Images = Literal["distilled", "selected", "random"]
Arm = Literal["distilled-soft", "distilled-hard", "selected-soft", "selected-hard", "random-soft", "random-hard"]
Loader = Literal["auto", "dali-gpu", "dali-cpu", "torchvision"]
OnBad = Literal["raise", "skip"]
Precision = Literal["auto", "float32", "bfloat16"]
ScorePrecision = Literal["auto", "float32", "bfloat16", "float16"]
RecoverPrecision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Crop = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def free(default: Any, description: str) -> Any:
    """A field that belongs to no result's identity."""
    return Field(default, description=description, json_schema_extra={"free": True})


def value(default: Any, description: str) -> Any:
    """A field that belongs to the identity of every result made with it."""
    return Field(default, description=description)


def is_free(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("free"))


class Section(BaseModel):
    """Unknown keys are errors; `10` is no string and `"10"` no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    name: Name = value("digits", "a registered data set (`delt-hpc datasets`), or a name of your own for a folder")
    root: Path | None = free(None, "folder that holds the data set; default: data/<name>")
    train: str = value("train", "folder of the training images below `root`")
    val: str = value("val", "folder of the validation images below `root`")
    classes: Annotated[list[str], Field(min_length=1)] | None = value(
        None, "class folders to use, in this order; default: all, sorted"
    )
    num_classes: Positive | None = value(None, "how many classes there must be; default: the data set's own")
    size: Positive | None = value(None, "height and width the networks see, pixels; default: the data set's own")
    resize: Positive | None = value(
        None, "shorter side before the centre crop, pixels; default: the data set's own, or size // 7 * 8"
    )
    mean: list[float] | Literal["measure"] | None = value(None, "channel means, or `measure`")
    std: list[float] | Literal["measure"] | None = value(None, "channel standard deviations, or `measure`")
    on_bad: OnBad = value("raise", "unreadable files: an error, or left out and listed")
    mirror: bool | None = value(None, "does a mirrored image keep its class; default: the data set's own")


class Teacher(Section):
    model: Name = value("convnet3", "network (`delt-hpc models`)")
    source: Literal["train", "torchvision", "checkpoint"] = value("train", "where its weights come from")
    weights: str | None = value(None, "torchvision's name for them, e.g. IMAGENET1K_V1")
    checkpoint: Path | None = value(None, "a state dict: .pt, .pth, .tar or .safetensors")


class Squeeze(Section):
    """Training of the teacher; used where teacher.source is `train`."""

    epochs: Positive = value(100, "passes over the training images")
    batch_size: Positive = value(128, "images a step")
    lr: Rate = value(0.1, "peak learning rate of SGD with Nesterov momentum, cosine to zero")
    warmup_epochs: Annotated[int, Field(ge=0)] = value(5, "epochs of linear warm-up")
    momentum: Probability = value(0.9, "momentum")
    weight_decay: NotNegative = value(5e-4, "L2 decay")
    label_smoothing: Probability = value(0.0, "label smoothing")
    crop_scale: Annotated[list[Crop], Field(min_length=2, max_length=2)] = value(
        [0.25, 1.0], "area of the random crop, least and most"
    )
    precision: Precision = value("auto", "autocast type; auto: bfloat16 where the device has it, else float32")
    validate_every: Positive = free(1, "epochs between two validations")


class Rank(Section):
    batch_size: Positive = value(256, "images a forward pass")
    precision: ScorePrecision = value("auto", "autocast type; auto: float16 on a GPU, float32 on a CPU")
    csv: Path | None = value(None, "an existing ranking to use: columns score, img_path, class")


class Select(Section):
    ipc: Positive = value(10, "images per class")
    strategy: Literal["medium", "top", "min", "random"] = value("medium", "which images of a class's ranking")


class Recover(Section):
    engine: Literal["packed", "reference"] = value("packed", "packed: many batches in a pass; reference: its oracle")
    precision: RecoverPrecision = value(
        "auto", "of the network, images stay in float32; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    loss_scale: Rate = free(1024.0, "factor of the loss under float16, so that small gradients are not lost")
    deterministic: bool = value(False, "the same bytes for any number of tasks and restarts on a GPU too (slower)")
    segments: Positive | Literal["auto"] = free("auto", "batches in a pass; auto: what fits in a GPU, one on a CPU")
    kernels: Literal["auto", "fused", "plain"] = free("auto", "Triton kernels, or plain PyTorch; auto: Triton on a GPU")
    compile: bool | Literal["auto"] = free("auto", "torch.compile of the network; auto: on a GPU")
    init: Literal["selected", "noise"] = value("selected", "start from the selected images or from Gaussian noise")
    batching: Literal["by_class", "mixed"] = value("by_class", "whole classes a batch, or one image of each class")
    batch_size: Positive = value(100, "images optimised together")
    iterations: Positive = value(4000, "T: iterations of a batch")
    round_iterations: Positive | None = value(500, "RI: iterations between two entries of images; null: one round")
    lr: Rate = value(0.25, "lr0 of Adam on normalised pixels")
    lr_schedule: Literal["run", "per_round"] = value("run", "one cosine over the run, or one a round")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = value([0.5, 0.9], "Adam's decay rates")
    adam_steps: Literal["shared", "per_entry"] = value("shared", "step count of the batch, or since an image's entry")
    r_bn: NotNegative = value(0.01, "weight of the BatchNorm statistics in the loss")
    first_bn_weight: NotNegative = value(10.0, "weight of the first BatchNorm layer against the others")
    crop_schedule: Literal["cosine", "linear", "step", "constant"] = value("cosine", "from whole images to small crops")
    min_crop: Crop = value(0.08, "smallest crop, share of the area")
    milestone: Annotated[float, Field(gt=0, le=1)] = value(1.0, "share of the run after which crops are smallest")
    jitter: Annotated[int, Field(ge=0)] = value(0, "largest roll in each direction, pixels")
    image_format: Literal["jpeg", "png", "jpeg75"] = value("jpeg", "quality 95 4:4:4; lossless; published quality 75")
    checkpoint_seconds: NotNegative = free(180.0, "seconds between two checkpoints of the batches on their way")

    @property
    def round_length(self) -> int:
        return self.round_iterations or self.iterations

    @property
    def rounds(self) -> int:
        """M = T / RI"""
        return self.iterations // self.round_length

    def compiles_on(self, device: str) -> bool:
        """Is the network compiled on a device of that type?"""
        return device == "cuda" if self.compile == "auto" else self.compile


class Evaluate(Section):
    students: Annotated[list[Name], Field(min_length=1)] = free(["convnet3"], "networks trained from scratch")
    seeds: Annotated[list[int], Field(min_length=1)] = free([3407, 4663, 2897], "one training each")
    arms: Annotated[list[Arm], Field(min_length=1)] = free(
        ["distilled-soft", "random-soft", "distilled-hard"], "which images with which labels"
    )
    epochs: Positive = value(300, "passes over the images")
    batch_size: Positive = value(50, "images a step")
    lr: Rate = value(1e-3, "peak learning rate of AdamW")
    lr_schedule: Literal["cosine_half", "cosine"] = value("cosine_half", "cos(pi t / 2E) ends at half; cosine at zero")
    weight_decay: NotNegative = value(0.01, "decoupled decay")
    mix: Literal["cutmix", "mixup", "none"] = value("cutmix", "mixing of a batch's images")
    temperature: Annotated[float, Field(gt=0)] | None = value(None, "of the soft labels; default: mixup 4, else 20")
    randaugment: bool = value(True, "RandAugment m6 n2 mstd1.0")
    crop_scale: Annotated[list[Crop], Field(min_length=2, max_length=2)] = value(
        [0.25, 1.0], "area of the random crop, least and most"
    )
    ema_decay: Probability = value(0.99, "decay of the averaged student")
    precision: Precision = value("auto", "autocast type; auto: bfloat16 where the device has it, else float32")
    validate_every: Positive = value(10, "epochs between two validations; the last epoch is always validated")


class Machine(Section):
    """Where and how it runs; no result depends on it beyond what docs/determinism.md says."""

    device: Literal["auto", "cpu", "cuda"] = free("auto", "auto: a GPU where there is one")
    loader: Loader = free("auto", "what reads images; auto: DALI, but PIL for training images on a CPU")
    workers: Annotated[int, Field(ge=0)] | None = free(None, "processes that read images; default: the CPUs, 8 at most")
    cache_mib: Annotated[int, Field(ge=0)] = free(2048, "decoded images kept in memory up to this size, MiB")


class Config(Section):
    name: Name = free("digits", "the run's name; its folder is runs/<name> unless given")
    method: Literal["delt", "cda", "sre2l"] = free("delt", "preset under the other values (recipes/methods)")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = value(0, "every random draw is a function of it")
    data: Data = Data()
    teacher: Teacher = Teacher()
    squeeze: Squeeze = Squeeze()
    rank: Rank = Rank()
    select: Select = Select()
    recover: Recover = Recover()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, given: Any) -> Any:
        """`rank:` with nothing below it is YAML's null and means the defaults."""
        if not isinstance(given, dict):
            return given
        return {key: {} if body is None and key in SECTIONS else body for key, body in given.items()}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What a whole run needs: nothing is ranked where no real image is used."""
        uses_ranking = self.recover.init == "selected" or any(arm.startswith("selected") for arm in self.evaluate.arms)
        return tuple(stage for stage in STAGES if uses_ranking or stage not in ("rank", "select"))


SECTIONS: dict[str, type[Section]] = {
    key: field.annotation
    for key, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}

# Which sections a stage's results depend on, its own and those of the stages before it.
_DEPENDS: dict[Stage, tuple[str, ...]] = {
    "squeeze": ("data", "teacher", "squeeze"),
    "rank": ("data", "teacher", "squeeze", "rank"),
    "select": ("data", "teacher", "squeeze", "rank", "select"),
    "recover": ("data", "teacher", "squeeze", "rank", "select", "recover"),
    "aggregate": ("data", "teacher", "squeeze", "rank", "select", "recover"),
    "evaluate": ("data", "teacher", "squeeze", "rank", "select", "recover", "evaluate"),
    "report": ("data", "teacher", "squeeze", "rank", "select", "recover", "evaluate"),
}


def identity(config: Config, stage: Stage) -> dict[str, Any]:
    """The values that a stage's results depend on, flat: {'seed': 0, 'data.name': 'digits', ...}."""
    flat: dict[str, Any] = {"seed": config.seed}
    for key in _DEPENDS[stage]:
        if key == "squeeze" and config.teacher.source != "train":
            continue
        section: Section = getattr(config, key)
        plain = section.model_dump(mode="json")
        flat |= {
            f"{key}.{name}": plain[name] for name, field in type(section).model_fields.items() if not is_free(field)
        }
    return flat
