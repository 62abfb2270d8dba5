"""Servers that play by the protocol and ask for too much: each attack works on a site whose policy refuses nothing, and not on a strict one."""

from pathlib import Path

import numpy as np
import torch

from fedhubert.clients.data import open_site
from fedhubert.data.audio import read_audio
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.messages.targets import Label, LabelCounts, Statistics, StepKMeans
from fedhubert.models.hubert import build_hubert
from fedhubert.targets.kmeans import KMeansStatistics, centroids_hash, scale_of
from fedhubert.targets.mfcc import mfcc_features
from fedhubert.training.parameters import ParameterLayout

from .server import CENTROIDS, Server, answered, label, only, train

ONE_CLUSTER = np.concatenate([np.zeros((1, 39)), np.full((5, 39), 400.0)]).astype(np.float32)
"""Every frame is nearest to the first."""

WINDOWS = [
    "model.conv_layers=[[1,1,1],[4096,400,320]]",
    *(
        "model.conv_bias=true",
        "model.feature_grad_mult=1",
        "task.feature_penalty=1000",
        "task.min_masks=1",
    ),
    *(
        "data.min_seconds=0.25",
        "data.max_seconds=0.25",
        "data.batch_seconds=0.25",
        "client.validation_batches=1",
    ),
    *(
        "client.local_steps=1",
        "client.optimizer=sgd",
        "client.lr=1",
        "client.schedule=constant",
        "client.weight_decay=0",
    ),
    *("client.warmup_fraction=0", "client.grad_clip_norm=0"),
]
"""One step on one crop, by a front end that sees the waveform in windows (Fowl et al. 2022)."""


# ---------------------------------------------------------------- a model that copies windows of the waveform


def windows_model(server: Server) -> tuple[ParameterLayout, torch.Tensor]:
    """Return a model whose second convolution has channels that each see one window in twelve at most, by a threshold."""
    model = build_hubert(server.job(*WINDOWS).model, 0)
    first, second = model.wav2vec2.feature_extractor.conv_layers
    with torch.no_grad():
        first.conv.weight.fill_(1.0)
        first.conv.bias.zero_()
        first.layer_norm.weight.fill_(1.0)
        first.layer_norm.bias.fill_(10.0)  # GELU does nothing there
        directions = torch.randn(4096, 400, generator=torch.Generator().manual_seed(1))
        directions = 100.0 * directions / directions.norm(dim=1, keepdim=True)
        second.conv.weight.copy_(directions[:, None])
        second.conv.bias.copy_(-10.0 * directions.sum(dim=1) - 130.0)
    layout = ParameterLayout.of(model)
    return layout, layout.to_vector(model)


def windows_of_the_update(layout: ParameterLayout, update: np.ndarray) -> np.ndarray:
    """Return the gradient of each channel's weights over that of its bias [4096, 400]: a mean of the windows that it saw."""
    parts, start = {}, 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        size = int(np.prod(shape))
        parts[name], start = (
            update[start : start + size].reshape(shape).astype(np.float64),
            start + size,
        )
    name = "wav2vec2.feature_extractor.conv_layers.1.conv"
    bias = parts[f"{name}.bias"]
    seen = np.abs(bias) > 1e-9
    return parts[f"{name}.weight"][seen, 0] / bias[seen, None] - 10.0


def share_copied(server: Server, reply: Trained, layout: ParameterLayout) -> float:
    """Return the share of the crop's windows that are in an update, each sample to a hundredth of the waveform's deviation."""
    site = open_site(server.job(*WINDOWS), server.node)
    spec = site.partition(0).train_plan.batch(0)
    waveform = read_audio(
        site.manifest.audio_path(int(spec.rows[0])), 16000, int(spec.starts[0]), spec.num_samples
    )
    standard = (waveform - waveform.mean()) / waveform.std()
    windows = np.lib.stride_tricks.sliding_window_view(standard, 400)[::320]
    found = windows_of_the_update(layout, reply.arrays["update"])
    return float(np.mean([np.abs(found - window).max(axis=1).min() < 0.01 for window in windows]))


def test_a_front_end_of_the_servers_own_copies_the_waveform_and_is_refused(
    server: Server, tmp_path: Path
) -> None:
    layout, vector = windows_model(server)
    open_door = server.without_policy(tmp_path)
    reply = answered(open_door.ask(train(open_door, *WINDOWS, vector=vector), *WINDOWS), Trained)
    assert share_copied(open_door, reply, layout) >= 0.9

    request = train(server, *WINDOWS, vector=vector)
    refused = server.ask(request, *WINDOWS)
    assert refused.answer is None and only(refused.failures) == {"refused": "model.conv_layers"}
    told = (tmp_path / "state/site.log").read_text()
    assert (
        "model.convolutions" in told
        and "audio.min_seconds" in told
        and "update.min_seconds" not in told
    )
    shipped = [text for text in WINDOWS if not text.startswith("model.")]
    assert server.refusal(train(server, *shipped), *shipped) == "data.min_seconds"


# ---------------------------------------------------------------- k-means that differs by a frame


def cluster_sum(server: Server, *overrides: str, run: str) -> np.ndarray:
    """Return the sum of the frames that k-means sees [39]."""
    reply = answered(
        server.ask(StepKMeans(arrays={"centroids": ONE_CLUSTER}), *overrides, run=run), Statistics
    )
    return KMeansStatistics.from_arrays(reply.arrays, 6, 39, scale_of(ONE_CLUSTER)).means_KD[
        0
    ] * int(reply.arrays["counts"][0])


def frames_by_differences(server: Server, first: int, count: int) -> np.ndarray:
    """Return frames [count, 39] as the differences of statistics over a frame more each time."""
    sums = [
        cluster_sum(server, f"targets.max_frames_per_client={first + number}", run=server.new_run())
        for number in range(count + 1)
    ]
    return np.diff(np.array(sums), axis=0)


def test_k_means_over_a_frame_more_each_time_tells_frames_and_a_strict_site_has_one_sample(
    server: Server, tmp_path: Path
) -> None:
    open_door = server.without_policy(tmp_path)
    open_door.node |= {"min-frames": 20, "group-frames": 20}
    truth = open_site(open_door.job("targets.max_frames_per_client=200"), open_door.node)
    frames = np.asarray(truth.fitting_features(truth.partition(0)))[60:66]
    assert np.abs(frames_by_differences(open_door, 60, 6) - frames).max() < 0.01

    assert not frames_by_differences(server, 60, 6).any()
    varied = [
        "seed=7",
        "data.min_seconds=0.9",
        "data.partition.validation_fraction=0.3",
        "targets.seed_frames_per_client=40",
    ]
    same = [cluster_sum(server, change, run=server.new_run()) for change in varied]
    assert all((other == same[0]).all() for other in same)
    assert (server.manifest.lengths(16000) >= 4000).all()
    sampled = sorted((tmp_path / "state/features").glob("features-*.npy"))
    seed = (tmp_path / "state/policy/sample_seed").read_text()
    assert [seed in path.name for path in sampled].count(True) == 1


def test_a_run_asks_for_no_k_means_that_it_does_not_need(server: Server, tmp_path: Path) -> None:
    node_labels = ["targets=precomputed", "targets.labels=column:speaker"]
    server.node["labels"] = "column:speaker"
    step = StepKMeans(arrays={"centroids": ONE_CLUSTER})
    assert answered(server.without_policy(tmp_path).ask(step, *node_labels), Statistics).metrics
    assert server.refusal(step, *node_labels) == "targets.kind"


def test_frames_alone_in_their_cluster_are_sent_only_where_the_policy_lets_them(
    server: Server, tmp_path: Path
) -> None:
    site = open_site(server.job(), server.node)
    frames = np.asarray(site.fitting_features(site.partition(0)))[:6].copy()
    few = ["targets.min_frames=1", "targets.max_frames_per_client=12"]
    step = StepKMeans(arrays={"centroids": frames})
    counts = answered(server.without_policy(tmp_path).ask(step, *few), Statistics).arrays["counts"]
    assert (counts == 1).any()
    counts = answered(server.ask(step, *few), Statistics).arrays["counts"]
    assert ((counts == 0) | (counts >= 20)).all() and counts.sum() > 0


# ---------------------------------------------------------------- single utterances


def lengths_by_sweep(server: Server, thresholds: list[float]) -> list[int]:
    """Return how many utterances are at least so long, for each threshold."""
    told = []
    for threshold in thresholds:
        reply = server.ask(Describe(), f"data.min_seconds={threshold}", run=server.new_run())
        if reply.answer is None:
            break
        about = answered(reply, Description).metrics[0]
        told.append(int(about["train_utterances"] + about["validation_utterances"]))
    return told


def test_sweeps_of_descriptions_tell_lengths_and_a_strict_site_rounds_and_stops(
    server: Server, tmp_path: Path
) -> None:
    lengths = server.manifest.lengths(16000)
    thresholds = [float(length + 1) / 16000 for length in sorted(lengths)[:8]]
    assert lengths_by_sweep(server.without_policy(tmp_path), thresholds) == [
        len(lengths) - number - 1 for number in range(8)
    ]
    told = lengths_by_sweep(server, thresholds)
    assert len(told) == 4 and all(count % 10 == 0 for count in told)
    assert lengths_by_sweep(server, thresholds[:4]) == told  # the same again is free
    assert server.refusal(Describe(), f"data.min_seconds={thresholds[5]}") == "data"


def test_updates_of_single_crops_are_refused_wherever_they_begin(
    server: Server, tmp_path: Path
) -> None:
    one = ["client.local_steps=1", "data.batch_seconds=2"]
    open_door = server.without_policy(tmp_path)
    heard = [
        answered(open_door.ask(train(open_door, *one, position=position), *one), Trained).metrics[
            0
        ]["train_audio_s"]
        for position in range(3)
    ]
    assert all(0 < seconds <= 2 for seconds in heard)
    assert [
        server.refusal(train(server, *one, position=position), *one) for position in range(3)
    ] == ["client.local_steps"] * 3
    by_the_clock = ["client.max_seconds=0.000001"]  # a round is at least one step
    assert only(
        server.ask(train(server, *by_the_clock, run="clock"), *by_the_clock, run="clock").failures
    ) == {"refused": "client.max_seconds"}
    scored = ["client.validation_batches=1", "data.batch_seconds=2", "client.local_steps=60"]
    assert (
        server.refusal(train(server, *scored), *scored, run="scored") == "client.validation_batches"
    )


def test_a_run_goes_on_or_goes_back_but_not_to_other_pieces_of_the_same_audio(
    server: Server, tmp_path: Path
) -> None:
    request = train(server)

    def at(position: int, steps: int | None = None, who: Server = server) -> str:
        changes = {"positions": {0: position}, "steps": None if steps is None else {0: steps}}
        return who.refusal(request.model_copy(update=changes))

    assert [at(0), at(10), at(20)] == ["", "", ""]
    assert [at(10), at(0), at(30)] == ["", "", ""], "a resumed run goes back to where it was"
    assert at(10, steps=9) == "client.local_steps" and at(11) == "positions" and at(45) == ""
    open_door = server.without_policy(tmp_path)
    label(open_door)
    assert [at(0, who=open_door), at(1, who=open_door), at(0, steps=9, who=open_door)] == [
        "",
        "",
        "",
    ]


def test_a_run_stays_what_it_is(server: Server, tmp_path: Path) -> None:
    label(server)
    assert server.refusal(StepKMeans(arrays={"centroids": ONE_CLUSTER}), "seed=3") == "seed"
    assert (
        server.refusal(StepKMeans(arrays={"centroids": ONE_CLUSTER}), "client.local_steps=11")
        == "client"
    )
    assert (
        server.refusal(
            StepKMeans(arrays={"centroids": ONE_CLUSTER}),
            "data.num_workers=1",
            "client.device=cuda",
        )
        == ""
    )
    assert (
        server.refusal(StepKMeans(arrays={"centroids": ONE_CLUSTER}), "seed=3", run="another") == ""
    )


def test_counts_of_labels_are_over_twenty_frames(server: Server) -> None:
    reply = answered(
        server.ask(
            Label(targets=centroids_hash(CENTROIDS), arrays={"centroids": CENTROIDS}),
            "targets.min_frames=1",
        ),
        LabelCounts,
    )
    assert all(
        ((counts == 0) | (counts >= 20)).all()
        for counts in (reply.arrays["train"], reply.arrays["validation"])
    )
    assert mfcc_features(np.zeros(16000, np.float32)).shape[1] == CENTROIDS.shape[1]
