"""Train a network on the distilled images of this folder and test it on real images.

    python train.py --val FOLDER    # an ImageFolder of real images: FOLDER/<class>/*

It needs PyTorch, torchvision and safetensors, and pyarrow for images in Parquet. protocol.json has the settings.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dataset import Distilled, validation_set
from model import build
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_teacher(protocol: dict[str, Any]) -> nn.Module:
    facts, data = protocol["teacher"], protocol["data"]
    teacher: nn.Module = build(facts["model"], data["classes"], data["size"])
    teacher.load_state_dict({**teacher.state_dict(), **load_file(ROOT / facts["file"])})
    teacher.to(DEVICE).eval().requires_grad_(False)
    if protocol["training"]["teacher_statistics"] == "batch":  # BatchNorm normalises by the batch
        for layer in teacher.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
                layer.track_running_stats = False
    return teacher


def autocast(settings: dict[str, Any]) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=settings["precision"] == "bfloat16")


def accuracy(network: nn.Module, images: DataLoader[Any], settings: dict[str, Any]) -> float:
    """Top-1 accuracy in per cent."""
    correct = total = 0
    network.eval()
    with torch.inference_mode(), autocast(settings):
        for batch, labels in images:
            correct += int((network(batch.to(DEVICE)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return 100 * correct / total


def soft_loss(output: Tensor, target: Tensor, labels: Tensor, settings: dict[str, Any]) -> Tensor:
    """Loss of the student's logits against the teacher's, and in `mse_ce` also against the (mixed) labels."""
    if settings["soft_loss"] == "mse_ce":
        hard: Tensor = settings["ce_weight"] * F.cross_entropy(output.float(), labels)
        return F.mse_loss(output.float(), target.float()) + hard
    student, teacher = (F.log_softmax(logits.float() / settings["temperature"], 1) for logits in (output, target))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def train(student: str, seed: int, labels: str, protocol: dict[str, Any], val: DataLoader[Any], workers: int) -> float:
    """Train from scratch and return the accuracy after the last epoch."""
    data, settings = protocol["data"], protocol["training"]
    torch.manual_seed(seed)
    random.seed(seed)
    network = build(student, data["classes"], data["size"]).to(DEVICE)
    teacher = load_teacher(protocol) if labels == "teacher" else None
    images = Distilled(ROOT, protocol, stored=labels == "stored")
    optimizer = torch.optim.AdamW(network.parameters(), settings["lr"], weight_decay=settings["weight_decay"])
    kind = {"cutmix": v2.CutMix, "mixup": v2.MixUp}.get(settings["mix"]) if labels != "stored" else None
    mix = kind(num_classes=data["classes"]) if kind else None
    span = settings["epochs"] * (2 if settings["lr_schedule"] == "cosine_half" else 1)
    single = len(images) % settings["batch_size"] == 1  # BatchNorm cannot be trained on one image
    for epoch in range(settings["epochs"]):
        images.start(epoch)
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * (1 + math.cos(math.pi * epoch / span)) / 2
        network.train()
        for batch in DataLoader(images, settings["batch_size"], shuffle=True, num_workers=workers, drop_last=single):
            inputs, targets = (part.to(DEVICE) for part in batch)
            if mix:
                inputs, targets = mix(inputs, targets)
            with autocast(settings):
                output = network(inputs)
                logits = teacher(inputs) if teacher else targets
            hard = labels == "hard"
            loss = F.cross_entropy(output, targets) if hard else soft_loss(output, logits, targets, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return accuracy(network, val, settings)


def shown(mean: float, std: float | None) -> str:
    return f"{mean:.2f} %" if std is None else f"{mean:.2f} ± {std:.2f} %"


def main() -> None:
    protocol = json.loads((ROOT / "protocol.json").read_text(encoding="utf-8"))
    available = [kind for kind, there in (("teacher", protocol["teacher"]), ("stored", protocol["labels"])) if there]
    parser = argparse.ArgumentParser(description="Train on the distilled images and test on real ones.")
    parser.add_argument("--val", type=Path, required=True, help="ImageFolder of real images")
    parser.add_argument("--student", default=protocol["training"]["students"][0], help="network to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=protocol["training"]["seeds"])
    parser.add_argument("--labels", choices=[*available, "hard"], default=[*available, "hard"][0])
    parser.add_argument("--epochs", type=int, default=protocol["training"]["epochs"])
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    given = parser.parse_args()
    protocol["training"]["epochs"] = given.epochs
    val = DataLoader(validation_set(ROOT, given.val, protocol["data"]), 256, num_workers=given.workers)
    scores = []
    for seed in given.seeds:
        scores.append(train(given.student, seed, given.labels, protocol, val, given.workers))
        print(f"seed {seed}: {scores[-1]:.2f} % top-1", flush=True)
    result = shown(statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None)
    print(f"{given.student}, {given.labels} labels, {len(scores)} seed{'s' if len(scores) > 1 else ''}: {result}")
    for row in protocol["results"]:
        if row["student"] == given.student:
            print(f"reported, {row['arm']}: {shown(row['mean'], row['std'])}")


if __name__ == "__main__":
    main()
