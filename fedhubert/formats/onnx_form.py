"""Export to ONNX: a graph for any length and batch that onnxruntime runs, and a script that needs
nothing else.

The optimiser of torch's exporter runs; matrix products in 8 bits are onnxruntime's dynamic
quantisation (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim

from fedhubert import __version__
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.formats.answers import Answers, answers_of
from fedhubert.formats.programs import (
    Floats,
    ProgramSettings,
    Run,
    agreement,
    encoder_of,
    least_samples,
    made_batches,
    must_be_equal,
)
from fedhubert.formats.source import Source
from fedhubert.models.layers import LayerEncoder

MODEL_FILE, SCRIPT_FILE, ANSWERING = "model.onnx", "infer.py", "infer_answers.py"
WAVEFORMS = "waveforms"
MOST_BYTES = 2_000_000_000
"""Of weights in one file: ONNX's format ends at 2 GiB."""
OPSET = 20
"""The first that has GELU; onnxruntime has it since 1.17."""


def write_onnx(source: Source, folder: Path, settings: ProgramSettings) -> list[str]:
    """Write ``model.onnx`` and ``infer.py`` to an existing folder, of a fine-tuned model also what
    its scores stand for, and return how far the graph is from the model, in words.

    Raises:
        ConfigError: the extra ``onnx`` is not installed; a layer that the model does not have.
        CheckpointError: weights that are no HuBERT's; a graph that computes something else.
    """
    require_onnx()
    encoder = encoder_of(source, settings)
    model = folder / MODEL_FILE
    write_graph(encoder, model)
    made = made_batches(least_samples(source.config))
    audio = [waveform_N[None] for waveform_N in settings.audio]
    batches = [*made, *audio]
    words = ["float32 " + must_be_equal(agreement(encoder, runner(model), batches), batches)]
    if settings.int8:
        quantize(model, model)
        found = agreement(encoder, runner(model), audio or made)
        on = f"{len(audio)} utterances" if audio else "made sounds (--manifest M: on speech)"
        words += [
            f"int8: cosine of its frames with float32's {found.cosine:.5f} in the mean, "
            f"{found.least_cosine:.5f} at least, on {on}"
        ]
    answers = None if settings.layers else answers_of(source)
    _describe(source, model, answers)
    script = Path(__file__).with_name(ANSWERING if answers else SCRIPT_FILE).read_text("utf-8")
    (folder / SCRIPT_FILE).write_text(script, encoding="utf-8")
    return words


def require_onnx() -> None:
    """Raise :class:`ConfigError` that says how to install what ONNX needs, where it is missing."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"ONNX needs {package}: pip install 'fedhubert[onnx]'")


def write_graph(encoder: LayerEncoder, path: Path) -> None:
    """Write the encoder as a graph from ``waveforms`` [batch, samples] to ``layer_N`` [batch,
    frames, width], or ``scores``, in float32.

    Raises:
        CheckpointError: weights that one ONNX file cannot hold.
    """
    num_bytes = sum(parameter.nbytes for parameter in encoder.parameters())
    if num_bytes > MOST_BYTES:
        raise CheckpointError(
            f"{num_bytes / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB: name fewer or "
            "earlier --layers, or use --format torch_export",
            setting="--layers",
        )
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (torch.zeros(2, 16_000),),
            path,
            input_names=[WAVEFORMS],
            output_names=list(encoder.names),
            dynamic_shapes={WAVEFORMS: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the two libraries say: of packages that nothing here needs, and advice on
    images."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    root, before = logging.getLogger(), registration.level

    def no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    registration.setLevel(logging.ERROR)
    root.addFilter(no_advice)
    try:
        yield
    finally:
        registration.setLevel(before)
        root.removeFilter(no_advice)


def quantize(path: Path, out: Path) -> None:
    """Write a graph with its matrix products with weights in 8 bits, its activations' ranges taken
    from each input. Convolutions stay as they are: in 8 bits they are slower."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # in all 8 bits, processors without VNNI add two products to more than they can hold
            reduce_range=True,
        )


def runner(path: Path) -> Run:
    """Return what runs a graph on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(waveforms_BN: Floats) -> list[Floats]:
        return list(session.run(None, {WAVEFORMS: waveforms_BN}))

    return run


def _describe(source: Source, path: Path, answers: Answers | None) -> None:
    """Say in the file what goes in and comes out, which ``infer.py`` reads, and leave out where on
    this machine the exporter found each operation."""
    import onnx

    model = onnx.load(path)
    model.producer_name, model.producer_version = "fedhubert", __version__
    waveforms = model.graph.input[0].type.tensor_type.shape.dim
    named = {dim.dim_param: name for dim, name in zip(waveforms, ("batch", "samples"), strict=True)}
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = named.get(dim.dim_param, "frames")
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    facts = {
        "least_samples": str(least_samples(source.config)),
        "sample_rate_hz": "16000",
        "model": source.config.name,
        "round": str(source.round),
    }
    if answers is not None:
        answers.write(path.parent)
        facts["answers"] = answers.as_json
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
