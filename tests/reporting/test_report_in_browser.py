"""The HTML report as a browser shows it, in a wide window and in a narrow one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .by_hand import FINAL, TARGETS, client, report, round_event, write

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
LOOK = """<script>addEventListener("load", () => {
  const widths = (name) => [...document.querySelectorAll(name)].map((element) => Math.round(element.getBoundingClientRect().width));
  document.title = JSON.stringify({
    window: innerWidth, page: document.documentElement.scrollWidth, figures: widths("svg"), holders: widths(".wide"),
    tops: [...document.querySelectorAll(".pictures svg")].slice(0, 2).map((element) => Math.round(element.getBoundingClientRect().top)),
    headings: [...document.querySelectorAll("h2")].map((element) => element.innerText), curves: document.querySelectorAll("svg path").length,
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
  });
});</script></body>"""


def look(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """Return what the browser measures of a page in a window of so many pixels."""
    asking = folder / "asking.html"
    asking.write_text(page.read_text().replace("</body>", LOOK))
    own = [
        f"--user-data-dir={folder / 'browser'}",
        f"--window-size={width},900",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
    ]
    done = subprocess.run(
        [str(BROWSER), *own, "--dump-dom", asking.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr
    return dict(json.loads(html.unescape(title[1])))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 500])  # Chromium's windows are no narrower
def test_the_page_fits_its_window_and_fetches_nothing(tmp_path: Path, width: int) -> None:
    def updated(number: int) -> dict[str, Any]:
        return client(number, 3.0, 20) | {
            "update_norm": 1.0 + number,
            "cosine_to_mean": 0.5 - 0.1 * number,
        }

    drift = {
        "update_norm": 2.0,
        "mean_update_norm": 1.0,
        "pairwise_cosine": 0.2,
        "cosine_to_mean": 0.45,
        "lowest_cosine_to_mean": 0.4,
    }
    events = [
        round_event(number, clients=[updated(0), updated(1)], drift=drift) for number in (1, 2, 3)
    ]
    runs = [
        write(tmp_path / name, [TARGETS, *events, FINAL], f"seed: {name}\n") for name in ("0", "1")
    ]
    text, _ = report(tmp_path, *runs)
    seen = look(tmp_path / "pages/report.html", width, tmp_path)
    assert seen["window"] == width and seen["page"] <= width, (
        seen
    )  # what is wider scrolls within its own box
    assert len(seen["figures"]) == text.count("<svg") == 8 and min(seen["figures"]) >= 440
    assert (seen["tops"][0] == seen["tops"][1]) == (width > 1000)  # side by side, or stacked
    assert max(seen["holders"]) <= width and seen["curves"] > 100 and seen["fetched"] == []
    titles = [
        "Summary",
        "Curves",
        "Clients",
        "Drift",
        "Participation and failures",
        "Bytes and time",
        "Settings",
    ]
    assert seen["headings"] == titles
