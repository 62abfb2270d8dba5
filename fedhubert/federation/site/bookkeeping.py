"""What a policy asks of a site's ledger: counts, the pieces of audio that a run has trained on, and
that a run stays what it is."""

from __future__ import annotations

import hashlib

from fedhubert.config import ClientJob
from fedhubert.config.catalog import rules_for
from fedhubert.federation.site.ledger import Counts, Day, RunEntry, Segment
from fedhubert.federation.site.policy import Policy
from fedhubert.federation.site.rules import Refused
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.nodes import Describe
from fedhubert.federation.wire.messages.targets import Label, MomentsKMeans, SeedKMeans, StepKMeans

_LIMITED = ("messages", "work_seconds", "bytes")


def count(
    policy: Policy, task: Instruction, run_key: str, received: int, run: RunEntry, day: Day
) -> None:
    """Count a message of ``received`` bytes, by run (but for descriptions) and by day; raises
    :class:`Refused` where one too many has come."""
    limits, kmeans = policy.limits, policy.kmeans
    scopes: list[tuple[str, Counts]] = (
        [("day", day)] if isinstance(task, Describe) else [("run", run), ("day", day)]
    )
    for scope, counts in scopes:
        counts.messages += 1
        counts.iterations += isinstance(task, SeedKMeans | MomentsKMeans | StepKMeans)
        counts.labellings += isinstance(task, Label)
        allowed = {name: getattr(limits, f"{name}_per_{scope}") for name in _LIMITED}
        allowed |= {
            name: getattr(kmeans, f"{name}_per_{scope}") for name in ("iterations", "labellings")
        }
        for name, most in allowed.items():
            coming = received if name == "bytes" else 0
            if getattr(counts, name) + coming > most:
                group = "kmeans" if name in ("iterations", "labellings") else "limits"
                raise Refused(
                    f"more {name} than {group}.{name}_per_{scope}={most}",
                    setting=f"{name}_per_{scope}",
                )
    if not isinstance(task, Describe) and (key := digest(run_key)) not in day.runs:
        if len(day.runs) >= limits.runs_per_day:
            raise Refused(
                f"more runs than limits.runs_per_day={limits.runs_per_day}", setting="runs_per_day"
            )
        day.runs.append(key)


def book(run: RunEntry, number: int, start: int, length: int, *, rewinding: bool) -> None:
    """Write down what is trained on; raises :class:`Refused` for other pieces of what was trained
    on before."""
    known = run.segments.setdefault(number, [])
    same = next((segment for segment in known if segment.start == start), None)
    ends = {segment.start + done for segment in known for done in segment.lengths}
    if not rewinding:
        if same is not None and length not in same.lengths:
            raise Refused(
                f"partition {number}: {length} micro-batches from {start} on, before "
                f"{same.lengths}",
                setting="client.local_steps",
                partition=number,
            )
        if same is None and start not in ends and start < max(ends, default=0):
            reason = (
                f"partition {number}: from {start} on, which lies in what was trained on before"
            )
            raise Refused(reason, setting="positions", partition=number)
    if same is None:
        known.append(Segment(start=start, lengths=[length]))


def book_done(run: RunEntry, number: int, start: int, length: int) -> None:
    """Write down how far training came: the clock may have ended it."""
    for segment in run.segments.get(number, []):
        if segment.start == start and length not in segment.lengths:
            segment.lengths.append(length)


def pin(run: RunEntry, job: ClientJob) -> None:
    """Keep what a run is, the first time it asks for something; raises :class:`Refused` when it is
    another later."""
    pinned = {group: digest(repr(value)) for group, value in fixed_values(job).items()}
    if not run.job:
        run.job = dict(pinned)
    changed = [group for group, digest in pinned.items() if run.job.get(group) != digest]
    if changed:
        raise Refused(
            f"{', '.join(changed)} of the run are not what they were when it began",
            setting=changed[0],
        )


def fixed_values(job: ClientJob) -> dict[str, object]:
    """Return what of a job may not change within a run, by group."""
    values = job.model_dump(mode="json")
    return {group: _fixed(group, value) for group, value in values.items()}


def _fixed(name: str, value: object) -> object:
    """Return what of a value may not change within a run."""
    if not isinstance(value, dict):
        return value
    inside = {key: _fixed(f"{name}.{key}", item) for key, item in value.items()}
    free = {
        key
        for key in inside
        if rules_for(f"{name}.{key}").get("resume") == "free"
        or rules_for(f"{name}.{key}").get("path")
    }
    return sorted((key, item) for key, item in inside.items() if key not in free)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
