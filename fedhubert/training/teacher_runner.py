"""What the teacher says of a batch: computed crop by crop, rounded to float16, and kept on the site
if the task wants it.

A crop goes through the teacher alone: padding would change what the group norm sees, and batch
mates can change the last bits of matrix products. So what is kept is what would be computed, and
results do not depend on the cache.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fedhubert.disk_cache import DiskCache
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.models.teacher import TaughtTask, Teacher
from fedhubert.objectives.objective import TeacherOutput

_CONV, _LOGITS, _LAYER = "conv", "logits", "layer."


class TeacherRunner:
    """A teacher on a device (see :class:`fedhubert.objectives.objective.TeacherSource`).

    Args:
        teacher: Not kept; the model built from it is.
        task: Which outputs it is asked for: layers; logits; and the convolutions' features, where
            the student shares them frozen.
        cache: Where outputs are kept, if anywhere.
    """

    def __init__(
        self,
        teacher: Teacher,
        task: TaughtTask,
        device: torch.device,
        cache: DiskCache | None = None,
    ) -> None:
        self.model: HubertModel = teacher.build(device, task.teacher_precision)
        self.cache = cache
        self.computed = 0
        """Crops that went through the teacher: those that were not in the cache."""
        self._layers = task.teacher_layers
        self._wants_logits = task.needs_teacher_head
        self._wants_conv = task.freeze_conv
        about = (
            teacher.key,
            task.teacher_precision,
            self._layers,
            self._wants_logits,
            self._wants_conv,
            device.type,
            torch.__version__,
        )
        self._about = repr(about).encode()

    def __call__(self, waveforms_BN: Tensor, /) -> TeacherOutput:
        """Return the teacher's outputs for crops of equal length.

        Raises:
            TrainingError: an output that float16 cannot hold.
        """
        if not (self._layers or self._wants_logits or self._wants_conv):
            return TeacherOutput({})
        rows = self._rows(waveforms_BN)
        # Under the student's bf16 autocast, torch refuses to stack float16.
        with torch.autocast(waveforms_BN.device.type, enabled=False):
            outputs = {
                name: _stacked([row[name] for row in rows], waveforms_BN.device).float()
                for name in rows[0]
            }
        layers = {layer: outputs[f"{_LAYER}{layer}"] for layer in self._layers}
        return TeacherOutput(layers, outputs.get(_LOGITS), outputs.get(_CONV))

    def _rows(self, waveforms_BN: Tensor) -> list[Mapping[str, Tensor]]:
        """Return each crop's outputs, from the cache or computed; a GPU is waited for once for the
        samples and once for the outputs."""
        if self.cache is None:
            computed = [self._compute(waveform_N) for waveform_N in waveforms_BN]
            _check_finite(computed)
            return list(computed)
        keys = [self._key(waveform_N) for waveform_N in waveforms_BN.detach().cpu()]
        rows: dict[str, Mapping[str, Tensor] | None] = {key: self.cache.get(key) for key in keys}
        missing = {
            key: self._compute(waveforms_BN[keys.index(key)])
            for key, row in rows.items()
            if row is None
        }
        _check_finite(list(missing.values()))
        for key, row in missing.items():
            self.cache.put(key, row)
        found = {key: missing[key] if row is None else row for key, row in rows.items()}
        return [found[key] for key in keys]

    def _key(self, waveform_N: Tensor) -> str:
        """Name a crop by its samples (on the CPU), and by all that its outputs depend on."""
        digest = hashlib.blake2b(self._about, digest_size=20)
        digest.update(f"{torch.get_num_threads()}\0{waveform_N.numel()}\0".encode())
        digest.update(waveform_N.contiguous().numpy().data)
        return digest.hexdigest()

    def _compute(self, waveform_N: Tensor) -> dict[str, Tensor]:
        """Return the crop's outputs [T, ...] in float16."""
        self.computed += 1
        dtype = next(self.model.parameters()).dtype
        with torch.no_grad(), torch.autocast(waveform_N.device.type, enabled=False):
            conv_1TD = self.model.convolve(waveform_N[None].to(dtype))
            outputs = {_CONV: conv_1TD} if self._wants_conv else {}
            if self._layers or self._wants_logits:
                last_1TD, kept = self.model.transform(self.model.project(conv_1TD), self._layers)
                outputs |= {f"{_LAYER}{layer}": kept[layer] for layer in self._layers}
                if self._wants_logits:
                    outputs[_LOGITS] = self.model.logit_generator(last_1TD[0])[None]
            return {name: output[0].to(torch.float16) for name, output in outputs.items()}


def _stacked(rows: list[Tensor], device: torch.device) -> Tensor:
    """Return rows of equal shape as one tensor on ``device``; rows that all come from the disk go
    there in one copy."""
    if any(row.device.type != "cpu" for row in rows):
        return torch.stack([row.to(device, non_blocking=True) for row in rows])
    stacked = torch.stack(rows)
    return (stacked.pin_memory() if device.type == "cuda" else stacked).to(
        device, non_blocking=True
    )


def _check_finite(rows: list[dict[str, Tensor]]) -> None:
    """Raise :class:`TrainingError` naming the first output that float16 cannot hold; one wait for
    all of them."""
    named = [(name, torch.isfinite(output).all()) for row in rows for name, output in row.items()]
    if not named:
        return
    for (name, _), finite in zip(
        named, torch.stack([finite for _, finite in named]).tolist(), strict=True
    ):
        if not finite:
            raise TrainingError(
                f"the teacher's {name} has values that float16 cannot hold: use another teacher",
                setting="task.teacher",
            )
