"""What cannot work is said by name before Ray starts, and before any audio is clustered."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.errors import FedhubertError
from fedhubert.federation.engine import run as engine
from fedhubert.federation.engine.early import check_device, check_ray_surroundings, with_devices
from fedhubert.federation.engine.hearing import clients_heard
from fedhubert.federation.server import space
from fedhubert.files import exclusively
from fedhubert.formats.content import load_plain
from fedhubert.objectives.spec import build_model
from fedhubert.runs.store import RoundStore
from tests.formats.common import saved, trained
from tests.integration.conftest import SMALL

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class RayStarted(Exception):
    """The run got as far as starting Ray."""


@pytest.fixture
def data(tone_folder: Path, tmp_path: Path) -> list[str]:
    assert (
        main(
            *[
                [
                    "prepare",
                    "folder",
                    "--root",
                    str(tone_folder),
                    "--out",
                    str(tmp_path / "tones.csv"),
                ]
            ]
        )
        == 0
    )
    return [
        f"data.manifest={tmp_path / 'tones.csv'}",
        f"data.root={tone_folder}",
        f"client.state_dir={tmp_path / 'state'}",
    ]


@pytest.fixture
def start(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Start a run as ``fedhubert train`` does, up to where Ray would be started."""

    def simulate(*_: Any) -> None:
        raise RayStarted

    monkeypatch.setattr(engine, "simulate", simulate)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*overrides: str, out: Path = tmp_path / "run") -> None:
        engine.train_here(
            compose(["experiment=demo_fedavg", *data, *SMALL, f"out={out}", *overrides])
        )

    yield run


def test_a_run_without_fault_gets_as_far_as_ray(start: Callable[..., None], tmp_path: Path) -> None:
    for more in ((), ("dry_run=true",)):
        with pytest.raises(RayStarted):
            start(*more)
    assert load_plain(tmp_path / "run" / "checkpoints" / "start.pt")["state"] == {}


@pytest.mark.parametrize("dry", [(), ("dry_run=true",)], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["client.device=cuda"], r"client\.device='cuda': this machine shows 0 CUDA devices"),
        (["client.device=gpu"], r"client\.device='gpu': not a device"),
        (["init_from=TMP/nowhere"], r"no file or folder .*nowhere"),
        (["init_from=TMP/pointer.pt"], r"pointer\.pt is a git-lfs pointer"),
        (["init_from=TMP/other"], r"model\.num_layers is 1 and the file has 2"),
        (["init_from=me/hubert"], r"hf:me/hubert .*huggingface-cli download me/hubert"),
        (
            ["targets=layer", "targets.source=layer:1", "targets.checkpoint=TMP/pointer.pt"],
            r"pointer\.pt is a git-lfs pointer",
        ),
        (
            ["task=distill", "task.layers=[1]", "task.teacher=TMP/pointer.pt"],
            "is a git-lfs pointer",
        ),
        (
            ["targets=precomputed", "targets.labels=TMP/nowhere.km", "targets.label_rate_hz=50"],
            r"nowhere\.km",
        ),
        (
            ["targets=precomputed", "targets.labels=TMP/short.km", "targets.label_rate_hz=50"],
            r"short\.km has 2 lines, the manifest 12 utterances",
        ),
        (
            ["targets=precomputed", "targets.labels=TMP/many.km", "targets.label_rate_hz=50"],
            r"speaker\d/utterance\d\.wav",
        ),
        (
            ["client.state_dir=TMP/file/state"],
            r"cannot write to the state folder .*client\.state_dir",
        ),
        (["data.manifest=TMP/nowhere.csv"], r"no such file .*nowhere\.csv"),
        (["data.root=TMP"], r"\d+ of \d+ files .* are not there; the first: .*Paths start from"),
    ],
)
def test_what_cannot_work_is_said_before_ray_starts(
    start: Callable[..., None],
    tmp_path: Path,
    tiny_model_config: Any,
    overrides: list[str],
    message: str,
    dry: tuple[str, ...],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "pointer.pt").write_bytes(POINTER)
    (tmp_path / "short.km").write_text("1 2\n3 4\n")
    (tmp_path / "many.km").write_text("1 2\n" * 12)
    if "other" in overrides[0]:
        saved(tmp_path / "other", trained(tiny_model_config))
    with pytest.raises(FedhubertError, match=message):
        start(*(text.replace("TMP", str(tmp_path)) for text in overrides), *dry)
    assert not (tmp_path / "run" / "checkpoints" / "round_001_checkpoint.pt").exists()


def test_a_folder_in_use_or_of_another_run_is_named_before_ray_starts(
    start: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhubert.files.LOCK_PATIENCE_S", 0.1)
    with (
        exclusively(tmp_path / "run" / "checkpoints", setting="out"),
        pytest.raises(FedhubertError, match=rf"checkpoints is in use by process {os.getpid()}"),
    ):
        start()
    with pytest.raises(FedhubertError, match=r"cannot write to the run's folder .*out="):
        (tmp_path / "file").write_text("")
        start(out=tmp_path / "file" / "run")


def test_changed_settings_and_checkpoints_that_are_there_are_named_before_ray_starts(
    start: Callable[..., None], data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = compose(["experiment=demo_fedavg", *data, *SMALL, f"out={out}"])
    RoundStore(out / "checkpoints").save(
        1,
        build_model(config.model, config.task, config.seed).state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={"history": []},
        resume={"rounds": {}},
    )
    with pytest.raises(FedhubertError, match=r"already holds checkpoints .*resume=auto"):
        start()
    with pytest.raises(FedhubertError, match=r"other values of client\.lr; resume with the same"):
        start("resume=auto", "client.lr=0.5", "client.state_dir=/tmp")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "RAY_ADDRESS",
            "10.0.0.1:6379",
            r"RAY_ADDRESS=10\.0\.0\.1:6379 .*unset RAY_ADDRESS.*simulation\.ray_address",
        ),
        (
            "TMPDIR",
            "/tmp/" + "long" * 15,
            r"TMPDIR=/tmp/long.* too long .*at most \d\d characters.*RAY_TMPDIR",
        ),
        ("RAY_TMPDIR", "/proc/nowhere", r"RAY_TMPDIR=/proc/nowhere: .*RAY_TMPDIR"),
        ("TMPDIR", "/dev/null", r"TMPDIR=/dev/null: "),
    ],
)
def test_what_ray_would_stumble_over_in_the_environment_is_named(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(FedhubertError, match=message):
        start()


def test_a_full_disk_under_ray_is_warned_of(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage("/")._replace(total=10**15, free=10**13)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(RayStarted):
        start()
    assert "the disk of /tmp is more than 95 % full" in capsys.readouterr().err


def test_the_longest_folder_that_is_allowed_is_the_longest_that_ray_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the limit of the system itself: a socket with the longest of Ray's names."""
    config = compose([])
    for length in range(20, 60):
        folder = "/tmp/" + "x" * (length - 5)
        monkeypatch.setenv("TMPDIR", folder)
        name = f"{folder}/ray/session_2026-11-27_12-00-00_000000_4194304/sockets/plasma_store"
        try:
            check_ray_surroundings(config)
            taken = True
        except FedhubertError:
            taken = False
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with socket.socket(socket.AF_UNIX) as server, pytest.raises(OSError) as error:
            server.bind(name)
        assert taken is ("too long" not in str(error.value)), (length, error.value)


def test_a_manifest_for_the_server_is_read_before_ray_starts(
    start: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text("name\nx\n")
    for name in ("bad", "nowhere"):
        manifest = tmp_path / f"{name}.csv"
        with pytest.raises(FedhubertError, match=rf"evaluation\.manifest={manifest}: ") as caught:
            start(f"evaluation.manifest={manifest}")
        assert caught.value.setting == "evaluation.manifest"


def test_a_gpu_that_the_workers_do_not_get_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device, share, message in (
        (
            "cuda",
            0,
            r"simulation\.gpus_per_client=0 gives the workers no GPU.*gpus_per_client=0\.5",
        ),
        ("cuda:1", 0.5, r"client\.device=cuda:1: a worker sees the GPUs of its own share alone"),
        ("cuda:2", 1, "this machine shows 2 CUDA devices"),
    ):
        config = compose([f"client.device={device}", f"simulation.gpus_per_client={share}"])
        with pytest.raises(FedhubertError, match=message):
            check_device(config)
    for device, share in (("cuda", 0.5), ("cuda:0", 1), ("cuda:1", 2), ("cpu", 0), ("auto", 0)):
        check_device(compose([f"client.device={device}", f"simulation.gpus_per_client={share}"]))


def test_devices_that_would_have_nothing_to_do_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)

    def check(*overrides: str) -> str:
        config = with_devices(compose(overrides))
        check_device(config)
        return config.client.device

    four = "simulation.gpus_per_client=4"
    with pytest.raises(FedhubertError, match=r"4 devices, but client\.accumulate=1") as caught:
        check(four)
    assert caught.value.setting == "client.accumulate"
    with pytest.raises(FedhubertError, match=r"gpus_per_client=1\.5: .* or whole ones"):
        check("simulation.gpus_per_client=1.5")
    assert check(four, "client.accumulate=8") == "cuda:0,1,2,3" and not caplog.records
    assert check(four, "client.device=cuda:1") == "cuda:1"
    assert check("simulation.gpus_per_client=64") == "auto"  # for Ray to say
    assert check('client.device="cpu:0,1"', "client.accumulate=3") == "cpu:0,1"
    assert "client.accumulate=3 micro-batches a step keep 1 of a client's 2" in caplog.text


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (
            1000,
            r"checkpoints take .* MB of .*run/checkpoints, where 0\.0 MB are free.*checkpoint\.keep_last=5",
        ),
        (
            400_000,
            r"labels, features, optimisers and models .* take .* of .*state, where 0\.4 MB are free.*client\.state_dir",
        ),
    ],
)
def test_a_disk_that_is_too_small_is_named_before_ray_starts(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch, free: int, message: str
) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: usage)
    more = ["client.optimizer_policy=keep", "federated.num_rounds=1"] if free > 1000 else []
    with pytest.raises(FedhubertError, match=message):
        start(*more)


def test_what_clients_say_is_said_once_and_whole(caplog: pytest.LogCaptureFixture) -> None:
    with clients_heard() as file:
        lines = [
            json.dumps("partition 0: /audio/\u00fc.wav\nTraceback"),
            json.dumps("partition 1: b"),
        ]
        file.write_text("\n".join([*lines, lines[0]]) + "\n" + '"cut sho')
    said = [record.message for record in caplog.records]
    assert said == ["client: partition 0: /audio/\u00fc.wav\nTraceback", "client: partition 1: b"]
    assert not file.exists()
