"""What model cards say of loading, and of padding, for each form."""

from fedhubert.formats import PROGRAMS

LOADING = {
    "huggingface": """\
import torch
from transformers import HubertModel

model = HubertModel.from_pretrained("THIS_FOLDER").eval()
with torch.no_grad():
    hidden_states = model(waveforms, output_hidden_states=True).hidden_states  # waveforms: [batch, samples] at 16 kHz""",  # noqa: E501
    "s3prl": """\
import torch
from s3prl.upstream.hubert.hubconf import hubert_local  # s3prl 0.4.18

upstream = hubert_local("THIS_FOLDER/hubert_s3prl.pt").eval()
with torch.no_grad():
    hidden_states = upstream([waveform])["hidden_states"]  # waveform: [samples] at 16 kHz""",
    "torchaudio": """\
import runpy, torch

model = runpy.run_path("THIS_FOLDER/load.py")["load_model"]()
encoder = getattr(model, "wav2vec2", model)
with torch.no_grad():
    layers, _ = encoder.extract_features(waveforms)  # waveforms: [batch, samples] at 16 kHz""",
    "fairseq": """\
import fairseq

models, cfg, task = fairseq.checkpoint_utils.load_model_ensemble_and_task(["THIS_FOLDER/hubert_fairseq.pt"])""",  # noqa: E501
    "onnx": """\
import numpy as np
import onnxruntime  # or, for files of audio: python infer.py AUDIO...

session = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx", providers=["CPUExecutionProvider"])
layers = session.run(None, {"waveforms": np.asarray(waveforms, np.float32)})  # waveforms: [batch, samples] at 16 kHz""",  # noqa: E501
    "torch_export": """\
import torch

program = torch.export.load("THIS_FOLDER/model.pt2").module()
layers = program(waveforms)  # waveforms: [batch, samples] at 16 kHz""",
}
TUNED = """\
from transformers import pipeline

model = pipeline("{pipeline}", "THIS_FOLDER")
print(model("speech.wav"))  # or an array [samples] at 16 kHz"""
"""Of a fine-tuned model in HuggingFace's form."""
SCORES = {
    "onnx": """\
import numpy as np
import onnxruntime  # or, for files of audio: python infer.py AUDIO...

session = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx", providers=["CPUExecutionProvider"])
(scores,) = session.run(None, {"waveforms": np.asarray(waveforms, np.float32)})  # waveforms: [batch, samples] at 16 kHz""",  # noqa: E501
    "torch_export": """\
import torch

program = torch.export.load("THIS_FOLDER/model.pt2").module()
(scores,) = program(waveforms)  # waveforms: [batch, samples] at 16 kHz""",
}
"""Of a fine-tuned model as a program."""
PADDING_CHANGES = """\
Zeros behind a waveform change **all** of its frames: the norm of the first convolution takes its mean and variance
over the whole input, and no mask can undo that. Give waveforms one by one, or batches of equal length, as in
training."""  # noqa: E501
_MASKED = """\
Zeros behind a waveform change no frame of it as long as {told} how long it is; without that attention sees the zeros."""  # noqa: E501
_ROUNDED = """\
Zeros behind a waveform change its frames a little: fairseq's code, which s3prl has too, rounds the length to frames in
such a way that attention may see one frame behind the end. For the same values as alone give waveforms one by one."""  # noqa: E501
_SEEN = """\
Attention sees zeros behind a waveform, and the program takes no mask. Give waveforms one by one, or batches of equal
length."""  # noqa: E501
PADDING = {
    "huggingface": _MASKED.format(told="`attention_mask` says"),
    "torchaudio": _MASKED.format(told="`lengths` say"),
    "s3prl": _ROUNDED,
    "fairseq": _ROUNDED,
    **dict.fromkeys(PROGRAMS, _SEEN),
}
"""What zeros do where the convolutions have layer norms, which see one frame at a time."""
