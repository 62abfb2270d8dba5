"""What tests of trust share."""

import pytest

from tests.flower import identify


@pytest.fixture(autouse=True)
def identity() -> None:
    """Flower sets this when it starts an app."""
    identify()
