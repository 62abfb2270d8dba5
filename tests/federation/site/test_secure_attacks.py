"""A server that asks a site with a pinned roster for more than a sum over the sites of that roster: each attack is refused by its code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhubert.federation.secure.keys import RunKey
from fedhubert.federation.secure.opening import Opening
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.site.secure import SecureSite
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.messages.nodes import Describe
from fedhubert.federation.wire.messages.rounds import Evaluate
from fedhubert.federation.wire.messages.secure import Close, MaskedCounts, SecureTerms
from fedhubert.federation.wire.messages.targets import Label, MomentsKMeans, SeedKMeans, StepKMeans
from fedhubert.targets.kmeans import centroids_hash

from .attacker import RUN, Attacker, attacker
from .server import CENTROIDS

__all__ = ["attacker"]  # fixtures


def test_nothing_leaves_unmasked(attacker: Attacker) -> None:
    """Downgrade: plain messages of every kind, and a run that calls itself plain."""
    evaluate = Evaluate(round=1, layout="", arrays={"model": attacker.vector.numpy()})
    key = centroids_hash(CENTROIDS)
    centroids = {"centroids": CENTROIDS}
    for plain in (
        attacker.train(),
        evaluate,
        SeedKMeans(),
        MomentsKMeans(),
        StepKMeans(arrays=centroids),
        Label(targets=key, arrays=centroids),
    ):
        assert attacker.code(plain) == "secure_required", plain.KIND
    off = ["secure.protocol=none"]
    assert attacker.code(attacker.secured(attacker.train()), *off) == "secure_required"
    assert attacker.code(Describe(), *off) == "secure_required"


def test_cohorts_that_are_no_crowd_of_the_roster_are_refused(attacker: Attacker) -> None:
    train = attacker.train()
    too_few = attacker.secured(train, range(3))  # the roster asks for 4
    assert attacker.code(too_few) == "secure_cohort"
    for cohort in (range(1), range(2), (0, 1, 2, 3, 99), (0, 0, 1, 2, 3), (1, 0, 2, 3)):
        assert attacker.code(attacker.secured(train, cohort)) == "secure_cohort"
    without = attacker.secured(train, range(1, 5), positions=dict.fromkeys(range(5), 0))
    assert attacker.code(without) == "secure_cohort"
    assert attacker.code(attacker.secured(train, neighbours=2, threshold=3)) == "secure_cohort"
    for threshold in (1, 3, 6):
        assert attacker.code(attacker.secured(train, threshold=threshold)) == "secure_threshold"


def test_keys_that_are_not_the_rosters_for_this_run_are_refused(attacker: Attacker) -> None:
    train, rows, roster = attacker.train(), attacker.rows(), attacker.roster.fingerprint
    stranger = RunKey(X25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    attempts = {
        "forged": [*rows[:4], rows[4][:96] + bytes(32)],
        "swapped": [rows[0], rows[2], rows[1], *rows[3:]],
        "repeated": [*rows[:4], rows[3]],
        "another run's": [*rows[:4], attacker.run_keys[3].row("other", roster, 4)],
        "another roster's": [*rows[:4], attacker.run_keys[3].row(RUN, "f" * 64, 4)],
        "a stranger's": [*rows[:4], stranger.row(RUN, roster, 4)],
        "one run key twice": [
            *rows[:4],
            RunKey(attacker.run_keys[2].exchange, attacker.signing[3]).row(RUN, roster, 4),
        ],
        "a swapped one of its own": [attacker.run_keys[0].row(RUN, roster, 0), *rows[1:]],
    }
    for what, shown in attempts.items():
        assert attacker.code(attacker.secured(train, rows=shown)) == "secure_keys", what
    secured = attacker.secured(train)
    arrays = {"model": secured.arrays["model"]}
    assert attacker.code(secured.model_copy(update={"arrays": arrays})) == "secure_keys"
    other = {"roster": "f" * 64}
    assert attacker.code(attacker.secured(train, **other)) == "secure_roster"


def test_a_site_with_data_of_its_own_and_no_roster_takes_no_part(attacker: Attacker) -> None:
    del attacker.node["roster"]
    terms = SecureTerms(attempt=0, cohort=(0, 1, 2, 3, 4), threshold=4, neighbours=4)
    asked = attacker.train().model_copy(update={"secure": terms})
    assert attacker.code(asked) == "secure_roster"


def test_a_roster_that_has_another_key_of_this_site_is_an_error_of_its_own(
    attacker: Attacker, tmp_path: Path
) -> None:
    sites = {**attacker.roster.sites, 0: bytes(32)}
    write_roster(tmp_path / "roster.json", Roster("clinics", 4, sites))
    reply = attacker.say(Describe())
    assert [(f.code, f.setting) for f in reply.failures] == [("secure_roster", "roster")]


def test_rounds_models_cohorts_and_batches_are_not_gone_back_on(attacker: Attacker) -> None:
    attacker.label()
    terms, own = attacker.round()
    again = attacker.secured(attacker.train())
    assert attacker.code(again) == "secure_replay"  # also by another process, and after a restart
    dealt = attacker.dealt(terms, own)
    assert attacker.code(attacker.open(terms, dealt, range(5))) == ""
    other = attacker.vector + 1e-3
    for what, (instruction, code) in {
        "smaller cohort": (
            attacker.secured(attacker.train(), range(4), attempt=1),
            "secure_cohort",
        ),
        "another model": (
            attacker.secured(attacker.train(vector=other), attempt=1),
            "secure_replay",
        ),
        "other batches": (
            attacker.secured(attacker.train(position=5), attempt=1),
            "secure_replay",
        ),
        **{
            f"another {name}": (
                attacker.secured(attacker.train().model_copy(update={name: value}), attempt=1),
                "secure_replay",
            )
            for name, value in {
                "weight_limit": 3,
                "clip_norm": 1e-3,
                "norm_limit": 1e6,
                "targets": "others",
            }.items()
        },
        "another scale": (attacker.secured(attacker.train(), attempt=1, scale=2), "secure_replay"),
        "the model over a smaller cohort in the next round": (
            attacker.secured(attacker.train(2, 5), range(4)),
            "secure_model",
        ),
        "batches that were trained on": (
            attacker.secured(attacker.train(2, vector=other)),
            "secure_positions",
        ),
        "positions that others were not told": (
            attacker.secured(attacker.train(2, 5, other), positions=dict.fromkeys(range(5), 7)),
            "secure_positions",
        ),
        "a round before the first": (attacker.secured(attacker.train(0)), "secure_replay"),
    }.items():
        assert attacker.code(instruction) == code, what
    # what a resumed run asks for
    assert attacker.code(attacker.secured(attacker.train(), attempt=1)) == ""


def test_a_model_is_not_summed_over_a_smaller_cohort_in_another_run(attacker: Attacker) -> None:
    attacker.label()
    terms, own = attacker.round()
    attacker.code(attacker.open(terms, attacker.dealt(terms, own), range(5)))
    fewer = attacker.secured(attacker.train(), range(4), run="other")
    assert attacker.code(fewer, run="other") == "secure_model"


def test_a_sum_is_opened_once_over_enough_with_this_site_in_it(attacker: Attacker) -> None:
    attacker.label()
    terms, own = attacker.round()
    dealt = attacker.dealt(terms, own)
    for included in ((0, 1, 2), (1, 2, 3, 4), (0, 1, 2, 99)):
        assert attacker.code(attacker.open(terms, dealt, range(5), included=included)) == (
            "secure_opened"
        )
    assert attacker.code(attacker.open(terms, dealt, range(5), attempt=1)) == "secure_opened"
    assert attacker.code(attacker.open(terms, dealt, range(5), round=2)) == "secure_opened"
    assert attacker.code(attacker.open(terms, dealt, range(5), of="evaluate.model")) == (
        "secure_opened"
    )
    assert attacker.code(attacker.open(terms, dealt, (0, 1, 2, 3))) == ""
    # client 4 was called dropped out; now it is to be in the sum, too
    assert attacker.code(attacker.open(terms, dealt, range(5))) == "secure_opened"
    assert attacker.code(attacker.open(terms, dealt, (0, 1, 2, 3))) == ""  # the reply was lost


def test_sealed_shares_are_opened_as_they_were_dealt(attacker: Attacker) -> None:
    attacker.label()
    terms, own = attacker.round()
    dealt = attacker.dealt(terms, own)
    sealed = attacker.open(terms, dealt, range(5)).arrays["sealed_0"]
    altered = sealed.copy()
    altered[1, 60] ^= 1  # type: ignore[operator]
    for wrong in (altered, sealed[[0, 2, 1, 3, 4]], sealed[:4], sealed[:, :-1]):
        assert attacker.code(attacker.open(terms, dealt, range(5), sealed=wrong)) == "secure_share"
    reply = attacker.say(attacker.open(terms, dealt, range(5)))
    assert reply.answer is not None
    opening = Opening(terms, range(5), {n: each.commitments for n, each in dealt.items()})
    opening.take(0, np.asarray(reply.answer.arrays["shares_0"], np.uint8))
    assert not opening.liars


def test_sums_of_one_message_are_repeated_with_the_same_bits_and_the_same_cohort(
    attacker: Attacker,
) -> None:
    step = StepKMeans(arrays={"centroids": CENTROIDS})
    replies = [attacker.say(attacker.secured(step)).answer for _ in range(2)]
    assert all(isinstance(reply, MaskedCounts) for reply in replies)
    first, second = (reply.arrays["masked"] for reply in replies if reply is not None)
    assert (first == second).all() and len(first) == 6 * 39 + 6 + 6
    assert attacker.code(attacker.secured(step, range(4))) == "secure_cohort"


def test_sums_that_nobody_opens_are_over_the_whole_roster(attacker: Attacker) -> None:
    """Under centroids that differ in a sign of zero, or in their order, in another run, without one site: the difference would be its sums."""
    step = StepKMeans(arrays={"centroids": CENTROIDS})
    assert attacker.code(attacker.secured(step)) == ""
    for again in (StepKMeans(arrays={"centroids": CENTROIDS[::-1].copy()}), MomentsKMeans(), step):
        for run in (RUN, "other"):
            assert attacker.code(attacker.secured(again, range(4), run=run), run=run) == (
                "secure_cohort"
            )
    assert attacker.code(attacker.secured(MomentsKMeans())) == ""


def test_masks_by_pairs_alone_are_not_used_for_other_data(
    attacker: Attacker, tmp_path: Path
) -> None:
    """The site's operator leaves audio out and starts it again; the server asks the same again."""
    step = StepKMeans(arrays={"centroids": CENTROIDS})
    asked = attacker.secured(step)
    first = attacker.say(asked).answer
    manifest = Path(str(attacker.node["manifest"]))
    lines = manifest.read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:40]) + "\n")
    attacker.node |= {"manifest": str(tmp_path / "fewer.csv"), "audio-root": str(manifest.parent)}
    assert attacker.code(asked) == "secure_replay"
    attacker.node["manifest"] = str(manifest)
    again = attacker.say(asked).answer
    assert first is not None and again is not None
    assert (first.arrays["masked"] == again.arrays["masked"]).all()


def test_what_depends_on_a_sites_own_figures_is_refused_by_one_code_and_not_searched_for(
    attacker: Attacker,
) -> None:
    """A norm limit that is halved again and again would find the norm of its update."""
    attacker.label()

    def limited(limit: float, attempt: int, number: int = 1) -> str:
        train = attacker.train(number).model_copy(update={"norm_limit": limit})
        return attacker.code(attacker.secured(train, attempt=attempt))

    assert limited(1e-9, 0) == "secure_garbage"
    assert limited(1e9, 1) == "secure_replay"
    assert limited(1e-9, 2) == "secure_garbage"


def test_a_model_is_known_by_its_values_however_it_travels(attacker: Attacker) -> None:
    """Negative zeros make no other model, nor do values that bfloat16 has exactly."""
    attacker.label()
    attacker.vector = attacker.vector.to(torch.bfloat16).to(torch.float32)
    attacker.vector[:5] = 0.0
    terms, own = attacker.round()
    assert attacker.code(attacker.open(terms, attacker.dealt(terms, own), range(5))) == ""
    negative = attacker.vector.clone()
    negative[:5] = -0.0
    short = attacker.vector.to(torch.bfloat16).view(torch.int16).numpy()
    as_int16 = attacker.train(2, 5).model_copy(
        update={"broadcast_codec": "bf16", "arrays": {"model": short}}
    )
    for train in (attacker.train(2, 5, negative), as_int16):
        assert attacker.code(attacker.secured(train, range(4))) == "secure_model"
    score = Evaluate(
        round=2,
        layout=attacker.layout.fingerprint,
        targets=centroids_hash(CENTROIDS),
        arrays={"model": negative.numpy()},
    )
    assert attacker.code(attacker.secured(score, range(4))) == "secure_model"


def test_a_server_does_not_say_where_a_site_with_a_roster_keeps_its_ledger(
    attacker: Attacker, tmp_path: Path
) -> None:
    """Another folder would be a site that has opened nothing yet."""
    node = {k: v for k, v in attacker.node.items() if k not in ("manifest", "state-dir")}
    folders = {
        SecureSite.of(
            reading.read_request(
                attacker.message(Describe(), f"client.state_dir={tmp_path / name}")
            ),
            node,
        ).folder
        for name in ("one", "two")
    }
    assert len(folders) == 1


def test_run_keys_are_gone_when_the_run_is_over(attacker: Attacker) -> None:
    row = attacker.own_row()
    assert attacker.own_row() == row
    assert attacker.code(Close()) == ""
    assert not list(Path(str(attacker.node["state-dir"])).rglob("run.key"))
    asked = attacker.secured(attacker.train(), rows=[row, *attacker.rows("x")[1:]])
    assert attacker.code(asked) == "secure_keys"


def test_a_sum_is_opened_without_torch(attacker: Attacker) -> None:
    """Others wait for it: a process that opens a sum loads neither torch nor the audio's manifest."""
    attacker.label()
    terms, own = attacker.round()
    message = attacker.message(attacker.open(terms, attacker.dealt(terms, own), range(5)))
    sealed = message.content.array_records["arrays"]["sealed_0"].numpy()
    request = dict(message.content.config_records["request"])
    probe = """
import json, sys
import numpy as np
from fedhubert.federation.site.answering import respond
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import ArrayRecord, ConfigRecord, Message, RecordDict
from tests.flower import identify
identify()
request, sealed, node = json.loads(sys.stdin.read())
record = ArrayRecord()
record["sealed_0"] = HeldArray(np.array(sealed, np.uint8))
content = RecordDict({"request": ConfigRecord(request)})
content["arrays"] = record
reply = respond(Message(content, 1, "query.open"), node)
print(reply.content.array_records["arrays"]["shares_0"].numpy().shape, "torch" in sys.modules)
"""
    said = json.dumps([request, sealed.tolist(), attacker.node])
    done = subprocess.run(
        [sys.executable, "-c", probe], input=said, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["(5,", "33)", "False"], done.stderr[-2000:]
