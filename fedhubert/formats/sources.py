"""Finding out what a given path or name is, and reading its weights and settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError, quoted
from fedhubert.formats import PROGRAMS
from fedhubert.formats.foreign_settings import (
    Fields,
    from_fairseq,
    from_huggingface,
    from_torchaudio,
)
from fedhubert.formats.hub import HUB, fetched, nothing_at
from fedhubert.formats.reading import (
    CONTAINERS,
    is_shard,
    is_state,
    read_json,
    read_weights,
    shards,
)
from fedhubert.formats.round_file import (
    checkpoint_folders,
    find_checkpoint,
    load_checkpoint,
    rounds_in,
)
from fedhubert.formats.torchaudio_form import FACTORY_FILE, WEIGHTS_FILE

BUNDLE = "torchaudio:"
"""What the name of one of torchaudio's bundles begins with."""
_HUGGINGFACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


@dataclass(frozen=True)
class ImportSource:
    """What a file, folder or bundle holds.

    Attributes:
        format: ``fedhubert``, ``huggingface``, ``s3prl``, ``fairseq``, ``torchaudio`` or
            ``weights`` (a state dict, with no word on its sizes).
        where: What messages call it.
        tensors: Its weights, under its own names.
        fields: The fields of ``ModelConfig`` that it states.
        normalize: Whether it asks for waveforms of zero mean and unit variance, None where it does
            not say.
    """

    format: str
    where: str
    tensors: Mapping[str, Tensor]
    fields: Fields = field(default_factory=dict)
    normalize: bool | None = None


def is_name(source: str | Path) -> bool:
    """Whether ``source`` names a model that is fetched, and no path."""
    return str(source).startswith((BUNDLE, HUB))


def find(source: str | Path) -> ImportSource:
    """Read ``source``: a folder, a file, ``hf:NAME`` for a model of the HuggingFace hub, or
    ``torchaudio:NAME`` for one of torchaudio's bundles.

    Raises:
        CheckpointError: nothing there, or nothing that is known; the message says what was looked
            for.
    """
    if str(source).startswith(BUNDLE):
        return _bundle(str(source).removeprefix(BUNDLE))
    if str(source).startswith(HUB):
        return _folder(fetched(str(source).removeprefix(HUB)))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise CheckpointError(nothing_at(path))
    beside = [(path.parent / name).is_file() for name in ("config.json", FACTORY_FILE)]
    if any(beside) and (path.name in _HUGGINGFACE_WEIGHTS or is_shard(path)):
        return _folder(path.parent)
    return _file(path)


def _folder(path: Path) -> ImportSource:
    if (path / FACTORY_FILE).is_file():
        description = read_json(path / FACTORY_FILE)
        arguments = description.get("arguments")
        fields = from_torchaudio(
            arguments if isinstance(arguments, dict) else {}, str(path / FACTORY_FILE)
        )
        return ImportSource(
            "torchaudio",
            str(path),
            _state(read_weights(path / WEIGHTS_FILE), str(path / WEIGHTS_FILE)),
            fields,
            False,
        )
    if (path / "config.json").is_file():
        return _huggingface(path)
    if any(rounds_in(folder) for folder in checkpoint_folders(path)):
        return _file(find_checkpoint(path))
    programs = [path / name for _, name in PROGRAMS.values() if (path / name).is_file()]
    files = programs or sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(files) == 1:
        return _file(files[0])
    raise CheckpointError(
        f"{path} has no config.json (HuggingFace), no {FACTORY_FILE} (torchaudio), no "
        "round_NNN_checkpoint.pt and not one single weight file "
        f"({len(files)} found): name the file"
    )


def _huggingface(path: Path) -> ImportSource:
    settings = read_json(path / "config.json")
    fields = from_huggingface(settings, str(path / "config.json"))
    weights = next((path / name for name in _HUGGINGFACE_WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        others = [file.name for file in path.iterdir() if file.suffix in (".h5", ".msgpack")]
        raise CheckpointError(
            f"{path} has a config.json, but none of {', '.join(_HUGGINGFACE_WEIGHTS)}"
            + (f" ({', '.join(sorted(others))}: save the model by PyTorch)" if others else "")
        )
    state = shards(weights) if weights.suffix == ".json" else read_weights(weights)
    preprocessor = path / "preprocessor_config.json"
    normalize = read_json(preprocessor).get("do_normalize") if preprocessor.is_file() else None
    return ImportSource("huggingface", str(path), _state(state, str(weights)), fields, normalize)


def _file(path: Path) -> ImportSource:
    content, where = read_weights(path), str(path)
    if is_state(content):
        return ImportSource("weights", where, content)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{where} holds a {type(content).__name__}, not the weights of a model"
        )
    if "Distiller" in content:
        raise CheckpointError(
            f"{where} is a DistilHuBERT of s3prl's distiller: it has no LayerNorm before the "
            "projection, which fedhubert's HuBERT has, so "
            "it cannot be imported"
        )
    if (
        "format_version" in content
        and isinstance(content.get("config"), dict)
        and is_state(content.get("model"))
    ):
        return _round(load_checkpoint(path), where)  # read again, with its digests checked
    if is_state(content.get("model_weight")):
        task = content.get("task_cfg")
        return ImportSource(
            "s3prl",
            where,
            content["model_weight"],
            *_fairseq(content.get("model_cfg"), task, where),
        )
    if is_state(content.get("model")):
        return ImportSource(
            "fairseq", where, content["model"], *_fairseq(*_fairseq_settings(content), where)
        )
    state = next((content[name] for name in CONTAINERS if is_state(content.get(name))), None)
    if state is not None:
        return ImportSource("weights", where, state)
    held = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise CheckpointError(
        f"{where} holds {held}: no state dict of tensors, nor one under {', '.join(CONTAINERS)}"
    )


def _round(content: Mapping[str, Any], where: str) -> ImportSource:
    """One of this package's rounds: the settings go through the same validation as a configuration
    file."""
    settings = content["config"].get("model")
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{where}: its config has no `model`, which says how the weights are shaped"
        )
    # heads of further sets of labels stay behind
    wanted = ModelConfig.model_fields.keys() - {"other_classes"}
    known = {name: value for name, value in settings.items() if name in wanted}
    return ImportSource("fedhubert", where, content["model"], known, False)


def _fairseq_settings(content: Mapping[str, Any]) -> tuple[Any, Any]:
    """Settings of model and task: in ``cfg``, or flat in ``args`` in older files."""
    cfg = content.get("cfg")
    if isinstance(cfg, dict):
        return cfg.get("model"), cfg.get("task")
    return content.get("args"), content.get("args")


def _pretrained_settings(model: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Settings of model and task that a fine-tuned model's encoder was pretrained with, in
    ``w2v_args``: its own hold what fine-tuning changed, and lack heads and norms.

    Raises:
        CheckpointError: they are not in it.
    """
    kept = model.get("w2v_args")
    if isinstance(kept, Mapping):
        whole = kept.get("cfg")
        inner: Mapping[str, Any] = whole if isinstance(whole, Mapping) else kept
        settings = inner.get("model", inner)
        if isinstance(settings, Mapping) and "encoder_layers" in settings:
            return settings, inner.get("task", inner)
    raise CheckpointError(
        f"{where} is fine-tuned by fairseq, and the settings of its encoder (w2v_args) are not in "
        "it: number of heads, pre- or post-norm "
        "would be guesses. Name the pretrained file that it was made from"
        + (f" ({quoted(model['w2v_path'])})" if model.get("w2v_path") else "")
        + ", or save its `model` alone by torch.save: what shapes do not tell is then taken from "
        "model.* of the run"
    )


def _fairseq(model: Any, task: Any, where: str) -> tuple[Fields, bool | None]:
    if isinstance(model, dict) and ("w2v_args" in model or "w2v_path" in model):
        model, pretraining = _pretrained_settings(model, where)
        if not isinstance(task, dict) or "normalize" not in task:
            task = pretraining
    fields = from_fairseq(model, where) if isinstance(model, dict) and model else {}
    return fields, bool(task["normalize"]) if isinstance(
        task, dict
    ) and "normalize" in task else None


def _state(values: Any, where: str) -> Mapping[str, Tensor]:
    if not is_state(values):
        raise CheckpointError(f"{where} holds no state dict of tensors")
    state: Mapping[str, Tensor] = values
    return state


def _bundle(name: str) -> ImportSource:
    """One of torchaudio's pretrained HuBERTs; torchaudio downloads it, or finds it in torch.hub's
    cache."""
    import torchaudio.pipelines

    bundle, where = getattr(torchaudio.pipelines, name, None), f"{BUNDLE}{name}"
    parameters = getattr(bundle, "_params", None)
    if bundle is None or not isinstance(parameters, dict):
        known = [
            known
            for known in dir(torchaudio.pipelines)
            if known.startswith("HUBERT_") and "ASR" not in known
        ]
        raise CheckpointError(
            f"{where} is no bundle of an encoder in torchaudio.pipelines; there are "
            f"{', '.join(known)}"
        )
    fields = from_torchaudio(parameters, where)
    try:
        state = bundle.get_model().state_dict()
    except OSError as error:  # URLError is one
        raise CheckpointError(
            f"{where} cannot be fetched ({error}): download it where there is a network, and name "
            "the file"
        ) from None
    return ImportSource(
        "torchaudio", where, state, fields, bool(getattr(bundle, "_normalize_waveform", False))
    )
