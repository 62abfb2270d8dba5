"""Heads that stay at their sites (``task.head=personal``)."""

import json
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from fedhubert.baselines.central import BaselineOptions, train_baseline
from fedhubert.baselines.pool import Pool
from fedhubert.cli import main
from fedhubert.clients import data as site
from fedhubert.clients.state import PartitionState, StateFolder, StateMissing
from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.heads import is_objectives_own, own_heads
from fedhubert.objectives.spec import build_model
from fedhubert.runs.metrics import read_events
from tests.federation.in_process import InProcessGrid
from tests.finetuning import CLASSIFY, CTC, RUN

TASKS = {"classify": CLASSIFY, "ctc": CTC}
PERSONAL = ["task.head=personal", "federated.strategy=FedAvg", "client.local_steps=2"]
Heads = dict[int, dict[str, torch.Tensor]]


def run_of(words: Path, out: Path, *overrides: str) -> Config:
    places = [f"data.manifest={words}", f"client.state_dir={out}-state", f"out={out}"]
    return compose([*RUN, *places, *PERSONAL, *overrides])


def new_process() -> None:
    incoming._cached = None
    site._cached_site.cache_clear()


def train(config: Config, grid: InProcessGrid | None = None) -> tuple[RunResult, InProcessGrid]:
    new_process()
    grid = grid or grid_of(InProcessGrid, config)
    return run_federation(grid, config), grid


def grid_of(kind: type[InProcessGrid], config: Config) -> InProcessGrid:
    count = config.federated.num_clients
    return kind([{"partition-id": n, "num-partitions": count} for n in range(count)])


def head_file(config: Config, client: int, number: int) -> Path:
    (run,) = (Path(str(config.client.state_dir)) / "runs").iterdir()
    return run / f"partition_{client:05d}" / f"round_{number:05d}.pt"


def heads_of(config: Config, number: int) -> Heads:
    """What each client has kept of a round."""
    return {
        client: torch.load(head_file(config, client, number), weights_only=True)["head"]
        for client in range(config.federated.num_clients)
    }


def assert_equal_heads(ours: Heads, theirs: Heads) -> None:
    assert ours.keys() == theirs.keys()
    for client, head in ours.items():
        assert all(torch.equal(head[name], theirs[client][name]) for name in head)


def encoder(path: Path) -> torch.Tensor:
    model = load_checkpoint(path)["model"]
    return torch.cat(
        [value.reshape(-1) for name, value in model.items() if not is_objectives_own(name)]
    )


def bytes_sent(grid: InProcessGrid) -> bytes:
    parts = [
        array.numpy().tobytes()
        for message in (*grid.requests, *grid.answers)
        for record in message.content.array_records.values()
        for array in record.values()
    ]
    return b"|".join(parts)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("secure", ["none", "pairwise"])
def test_a_personal_head_is_in_no_message_and_no_checkpoint(
    words: Path, tmp_path: Path, task: str, secure: str
) -> None:
    config = run_of(
        words, tmp_path / "run", *TASKS[task], f"secure={secure}", "task.freeze_share=0.5"
    )
    result, grid = train(config)
    sent, kept = bytes_sent(grid), [heads_of(config, number) for number in (1, 2)]
    fresh = own_heads(build_model(config.model, config.task, config.seed))
    for heads in kept:
        for head in heads.values():
            for name, value in head.items():
                moved = value - fresh[name]
                assert moved.abs().max() > 0
                for tensor in (value, moved, fresh[name]):  # also as updates of them
                    rows = tensor.reshape(-1)[:8]
                    assert rows.abs().sum() == 0 or rows.numpy().tobytes() not in sent
    assert all(
        not torch.equal(kept[1][0][name], kept[1][1][name]) for name in kept[1][0]
    )  # each its own
    travels = sum(
        value.numel()
        for name, value in build_model(config.model, config.task, 0).named_parameters()
        if value.requires_grad and not is_objectives_own(name)
    )
    asked = [m for m in grid.requests if m.metadata.message_type == "train.round"]
    assert {m.content.array_records["arrays"]["model"].numpy().size for m in asked} == {travels}
    assert not any(map(is_objectives_own, load_checkpoint(result.checkpoint)["model"]))
    file = head_file(config, 0, 2)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_client_is_scored_with_its_own_head(words: Path, tmp_path: Path) -> None:
    """In a round with the head that it begins the round with, at the end with its last."""
    config = run_of(words, tmp_path / "run", *CLASSIFY, "client.lr=0.03")
    result, _ = train(config)
    events = list(read_events(result.folder.metrics_file))
    scored = [e["clients"] for e in events if e["event"] == "round" and e["round"] == 2]
    scored += [e["clients"] for e in events if e["event"] == "final"]
    pool, model = Pool(config), build_model(config.model, config.task, config.seed)
    for number, rows in zip((1, 2), scored, strict=True):
        name = f"round_{number:03d}_checkpoint.pt"
        trained = load_checkpoint(result.folder.checkpoints / name)["model"]
        sums = {}
        for client, head in heads_of(config, number).items():
            model.load_state_dict({**trained, **head})
            sums[client] = pool.score(model, [client])[client]["validation_label_loss_sum"]
        assert len({round(value, 6) for value in sums.values()}) == 3
        for row in rows:
            assert row["validation_label_loss_sum"] == pytest.approx(sums[row["partition"]])


@pytest.mark.parametrize("task", TASKS)
def test_a_secure_run_has_the_same_encoder_heads_and_figures(
    words: Path, tmp_path: Path, task: str
) -> None:
    configs = [
        run_of(words, tmp_path / secure, *TASKS[task], f"secure={secure}")
        for secure in ("none", "pairwise")
    ]
    plain, masked = (train(config)[0] for config in configs)
    assert torch.equal(encoder(plain.checkpoint), encoder(masked.checkpoint))
    assert_equal_heads(*(heads_of(config, 2) for config in configs))
    for figure in ("loss", "accuracy" if task == "classify" else "wer"):
        assert plain.validation[figure] == pytest.approx(masked.validation[figure], rel=1e-4)


class Stopped(InProcessGrid):
    """Ends, as a server that is killed, when so many clients have been asked to train."""

    after = 5
    asked = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += sum(m.metadata.message_type == "train.round" for m in messages)
        if self.asked == self.after:
            raise KeyboardInterrupt
        return super().push_messages(messages)


class NewProcesses(InProcessGrid):
    """Sites whose process is killed and started again before each message; every second training is
    heard twice, as by a site that was killed after it had saved and before it had answered."""

    heard = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            new_process()
            self.heard += 1
            if message.metadata.message_type == "train.round" and self.heard % 2:
                super().push_messages([message])
                new_process()
        return super().push_messages(messages)


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_and_sites_that_begin_anew_have_the_undisturbed_heads(
    words: Path, tmp_path: Path, task: str
) -> None:
    more = [*TASKS[task], "federated.update_codec=int8", "client.optimizer_policy=keep"]
    configs = {
        name: run_of(words, tmp_path / name, *more, "task.freeze_share=0.5", "resume=auto")
        for name in ("whole", "parts", "anew")
    }
    whole, _ = train(configs["whole"])
    with pytest.raises(KeyboardInterrupt):
        train(configs["parts"], grid_of(Stopped, configs["parts"]))
    again, _ = train(configs["parts"])
    anew, _ = train(configs["anew"], grid_of(NewProcesses, configs["anew"]))
    for other, name in ((again, "parts"), (anew, "anew")):
        assert torch.equal(encoder(whole.checkpoint), encoder(other.checkpoint))
        assert_equal_heads(heads_of(configs["whole"], 2), heads_of(configs[name], 2))


def test_a_client_that_comes_first_begins_with_the_seeded_head(words: Path, tmp_path: Path) -> None:
    """A process that has another client's head in its model takes a fresh one for the next."""
    config = run_of(words, tmp_path / "run", *CLASSIFY, "client.lr=1e-12", "client.weight_decay=0")
    train(config)
    fresh = own_heads(build_model(config.model, config.task, config.seed))
    for head in heads_of(config, 1).values():
        for name, value in head.items():
            torch.testing.assert_close(value, fresh[name], rtol=0, atol=1e-9)


def test_a_client_that_has_lost_its_head_says_so_and_begins_anew(
    words: Path, tmp_path: Path
) -> None:
    config = run_of(words, tmp_path / "run", *CLASSIFY, "federated.num_rounds=3")

    class Losing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            lost = head_file(config, 1, 1) if self.kinds["train.round"] == 3 else None
            if lost is not None and lost.exists():
                lost.unlink()
            return super().push_messages(messages)

    result, _ = train(config, grid_of(Losing, config))
    rounds = [e for e in read_events(result.folder.metrics_file) if e["event"] == "round"]
    failures = [[(f["partition"], f["code"]) for f in event["failed"]] for event in rounds]
    assert failures == [[], [(1, "state_missing")], []]
    assert torch.isfinite(heads_of(config, 3)[1]["classify_head.classifier.weight"]).all()


def test_a_head_of_its_own_is_not_taken_for_one_that_travels(tmp_path: Path) -> None:
    """As a server might ask for in the middle of a run."""
    folder = StateFolder(tmp_path / "state")
    folder.save(1, PartitionState(head={"ctc_head.bias": torch.ones(3)}))
    folder.save(2, PartitionState(residual=torch.ones(3)))
    assert folder.load(1, personal=True).head is not None and folder.load(2).head is None
    for number, personal in ((1, False), (2, True)):
        with pytest.raises(StateMissing, match=r"another task\.head"):
            folder.load(number, personal=personal)


@pytest.mark.parametrize("task", TASKS)
def test_one_client_learns_what_a_shared_head_does(words: Path, tmp_path: Path, task: str) -> None:
    """Federated, with its own head and with one that travels, and centrally."""
    one = [
        *TASKS[task], "federated.num_clients=1", "data.partition.kind=random",
        "federated.server_learning_rate=1", "client.optimizer_policy=keep",
    ]  # fmt: skip
    config = run_of(words, tmp_path / "own", *one)
    own, _ = train(config)
    shared, _ = train(run_of(words, tmp_path / "shared", *one, "task.head=shared"))
    folder = train_baseline(run_of(words, tmp_path / "central", *one), BaselineOptions())
    central = folder.checkpoints / shared.checkpoint.name
    for other in (shared.checkpoint, central):
        theirs = load_checkpoint(other)["model"]
        torch.testing.assert_close(encoder(own.checkpoint), encoder(other), rtol=0, atol=2e-6)
        for name, value in heads_of(config, 2)[0].items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-6)


def test_export_and_evaluation_say_what_there_is(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_of(words, tmp_path / "run", *CLASSIFY)
    result, _ = train(config)
    run, out = str(result.folder.path), tmp_path / "hf"
    assert main(["export", "--checkpoint", run, "--out", str(out)]) == 0
    assert "this is the encoder alone" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "this is the encoder alone" in card and 'pipeline_tag: "feature-extraction"' in card
    asked = ["--manifest", str(words), "--label-column", "pitch"]
    assert main(["evaluate", "--checkpoint", run, *asked]) == 1
    assert "the heads stay at their sites" in capsys.readouterr().err
    head, found = ["--head", str(head_file(config, 1, 2))], tmp_path / "found.json"
    assert main(["evaluate", "--checkpoint", run, *asked, *head, "--out", str(found)]) == 0
    assert json.loads(found.read_text())["utterances"] == 24
    assert main(["export", "--checkpoint", run, *head, "--out", str(tmp_path / "own")]) == 0
    kept = load_file(tmp_path / "own" / "model.safetensors")["classifier.weight"]
    assert torch.equal(kept, heads_of(config, 2)[1]["classify_head.classifier.weight"])
    capsys.readouterr()
    assert main(["export", "--checkpoint", run, "--head", str(words), "--out", run]) == 1
    assert "has no head: name a round of the run" in capsys.readouterr().err
    page = tmp_path / "report.html"
    assert main(["report", run, "--out", str(page)]) == 0
    assert "task.head=personal" in page.read_text()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.trainable=head", "nothing to learn together"),
        ("task.freeze_share=1", "nothing to learn together"),
        ("evaluation.manifest=sample", "scored by the server"),
    ],
)
def test_settings_that_personal_heads_leave_nothing_to(
    words: Path, tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_of(words, tmp_path / "run", *CLASSIFY, setting)
