"""How long the fuzzing goes on, and what it does with an example."""

import faulthandler
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fedhubert.errors import FedhubertError

SECONDS = 20  # that an example may take


def budget(quick: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "examples",
        [pytest.param(quick, id="quick"), pytest.param(long, id="long", marks=pytest.mark.slow)],
    )


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """A hang in C code cannot be interrupted: after minutes without an end the process says where it is, and ends."""
    long = "long" in request.node.name
    faulthandler.dump_traceback_later(7200 if long else 300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def check(examples: int, strategy: SearchStrategy[Any], holds: Callable[[Any], object]) -> None:
    """Run ``holds`` on what ``strategy`` draws; a :class:`FedhubertError` with words in it is as good as a result."""

    @settings(
        max_examples=examples,
        deadline=SECONDS * 1000,
        derandomize=examples < 1000,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        try:
            holds(drawn)
        except FedhubertError as error:
            assert len(str(error)) > 10 and "Traceback" not in str(error)

    run()


def mutated(whole: bytes) -> SearchStrategy[bytes]:
    """``whole`` with bytes changed, cut out, doubled or put in, most of them near the beginning, where headers are."""
    place = st.one_of(st.integers(0, min(200, len(whole))), st.integers(0, len(whole)))
    edit = st.tuples(
        place,
        st.integers(0, 8),
        st.one_of(
            st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\0" * 4])
        ),
    )

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = bytearray(whole)
        for start, count, new in edits:
            content[start : start + count] = new
        return bytes(content)

    cut = st.integers(0, len(whole)).map(lambda end: whole[:end])
    return st.one_of(
        st.lists(edit, min_size=1, max_size=6).map(apply), cut, st.binary(max_size=300)
    )
