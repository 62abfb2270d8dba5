"""The page for a data protection officer promises what tests hold, in one screen."""

import re
from pathlib import Path

from fedhubert.config.secure import least_threshold

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "fedhubert/federation/secure/DATA_PROTECTION.md"


def test_every_test_that_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    files = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(files) > 8 and all((TESTS / file).is_file() for file in files), files
    everything = "".join((TESTS / file).read_text() for file in files)
    assert all(f"def {name}(" in everything for name in re.findall(r"`(test_\w+)`", text))
    assert len(text.splitlines()) < 60


def test_its_number_of_sites_that_may_conspire_is_that_of_the_protocol() -> None:
    found = {n: min(2 * least_threshold(n) - n - 1, n - 2) for n in (3, 4, 5, 10)}
    assert found == {3: 1, 4: 1, 5: 2, 10: 3}
    assert "one of 3 or 4 sites, two of 5, three of 10" in " ".join(PAGE.read_text().split())
