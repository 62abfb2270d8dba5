"""Audio whose labels can be heard: words that are tones, said one after the other."""

from pathlib import Path

import numpy as np
import soundfile

from tests.integration.conftest import SMALL

PITCHES_HZ = {"low": 220.0, "mid": 700.0, "high": 2200.0}
LABELS = "[low,mid,high]"
RUN = [
    *("experiment=demo_fedavg", *SMALL, "task.feature_penalty=0", "task.mask_probability=0"),
    *("client.validation_batches=0", "data.partition.validation_fraction=0.34"),
    *("federated.client_fraction=1", "federated.num_rounds=2", "client.lr=0.01"),
    *("model.dropout=0", "model.layer_drop=0"),
]
CLASSIFY = ["task=classify", "task.label_column=pitch", f"task.labels={LABELS}"]
CTC = ["task=ctc", "task.text_column=text", "task.vocabulary=lowmidhg"]


def write_words(root: Path, speakers: int = 3, utterances: int = 9) -> Path:
    """Write ``utterances`` of each speaker, a tone of 0.6 to 1.4 s each, and return the manifest.

    ``pitch`` has the tone's name, ``text`` the same as a sentence; every eighth row has neither.
    """
    rng = np.random.default_rng(1)
    lines = ["path,speaker,num_samples,sample_rate,pitch,text"]
    for speaker in range(speakers):
        for number in range(utterances):
            word = list(PITCHES_HZ)[number % len(PITCHES_HZ)]
            count = 9600 + 1601 * (number % 8)
            time_s = np.arange(count) / 16000
            samples = 0.3 * np.sin(2 * np.pi * PITCHES_HZ[word] * time_s)
            samples += 0.01 * rng.standard_normal(count)
            name = f"speaker{speaker}/utterance{number}.wav"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / name, samples.astype(np.float32), 16000, subtype="PCM_16")
            said = (word, f"{word.title()}!") if number % 8 != 7 else ("", "?")
            lines.append(f"{name},s{speaker},{count},16000,{','.join(said)}")
    manifest = root / "words.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
