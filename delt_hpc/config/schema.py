"""The typed configuration of a run: one section per stage, every value checked before any work starts.

Options come in two kinds. A `value` changes results: it is part of the identity of everything that was made with it. A
`free` option does not (where files are, how many workers read them, which students are evaluated): it may change
between two calls on the same run folder.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from delt_hpc.config import network_name
from delt_hpc.config.names import MethodName, Name, NetworkName, ProtocolName, TrackerName

Stage = Literal["squeeze", "rank", "select", "recover", "aggregate", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Images = Literal["distilled", "selected", "random", "full"]
Arm = Literal[
    "distilled-soft", "distilled-hard", "selected-soft", "selected-hard", "random-soft", "random-hard",
    "full-soft", "full-hard",
]  # fmt: skip
Loader = Literal["auto", "dali-gpu", "dali-cpu", "torchvision"]
LabelFormat = Literal["float32", "float16", "top_k", "int8"]
OnBad = Literal["raise", "skip"]
Precision = Literal["auto", "float32", "bfloat16"]
ScorePrecision = Literal["auto", "float32", "bfloat16", "float16"]
RecoverPrecision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]

# The upper limits are far above all sensible values; they refuse typing errors that would take for ever.
Positive = Annotated[int, Field(ge=1, le=10**6)]
Iterations = Annotated[int, Field(ge=0, le=10**6)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Crop = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
CropScale = Annotated[list[Crop], Field(min_length=2, max_length=2)]
NotNegative = Annotated[float, Field(ge=0)]
MOSAIC_SIZE = 64  # pixels from which on a mosaic has 2 x 2 crops by default (RDED)
FADRM_SIZES = 200, 224  # the published sizes of images of 224 pixels, in turn


def free(default: Any, description: str) -> Any:
    """An option that changes no result; see the module's docstring."""
    return Field(default, description=description, json_schema_extra={"free": True})


def value(default: Any, description: str) -> Any:
    """An option that is part of the identity of every result made with it; see the module's docstring."""
    return Field(default, description=description)


def later(default: Any, description: str) -> Any:
    """A `value` that is younger than the first run folders: at its default it is left out of the identity.

    So folders that were made before the option existed stay valid.
    """
    return Field(default, description=description, json_schema_extra={"later": True})


def is_free(field: FieldInfo) -> bool:
    return _has(field, "free")


def _has(field: FieldInfo, mark: str) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(mark))


class Section(BaseModel):
    """Unknown keys are errors, and types are strict: `10` is not a string and `"10"` is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    name: Name = value(
        "digits", "a data set that `delt-hpc datasets` lists, or a name of your own for a folder of images"
    )
    root: Path | None = free(None, "folder of the data set; default: data/<name>")
    train: str = value("train", "folder of the training images below `root`")
    val: str = value("val", "folder of the validation images below `root`")
    classes: Annotated[list[str], Field(min_length=1)] | None = value(
        None, "class folders to use, in this order; default: all of them, sorted by name"
    )
    num_classes: Positive | None = value(None, "expected number of classes; default: that of the data set")
    size: Pixels | None = value(None, "height and width of the networks' input, pixels; default: that of the data set")
    resize: Pixels | None = value(
        None,
        "length of the shorter side before the centre crop, pixels; default: that of the data set, or size // 7 * 8",
    )
    mean: list[float] | Literal["measure"] | None = value(
        None, "channel means in 0..1 (red, green, blue), or `measure`; default: those of the data set"
    )
    std: list[float] | Literal["measure"] | None = value(
        None, "channel standard deviations, or `measure`; default: those of the data set"
    )
    on_bad: OnBad = value("raise", "unreadable image files: `raise` an error, or `skip` and list them")
    mirror: bool | None = value(None, "use horizontal flips as augmentation; default: that of the data set")


class Teacher(Section):
    model: NetworkName = value("convnet3", f"the network: {network_name.EXPECTED}")
    source: Literal["train", "torchvision", "checkpoint"] = value(
        "train", "origin of the weights: trained in this run, torchvision's, or a file"
    )
    weights: str | None = value(None, "name of torchvision's weights, e.g. IMAGENET1K_V1 (source: torchvision)")
    checkpoint: Path | None = value(None, "a state dict: .pt, .pth, .tar or .safetensors (source: checkpoint)")


class Squeeze(Section):
    """Training of the teacher; used only with teacher.source: train."""

    epochs: Positive = value(100, "passes over the training images")
    batch_size: Positive = value(128, "images per step")
    lr: Rate = value(0.1, "peak learning rate of SGD with Nesterov momentum; cosine decay to zero")
    warmup_epochs: Annotated[int, Field(ge=0, le=10**6)] = value(5, "epochs of linear warm-up")
    momentum: Probability = value(0.9, "Nesterov momentum of SGD; 0: none")
    weight_decay: NotNegative = value(5e-4, "L2 penalty; not applied to biases and BatchNorm")
    label_smoothing: Probability = value(0.0, "label smoothing of the cross-entropy")
    crop_scale: CropScale = value([0.25, 1.0], "smallest and largest area of the random crop, as a share of the image")
    precision: Precision = value("auto", "autocast type; auto: bfloat16 where the device has it, else float32")
    compile: bool | Literal["auto"] = free("auto", "use torch.compile; auto: on a GPU if the work is worth it")
    validate_every: Positive = free(1, "epochs between two validations; the last epoch is always validated")


class Rank(Section):
    batch_size: Positive = value(256, "images per forward pass")
    precision: ScorePrecision = value("auto", "autocast type; auto: float16 on a GPU, on a CPU bfloat16 or float32")
    csv: Path | None = value(None, "existing ranking to use instead: a CSV with the columns score, img_path, class")
    candidates: Literal["images", "crops"] = later(
        "images",
        "images: rank all training images; crops: rank the best random crop of each of `pool` images of a class, and"
        " select mosaics of crops (RDED)",
    )
    pool: Positive = later(300, "crops: images of each class to take crops of, drawn at random; all if there are fewer")
    crops: Annotated[int, Field(ge=1, le=64)] = later(5, "crops: random square crops of each image")
    crop_scale: CropScale = later([0.08, 1.0], "crops: smallest and largest area of a crop, as a share of the image")
    tiles: Literal[1, 2] | None = later(
        None, "crops: number of crops along each side of a mosaic; default: 2 from 64 pixels on, else 1"
    )

    def tiles_at(self, size: int) -> int:
        """Crops along each side of a selected image of `size` pixels; 1 where whole images are selected."""
        if self.candidates == "images":
            return 1
        return self.tiles or (2 if size >= MOSAIC_SIZE else 1)


class Select(Section):
    ipc: Positive = value(10, "images per class")
    strategy: Literal["medium", "top", "min", "random"] = value(
        "medium", "images to take from a class's ranking: median, highest or lowest scores, or random"
    )


class Recover(Section):
    engine: Literal["packed", "reference"] = value(
        "packed",
        "packed: many batches per pass, fast; reference: one batch at a time, simple, the packed engine's oracle",
    )
    precision: RecoverPrecision = value(
        "auto",
        "precision of the network (images stay in float32); auto: bfloat16 where the device has it, else float32",
    )
    loss_scale: Rate = free(1024.0, "loss scaling factor under float16, against gradient underflow")
    deterministic: bool = value(False, "bit-identical images on a GPU for any number of tasks and restarts (slower)")
    segments: Positive | Literal["auto"] = free("auto", "batches per pass; auto: as many as fit on a GPU, 1 on a CPU")
    kernels: Literal["auto", "triton", "torch"] = free(
        "auto", "implementation of the operators: Triton kernels or plain PyTorch; auto: Triton on a GPU"
    )
    compile: bool | Literal["auto"] = free("auto", "use torch.compile; auto: on a GPU; on a CPU if worth the time")
    graphs: bool | Literal["auto"] = free(
        "auto", "CUDA graphs; auto: on a GPU, and without them if recording fails; true: a failure is an error"
    )
    init: Literal["selected", "noise"] = value("selected", "start from the selected images or from Gaussian noise")
    batching: Literal["by_class", "mixed"] = value(
        "by_class", "by_class: a batch holds whole classes; mixed: a batch holds one image each of different classes"
    )
    batch_size: Positive = value(100, "images that are optimised together")
    iterations: Iterations = value(
        4000, "T: iterations per batch; 0: no recovery, the distilled images are those that it would start from"
    )
    round_iterations: Positive | None = value(500, "RI: iterations per round, a divisor of T; null: one round")
    lr: Rate = value(0.25, "initial learning rate of Adam, on normalised pixels")
    lr_schedule: Literal["run", "per_round"] = value("run", "cosine decay over the whole run, or restarted every round")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = value(
        [0.5, 0.9], "decay rates of Adam's moments"
    )
    adam_steps: Literal["shared", "per_entry"] = value(
        "shared", "Adam's step count: one for the batch, or one per image counted from its entry"
    )
    r_bn: NotNegative = value(0.01, "weight of the BatchNorm statistics term in the loss")
    first_bn_weight: NotNegative = value(10.0, "weight of the first BatchNorm layer; the others have weight 1")
    crop_schedule: Literal["cosine", "linear", "step", "constant"] = value(
        "cosine", "how the smallest crop shrinks from the whole image to min_crop; constant: min_crop throughout"
    )
    min_crop: Crop = value(0.08, "area of the smallest crop, as a share of the image")
    milestone: Annotated[float, Field(gt=0, le=1)] = value(1.0, "share of the run after which min_crop is reached")
    jitter: Annotated[int, Field(ge=0, le=4096)] = value(
        0, "largest random shift (torch.roll) in each direction, pixels"
    )
    blocks: Positive = later(
        1,
        "equal parts of the run, each at an image size of its own; between two of them the images are resized and"
        " merged with those that they started from (FADRM)",
    )
    block_sizes: Annotated[list[Pixels], Field(min_length=1)] | None = later(
        None,
        "image size in each block, pixels, the data set's in the last; default: that of the data set, and with several"
        " blocks at 224 pixels 200 and 224 in turn, as published",
    )
    merge: Annotated[float, Field(gt=0, le=1)] = later(
        1.0, "a in x <- a x + (1 - a) P, for images x at the end of a block and their start P; 1: no merge"
    )
    adam_moments: Literal["per_block", "run"] = later(
        "per_block", "Adam's moments and step count: new in each block, or kept (only where the size does not change)"
    )
    image_format: Literal["jpeg", "png", "jpeg75"] = value(
        "jpeg", "jpeg: quality 95, 4:4:4; png: lossless; jpeg75: as published"
    )
    checkpoint_seconds: NotNegative = free(180.0, "seconds between two checkpoints of unfinished batches")

    @property
    def round_length(self) -> int:
        return (self.round_iterations or self.iterations) if self.iterations else 0

    @property
    def rounds(self) -> int:
        """Number of rounds, M = T / RI; one without iterations."""
        return self.iterations // self.round_length if self.iterations else 1

    def sizes_at(self, size: int) -> tuple[int, ...]:
        """Image size in each block, pixels, for images of `size` pixels."""
        if not self.iterations or self.blocks == 1:
            return (size,)
        if self.block_sizes:
            return tuple(self.block_sizes)
        small, large = FADRM_SIZES
        first = small if size == large else size
        return (*(size if block % 2 else first for block in range(self.blocks - 1)), size)

    def pixel_share(self, size: int) -> float:
        """Pixels that an iteration works on, as a share of those without blocks, on average over the run."""
        sizes = self.sizes_at(size)
        return sum(block**2 for block in sizes) / (len(sizes) * size**2)


class Evaluate(Section):
    students: Annotated[list[NetworkName], Field(min_length=1)] = free(
        ["convnet3"], "networks to train from scratch, named as in teacher.model"
    )
    seeds: Annotated[list[int], Field(min_length=1)] = free(
        [3407, 4663, 2897], "one training per seed, student and arm"
    )
    arms: Annotated[list[Arm], Field(min_length=1)] = free(
        ["distilled-soft", "selected-soft", "random-soft", "distilled-hard"],
        "training images with soft or hard labels: distilled; as many selected or random real ones; or the full data"
        " set, for as many epochs, which takes far longer",
    )
    protocol: ProtocolName = free(
        "delt", "protocol whose preset supplies the defaults of this section (config/recipes/protocols/)"
    )
    epochs: Positive = value(300, "passes over the student's training images")
    batch_size: Positive = value(50, "images per step")
    lr: Rate = value(1e-3, "peak learning rate of AdamW")
    lr_schedule: Literal["cosine_half", "cosine"] = value(
        "cosine_half", "cosine: decay to zero; cosine_half: decay to half the rate, as published"
    )
    weight_decay: NotNegative = value(0.01, "decoupled weight decay of AdamW")
    mix: Literal["cutmix", "mixup", "none"] = value("cutmix", "augmentation that mixes the images of a batch")
    soft_loss: Literal["kl", "mse_ce"] = later(
        "kl",
        "loss of soft labels; kl: KL divergence at the temperature; mse_ce: squared error of the logits + ce_weight x"
        " cross-entropy with the (mixed) class labels",
    )
    ce_weight: NotNegative = later(0.025, "weight of the cross-entropy in mse_ce")
    teacher_statistics: Literal["running", "batch"] = later(
        "running",
        "statistics by which the teacher's BatchNorm layers normalise when it labels; batch: of the batch",
    )
    temperature: Annotated[float, Field(gt=0)] | None = value(
        None, "temperature of the soft labels; default: 4 with mixup, else 20"
    )
    labels: Literal["online", "stored"] = later("online", "soft labels: of the teacher, or of a file (docs/labels.md)")
    label_format: LabelFormat = later("float16", "of stored logits; float32: exact; top_k: the largest of each image")
    label_top_k: Positive = later(10, "top_k: stored logits of each image, fewer than there are classes")
    epochs_kept: Positive | None = later(None, "epochs with draws and labels of their own, then repeated; default: all")
    randaugment: bool = value(True, "apply RandAugment m6 n2 mstd1.0")
    crop_scale: CropScale = value([0.25, 1.0], "smallest and largest area of the random crop, as a share of the image")
    shuffle_patches: Annotated[int, Field(ge=1, le=64)] = later(
        1,
        "strips: cut each image into so many columns and permute them, then the same with rows, before the crop;"
        " 1: not at all (PIL reads the images)",
    )
    mirror: bool = later(True, "horizontal flips, if data.mirror allows them")
    ema_decay: Probability = value(0.99, "decay per step of the averaged (EMA) student")
    precision: Precision = value("auto", "autocast type; auto: bfloat16 where the device has it, else float32")
    compile: bool | Literal["auto"] = free("auto", "use torch.compile; auto: on a GPU if the work is worth it")
    validate_every: Positive = value(10, "epochs between two validations; the last epoch is always validated")

    @property
    def temperature_used(self) -> float:
        return self.temperature or (4.0 if self.mix == "mixup" else 20.0)


class Machine(Section):
    """Where and how the run works. docs/determinism.md says how little results depend on it."""

    device: Literal["auto", "cpu", "cuda"] = free("auto", "auto: a GPU if there is one, else the CPU")
    loader: Loader = free("auto", "image decoder; auto: DALI, on a CPU PIL for training images and non-JPEG files")
    workers: Annotated[int, Field(ge=0, le=1024)] | None = free(
        None, "processes that read images; default: the number of available CPUs, at most 8"
    )
    cache_mib: Annotated[int, Field(ge=0, le=2**24)] = free(
        2048, "memory for keeping decoded images between epochs, MiB"
    )
    tracker: TrackerName = free(
        "none", "where losses and accuracies are also sent during the work: none, tensorboard, package.module:function"
    )


class Config(Section):
    name: Name = free("digits", "name of the run; its folder is runs/<name> unless --run is given")
    method: MethodName = free("delt", "method whose preset supplies the defaults (config/recipes/methods/)")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = value(0, "seed of every random draw")
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
        """An empty section (`rank:` with nothing below it, which YAML reads as null) means its defaults."""
        if not isinstance(given, dict):
            return given
        return {key: {} if body is None and key in SECTIONS else body for key, body in given.items()}

    @property
    def kind_of_images(self) -> Literal["synthetic", "real", "mosaics"]:
        """What the distilled images are: optimised ones, real ones, or mosaics of crops of real ones."""
        if self.recover.iterations:
            return "synthetic"
        return "mosaics" if self.rank.candidates == "crops" else "real"

    def images_of_class(self, size: int) -> int:
        """Real images of each class that the selected images of `size` pixels take: one, or one for each tile."""
        return self.select.ipc * self.rank.tiles_at(size) ** 2

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a whole run: without `rank` and `select` if no selected images are used."""
        uses_ranking = self.recover.init == "selected" or any(arm.startswith("selected") for arm in self.evaluate.arms)
        return tuple(stage for stage in STAGES if uses_ranking or stage not in ("rank", "select"))


SECTIONS: dict[str, type[Section]] = {
    key: field.annotation
    for key, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}

# The sections that a stage's results depend on: its own and those of the stages before it.
_DEPENDS: dict[Stage, tuple[str, ...]] = {
    "squeeze": ("data", "teacher", "squeeze"),
    "rank": ("data", "teacher", "squeeze", "rank"),
    "select": ("data", "teacher", "squeeze", "rank", "select"),
    "recover": ("data", "teacher", "squeeze", "rank", "select", "recover"),
    "aggregate": ("data", "teacher", "squeeze", "rank", "select", "recover"),
    "evaluate": ("data", "teacher", "squeeze", "rank", "select", "recover", "evaluate"),
    "report": ("data", "teacher", "squeeze", "rank", "select", "recover", "evaluate"),
}

# Free options of recovery that change the last bits of images, which `recover.deterministic` promises not to do.
_FIXED_BY_DETERMINISTIC = ("segments", "kernels", "compile")


def identity(config: Config, stage: Stage) -> dict[str, Any]:
    """The options that a stage's results depend on, as a flat dict: {'seed': 0, 'data.name': 'digits', ...}."""
    flat: dict[str, Any] = {"seed": config.seed}
    for key in _DEPENDS[stage]:
        if key == "squeeze" and config.teacher.source != "train":
            continue
        section: Section = getattr(config, key)
        plain = section.model_dump(mode="json")
        fixed = _FIXED_BY_DETERMINISTIC if key == "recover" and config.recover.deterministic else ()
        flat |= {
            f"{key}.{name}": plain[name]
            for name, field in type(section).model_fields.items()
            if (not is_free(field) or name in fixed)
            and not (_has(field, "later") and getattr(section, name) == field.default)
        }
    return flat
