"""A corpus of a million utterances in archives: what a site's process takes from its start to the first batch.

The audio of a few archives is named again and again, by offset. Each process opens the manifest, partitions it by speaker, describes all clients as a
run's start has it do, and takes the first batch of one: the first process of a site reads the CSV and writes what the later ones map into memory.
``python -m tests.benchmarks.corpora`` prints one JSON line per figure.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.benchmarks.data import write_audio
from tests.benchmarks.engine import private_mb
from tests.benchmarks.figures import case_alone, figure, memory_mb, peak_mb, run

ROWS, CLIENTS, SPEAKERS, ARCHIVES, FILES = 1_000_000, 1000, 5000, 4, 16
MOST_S, MOST_MB = 20.0, 1000.0


def write_corpus(folder: Path, rows: int) -> None:
    """Write a few archives of a few files each, and a manifest of ``rows`` utterances in them."""
    stored = []
    for number in range(ARCHIVES):
        with (folder / f"shard-{number}.bin").open("wb") as archive:
            for index in range(FILES):
                path = folder / "one.flac"
                samples = write_audio(path, 16000, 1.0 + index / FILES, number * FILES + index)
                content = path.read_bytes()
                stored.append((f"shard-{number}.bin", archive.tell(), len(content), samples))
                archive.write(content)
    path.unlink()
    with (folder / "manifest.csv").open("w") as file:
        file.write("path,speaker,language,num_samples,sample_rate,archive,byte_offset,byte_size\n")
        for row in range(rows):
            archive_name, offset, size, samples = stored[row * 7 % len(stored)]
            speaker, chapter = row % SPEAKERS, row // 100
            name = f"train/{speaker}/{chapter}/{speaker}-{chapter}-{row % 100:04d}.flac"
            file.write(f"{name},{speaker},en,{samples},16000,{archive_name},{offset},{size}\n")


def overrides(folder: Path, state: str, clients: int) -> list[str]:
    """Return those of the run."""
    return [
        f"data.manifest={folder / 'manifest.csv'}",
        "data.min_seconds=0.5",
        "data.partition.kind=speaker",
        f"federated.num_clients={clients}",
        f"client.state_dir={folder / state}",
        "model=hubert_tiny",
    ]


def planned(folder: Path, clients: int) -> dict[str, float]:
    """Return what ``fedhubert plan`` says of a process's start: CPU seconds, and memory, MB."""
    from fedhubert.planning import sizes
    from fedhubert.planning.words import read_words

    asked = [*overrides(folder, "planned", clients), "audio_s_per_s=1"]
    inputs, _, _ = read_words(asked, time.process_time)
    first, later = sizes.data_memory(inputs)
    return {"s": inputs.opened_s, "first_mb": first / 2**20, "later_mb": later / 2**20}


def start(folder: Path, clients: int) -> dict[str, float]:
    """Do what a process does before its first step; return seconds of each part, and memory."""
    from fedhubert.clients.data import open_site
    from fedhubert.compose import compose
    from fedhubert.data.loading import load_batches, mask_spec
    from fedhubert.federation.site.handlers import describe
    from fedhubert.federation.strategies.strategy import client_job
    from fedhubert.federation.wire.messages.nodes import Describe
    from fedhubert.federation.wire.protocol import Request

    job = client_job(compose(overrides(folder, "state", clients)))
    node = {"partition-id": 0, "num-partitions": 2}
    before, taken = memory_mb(), dict[str, float]()

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        taken[f"{what}_s"] = time.monotonic() - wall
        taken[f"{what}_cpu_s"] = time.process_time() - cpu

    with timed("read"):
        site = open_site(job, node)
    with timed("partition"):
        partition = site.partition(0)
    with timed("describe"):
        everyone = Describe(partitions=tuple(range(clients)))
        answer, failures = describe(Request(job, "bench", everyone), node)
    assert answer is not None and len(answer.metrics) == clients and not failures
    with timed("batch"):
        plan, mask = partition.train_plan, mask_spec(job.task)
        batch = next(iter(load_batches(site.manifest, plan, range(1), None, mask, job.data)))
    assert np.isfinite(batch.waveforms_BN.numpy()).all() and len(batch.waveforms_BN)
    of_all = {f"all{kind}": sum(taken[f"{part}{kind}"] for part in PARTS) for kind in KINDS}
    memory = {"mb": peak_mb() - before, "private_mb": private_mb()}
    return {"rows": len(site.manifest), **taken, **of_all, **memory}


PARTS, KINDS = ("read", "partition", "describe", "batch"), ("_s", "_cpu_s")


def case(what: str, folder: str, clients: str) -> dict[str, float]:
    """The start of one process, or the plan of it."""
    return {"start": start, "plan": planned}[what](Path(folder), int(clients))


def compare(rows: int, clients: int) -> None:
    """Print what the first and a later process of a site take, by part."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), rows)
        for process in ("first", "later"):
            plan = case_alone(__spec__.name, "plan", folder, clients)
            found = case_alone(__spec__.name, "start", folder, clients)
            name = f"{rows} utterances, {process} process of a site"
            figure(f"{name}: CPU to the first batch", found["all_cpu_s"], MOST_S, "s", **found)
            figure(f"{name}: memory", found["mb"], MOST_MB, "MB")
            figure(f"{name}: CPU beside the plan", found["all_cpu_s"], plan["s"], "s")
            figure(f"{name}: memory beside the plan", found["mb"], plan[f"{process}_mb"], "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--num-clients", type=int, default=CLIENTS)
    run(parser, case, lambda given: compare(given.rows, given.num_clients))


if __name__ == "__main__":
    main()
