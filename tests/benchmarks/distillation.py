"""What an epoch of distillation costs: HuBERT base into a student of 2 x 768, beside s3prl's distiller with torchaudio's HuBERT as its teacher.

A step is both models' forward pass, the student's backward pass, clipping and AdamW, on one thread, in float32, on noise. The first epoch computes
the teacher's outputs and writes them to disk; later ones read them. s3prl runs the teacher in every epoch.
``python -m tests.benchmarks.distillation`` prints one JSON line per figure; s3prl is part of the extra ``bench``.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedhubert.compose import compose
from fedhubert.config import Config, ModelConfig
from fedhubert.data.batching import Batch
from fedhubert.disk_cache import DiskCache
from fedhubert.models.hubert import build_hubert
from fedhubert.models.student import init_from_teacher
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.distillation import Distillation
from fedhubert.objectives.spec import build_model
from fedhubert.training.stepping import Trainer
from fedhubert.training.teacher_runner import TeacherRunner
from tests.benchmarks.figures import case_alone, figure, in_turn, memory_mb, peak_mb, run
from tests.benchmarks.step import configuration as teacher_configuration
from tests.benchmarks.step import noise

Step = Callable[[], object]
LAYERS = (4, 8, 12)
CPU = torch.device("cpu")
S3PRL = "s3prl.upstream.distiller.model"
HAVE_S3PRL = importlib.util.find_spec("s3prl") is not None


def configuration(
    teacher: str, student: str, layers: tuple[int, ...], freeze_conv: bool
) -> tuple[Config, Any]:
    """Return the settings of a distillation, and the teacher's model."""
    named = ",".join(map(str, layers))
    config = compose(
        [
            "experiment=research_standard_distillation",
            f"model={student}",
            "client.precision=fp32",
            "data.manifest=none",
            "task.teacher=none",
            f"task.layers=[{named}]",
            f"task.freeze_conv={str(freeze_conv).lower()}",
        ]
    )
    model = teacher_configuration(teacher).model
    return config, build_hubert(model, seed=0)


def crops(config: Config, rows: int, seconds: float) -> Iterator[Batch]:
    """Yield batches that differ: utterances of a first epoch."""
    batch = noise(config, rows, seconds)
    for number in itertools.count():
        yield Batch(batch.waveforms_BN + 1e-3 * number, None, batch.mask_BT, number)


def ours(
    config: Config,
    teacher_model: Any,
    batches: Iterator[Batch],
    device: torch.device,
    cache: DiskCache | None,
) -> Step:
    """Return a step as sites take it, on the next of ``batches``; ``cache``: of the teacher's outputs."""
    state = {name: tensor.cpu() for name, tensor in teacher_model.state_dict().items()}
    teacher = Teacher.cut(teacher_model.config, state, config.task)
    task = config.task.model_copy(update={"teacher_model": teacher.config})
    model = build_model(config.model, task, seed=1)
    init_from_teacher(model, teacher.state, task)
    objective = Distillation(task, TeacherRunner(teacher, task, device, cache))
    trainer = Trainer(model, config.client, task, 0, 0, device, 0.0, objective)
    return lambda: trainer.step([next(batches)], config.client.lr)


def _cache(config: Config, folder: Path) -> DiskCache:
    return DiskCache(folder, config.task.teacher_cache_bytes)


def distiller_settings(
    model: ModelConfig, layers: Sequence[int], final_dim: int
) -> dict[str, object]:
    """Return s3prl's settings of a student of ``model``'s shape that learns ``layers`` of ``final_dim`` values."""
    return {
        "extractor_conv_feature_layers": repr(list(model.conv_layers)),
        "encoder_layers": model.num_layers,
        "encoder_embed_dim": model.embed_dim,
        "encoder_ffn_embed_dim": model.ffn_dim,
        "encoder_attention_heads": model.num_heads,
        "conv_pos": model.pos_conv_kernel,
        "conv_pos_groups": model.pos_conv_groups,
        "feature_grad_mult": 0.1,
        "n_tasks": len(layers),
        "pred_layer_id": list(layers),
        "final_dim": final_dim,
    }


def peer(config: Config, teacher_model: Any, batches: Iterator[Batch]) -> tuple[Step, Step]:
    """Return s3prl's step, and its teacher's part alone."""
    module = importlib.import_module(S3PRL)
    model, task, client = config.model, config.task, config.client
    settings = distiller_settings(model, task.layers, teacher_model.config.embed_dim)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        student = module.DistillerModel(module.DistillerConfig(settings)).train()
    teacher = teacher_model.wav2vec2.eval()
    optimizer = torch.optim.AdamW(
        student.parameters(), client.lr, client.betas, client.eps, client.weight_decay
    )

    def teach(waveforms_BN: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            layers = teacher.extract_features(waveforms_BN)[0]
        return torch.stack([layers[layer - 1] for layer in task.layers], dim=1)

    def step() -> None:
        waveforms_BN = next(batches).waveforms_BN
        optimizer.zero_grad()
        _, _, predicted, _ = student(waveforms_BN, torch.ones_like(waveforms_BN))
        taught = teach(waveforms_BN)
        loss = (
            F.l1_loss(predicted, taught)
            - F.logsigmoid(F.cosine_similarity(predicted, taught, dim=-1)).mean()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), client.grad_clip_norm)
        optimizer.step()

    return step, lambda: teach(next(batches).waveforms_BN)


def case(
    way: str, teacher: str, student: str, layers: str, rows: str, seconds: str
) -> dict[str, float]:
    """Return the peak memory of two steps, above that of both models."""
    config, model = configuration(
        teacher, student, tuple(map(int, layers.split(","))), way == "frozen"
    )
    batches = crops(config, int(rows), float(seconds))
    with tempfile.TemporaryDirectory() as folder:
        if way == "peer":
            step, _ = peer(config, model, batches)
        else:
            step = ours(config, model, batches, CPU, _cache(config, Path(folder)))
            del model
        before = memory_mb()
        step(), step()
        return {"mb": peak_mb() - before}


def compare_time(
    teacher: str, student: str, layers: tuple[int, ...], rows: int, seconds: float, repeats: int
) -> None:
    """Print the CPU seconds of a step of the first epoch and of later ones, beside s3prl's, which are all alike."""
    about, sides = f"{teacher} into {student}, {rows} x {seconds:g} s", {}
    with tempfile.TemporaryDirectory() as folder:
        for name, freeze in (("", False), (", frozen convolutions", True)):
            config, model = configuration(teacher, student, layers, freeze)
            kept = _cache(config, Path(folder) / str(freeze))
            first = crops(config, rows, seconds)
            later = itertools.repeat(next(crops(config, rows, seconds)))
            sides[f"first epoch{name}"] = ours(config, model, first, CPU, kept)
            sides[f"later epochs{name}"] = ours(config, model, later, CPU, kept)
        figures = list(sides)
        if HAVE_S3PRL:
            sides["peer"], sides["teacher"] = peer(config, model, crops(config, rows, seconds))
        else:
            print("s3prl is not installed (pip install -e '.[bench]'): no peer", flush=True)
        took = in_turn(sides, repeats)
    for name in figures:
        figure(f"distillation: CPU, {about}, {name}", took[name], took.get("peer"), "s")
    if HAVE_S3PRL:
        figure(
            f"distillation: CPU, {about}, the teacher alone (not a part of ours in later epochs)",
            took["teacher"],
            None,
            "s",
        )


def compare_memory(
    teacher: str, student: str, layers: tuple[int, ...], rows: int, seconds: float
) -> None:
    """Print the peak memory of the first epoch's steps beside s3prl's."""
    about = f"{teacher} into {student}, {rows} x {seconds:g} s"
    ways = {"whole": "", "frozen": ", frozen convolutions"} | ({"peer": ""} if HAVE_S3PRL else {})
    named = ",".join(map(str, layers))
    peak = {
        way: case_alone(__spec__.name, way, teacher, student, named, rows, seconds)["mb"]
        for way in ways
    }
    for way in ("whole", "frozen"):
        figure(
            f"distillation: memory above the models, {about}, first epoch{ways[way]}",
            peak[way],
            peak.get("peer"),
            "MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="hubert_base")
    parser.add_argument("--student", default="student_768x2")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)

    def compare(given: argparse.Namespace) -> None:
        models = given.teacher, given.student, tuple(given.layers)
        compare_time(*models, given.rows, given.seconds, given.repeats)
        compare_memory(*models, given.rows, given.seconds)

    run(parser, case, compare)


if __name__ == "__main__":
    main()
