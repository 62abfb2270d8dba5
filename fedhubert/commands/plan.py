"""The verb ``plan``: Hydra overrides, words of its own, and a table."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedhubert.commands.again import unknown_option
from fedhubert.durations import duration

if TYPE_CHECKING:
    from rich.table import Table

    from fedhubert.planning.inputs import Inputs
    from fedhubert.planning.rounds import RunPlan

PLAN_HELP = """\
usage: fedhubert plan [KEY=VALUE ...] [hours=N] [audio_s_per_s=N | measure=true] [up_mbit_s=N] [json=true]

Estimate what the federation of `fedhubert train KEY=VALUE ...` would take: steps, audio, bytes, device hours, wall time, memory
and disk. KEY=VALUE are the same Hydra overrides. Nothing is trained, and no message is sent.

  fedhubert plan experiment=demo measure=true
  fedhubert plan experiment=research_standard_pretraining hours=960 audio_s_per_s=600 simulation.gpus_per_client=1
  fedhubert plan experiment=research_standard_pretraining hours_per_client=[20,5,80] federated.num_clients=3 audio_s_per_s=600 up_mbit_s=50

audio: that of data.manifest, cut into clients and batches as the run would; or
  hours=N                 in all, split evenly over federated.num_clients
  hours_per_client=N      of each; or [N,N,...], one per client
speed:
  audio_s_per_s=N         seconds of audio that a client trains on per second (on one device, where it has several)
  rank_efficiency=N       of several devices (client.device=cuda:0,1): how much of that each reaches (1)
  measure=true            measured on this host in 20 s, on the run's batches, or on noise
  score_audio_s_per_s=N   that it scores (default: three times as many)
  label_audio_s_per_s=N   that get MFCC and pseudo-labels on one CPU thread (900)
clients: played on this host by simulation.num_workers workers; or, with
  up_mbit_s=N             real sites, each with a device and a line of its own: how fast it sends,
  down_mbit_s=N           and receives (default: the same)
  message_ns=N            nanoseconds that a byte takes at a site (10)
  superlink_ns=N          and in the SuperLink (12), while lines are busy
server:
  round_overhead_s=N      of a round beside all that (0.5; on real sites 2)
  client_ms=N             milliseconds for each client of a round (0.045)
  fold_ns=N, step_ns=N    nanoseconds per parameter for an update (4) and for a round's end (20)
  server_gflop_s=N        1e9 operations a second of its matrix products (50), for federated.strategy=FedMuon
  disk_mb_s=N             checkpoints, written and forced to disk (150)
output:
  json=true               one JSON object instead of the table
"""  # noqa: E501


def plan(arguments: Sequence[str]) -> int:
    """``fedhubert plan``: see :data:`PLAN_HELP`."""
    if {"-h", "--help"} & set(arguments):
        print(PLAN_HELP, end="")
        return 0
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        return unknown_option("plan", flags[0], "words")
    from fedhubert import live
    from fedhubert.planning.rounds import plan as played
    from fedhubert.planning.words import read_words
    from fedhubert.reporting.console import output_console

    inputs, said, as_json = read_words(arguments)
    found = played(inputs)
    if as_json:
        live.hide()
        print(json.dumps(report(inputs, found, said)))
        return 0
    output = output_console(120)
    output.print(table(inputs, found))
    for name, text in {"assumed": "", **said}.items():
        output.print(f"  {name}: {text}" if text else f"{name}:", soft_wrap=True, highlight=False)
    for warning in found.warnings:
        output.print(f"warning: {warning}", soft_wrap=True, highlight=False)
    return 0


def report(inputs: "Inputs", found: "RunPlan", said: dict[str, str]) -> dict[str, object]:
    """Return the estimates as plain values: seconds, hours, bytes."""
    from fedhubert.planning import sizes
    from fedhubert.planning.privacy import privacy_of

    rounds, shares, privacy = found.rounds, found.shares, privacy_of(inputs.config)
    return {
        "experiment": inputs.config.experiment,
        "parameters": inputs.numel,
        "clients": len(shares),
        "rounds": len(rounds),
        "steps": sum(share.steps for share in shares),
        "steps_in_a_row": found.steps_in_a_row,
        "audio_h": sum(share.audio_s for share in shares) / 3600,
        "epochs": sum(share.audio_s for share in shares)
        / sum(client.train_s for client in inputs.clients),
        "device": inputs.device,
        "ranks": inputs.ranks,
        "device_h": inputs.devices * math.fsum(share.device_s for share in shares) / 3600,
        "bytes_down": sum(part.bytes_down for part in rounds),
        "bytes_up": sum(part.bytes_up for part in rounds),
        "model_bytes": sizes.model_bytes(inputs),
        "update_bytes": sizes.reply_bytes(inputs, 1),
        **_secure(inputs),
        "teacher_bytes": inputs.teacher_bytes,
        "frozen_bytes": inputs.frozen_bytes,
        "labels_s": found.labels_s,
        "rounds_s": math.fsum(part.seconds for part in rounds),
        "final_s": found.final_s,
        "opened_s": inputs.opened_s,
        "seconds": found.seconds,
        "server_s": found.server_s,
        "server_memory_bytes": sizes.server_memory(inputs),
        "client_memory_bytes": sizes.client_memory(inputs),
        "data_memory_bytes": list(sizes.data_memory(inputs)),
        "checkpoint_bytes": sizes.checkpoint_disk(inputs),
        "per_client": [
            {**asdict(share), "state_bytes": sizes.site_disk(inputs, client)}
            for share, client in zip(shares, inputs.clients, strict=True)
        ],
        "per_round": [asdict(part) for part in rounds],
        **({"privacy": asdict(privacy)} if privacy else {}),
        "assumptions": {"rates": inputs.rates.model_dump(), "said": said},
        "warnings": list(found.warnings),
    }


def table(inputs: "Inputs", found: "RunPlan") -> "Table":
    """Return the estimates for people."""
    from rich.box import SIMPLE
    from rich.table import Table

    where = (
        "real sites"
        if inputs.rates.on_sites
        else f"simulated, {inputs.config.simulation.num_workers} workers"
    )
    result = Table(
        title=f"Plan of {inputs.config.experiment} ({where}): an estimate, nothing was run",
        box=SIMPLE,
    )
    for name in ("what", "all clients", "one client (least to most)"):
        result.add_column(name, justify="left" if name == "what" else "right")
    for section in (
        _data(inputs),
        _work(inputs, found),
        _wire(inputs, found),
        _privacy(inputs),
        _time(inputs, found),
        _space(inputs),
    ):
        for row in section:
            result.add_row(*row)
        result.add_section()
    return result


Row = tuple[str, str] | tuple[str, str, str]


def _data(inputs: "Inputs") -> Iterator[Row]:
    federated, clients = inputs.config.federated, inputs.clients
    yield "parameters that travel", f"{inputs.numel / 1e6:.2f} M"
    yield (
        "rounds, clients a round",
        f"{federated.num_rounds}, {federated.clients_per_round} of {len(clients)}",
    )
    for name, part in (("audio to train on", "train_s"), ("audio held out", "validation_s")):
        yield name, *_of([getattr(client, part) for client in clients], _hours)


def _work(inputs: "Inputs", found: "RunPlan") -> Iterator[Row]:
    shares, clients = found.shares, inputs.clients
    yield "rounds taken part in", *_of([share.rounds for share in shares], str)
    yield "optimiser steps", *_of([share.steps for share in shares], str)
    yield "steps in a row", str(found.steps_in_a_row)
    yield "audio trained on", *_of([share.audio_s for share in shares], _hours)
    epochs = [share.audio_s / client.train_s for share, client in zip(shares, clients, strict=True)]
    mean = sum(share.audio_s for share in shares) / sum(client.train_s for client in clients)
    yield "epochs", f"{mean:.2f}", f"{min(epochs):.2f} to {max(epochs):.2f}"
    each = [inputs.devices * share.device_s for share in shares]
    yield f"{inputs.device} time, scoring included", *_of(each, _hours)


def _wire(inputs: "Inputs", found: "RunPlan") -> Iterator[Row]:
    from fedhubert.planning import sizes

    yield (
        "a message: model, update",
        f"{_bytes(sizes.model_bytes(inputs))}, {_bytes(sizes.reply_bytes(inputs, 1))}",
    )
    for name, count in _secure(inputs).items():
        yield name.replace("_bytes", "").replace("_", " "), "", _bytes(count)
    for name, part in (("down", "bytes_down"), ("up", "bytes_up")):
        in_rounds = [getattr(item, part) for item in found.rounds]
        yield f"{name} in a round", _bytes(sum(in_rounds) / len(in_rounds))
        each = [getattr(share, part) for share in found.shares]
        yield (
            f"{name} in the run",
            _bytes(sum(in_rounds)),
            f"{_bytes(min(each))} to {_bytes(max(each))}",
        )
    once = {"teacher": inputs.teacher_bytes, "frozen part": inputs.frozen_bytes}
    for name, sent in once.items():
        if sent:
            yield f"{name}, once to each site", _bytes(sent * len(inputs.clients)), _bytes(sent)


def _secure(inputs: "Inputs") -> dict[str, int]:
    """Return the bytes of the second message of a round of secure sums, to and from a client."""
    from fedhubert.planning.secure import opening_bytes

    if not inputs.config.secure.enabled:
        return {}
    down, up = opening_bytes(inputs, inputs.config.federated.clients_per_round)
    return {"opening_a_sum_down_bytes": down, "opening_a_sum_up_bytes": up}


def _privacy(inputs: "Inputs") -> Iterator[Row]:
    from fedhubert.planning.privacy import privacy_of

    found = privacy_of(inputs.config)
    if found is None:
        return
    epsilon = "infinite" if found.epsilon is None else f"{found.epsilon:.3g}"
    yield f"epsilon at delta {found.delta:g}, after the last round", epsilon
    yield "noise on a mean update (standard deviation)", f"{found.noise_std:.3g}"
    if found.honest_clients is not None:
        yield "clients of a sum who have to be honest", str(found.honest_clients)


def _time(inputs: "Inputs", found: "RunPlan") -> Iterator[Row]:
    rounds = found.rounds
    if inputs.rows:
        yield "the manifest, read by each process", "", duration(inputs.opened_s)
    yield (
        "a round (mean, longest)",
        ", ".join(
            duration(value)
            for value in (
                sum(part.seconds for part in rounds) / len(rounds),
                max(part.seconds for part in rounds),
            )
        ),
    )
    yield (
        "of it clients, server (mean)",
        f"{duration(_mean([part.clients_s for part in rounds]))}, "
        f"{duration(found.server_s / len(rounds))}",
    )
    yield "labels before the first round", duration(found.labels_s)
    yield "final scores", duration(found.final_s)
    yield "[bold]the run[/bold]", f"[bold]{duration(found.seconds)}[/bold]"


def _space(inputs: "Inputs") -> Iterator[Row]:
    from fedhubert.planning import sizes

    state = [sizes.site_disk(inputs, client) for client in inputs.clients]
    yield "server memory", _bytes(sizes.server_memory(inputs))
    where = f" on each of {inputs.ranks} devices" if inputs.ranks > 1 else ""
    yield (
        f"a client's memory{where}, without activations",
        "",
        _bytes(sizes.client_memory(inputs)),
    )
    if inputs.rows:
        first, later = map(_bytes, sizes.data_memory(inputs))
        yield "memory of the manifest, first and later processes", "", f"{first}, {later}"
    yield "checkpoints on disk", _bytes(sizes.checkpoint_disk(inputs))
    yield (
        "state folders of sites",
        _bytes(sum(state)),
        f"{_bytes(min(state))} to {_bytes(max(state))}",
    )


def _of(values: Sequence[float], show: Callable[[float], str]) -> tuple[str, str]:
    return show(sum(values)), f"{show(min(values))} to {show(max(values))}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds < 360_000 else f"{seconds / 3600:.0f} h"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
