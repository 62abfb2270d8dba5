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
  const cross = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const box = (element) => element.getBoundingClientRect();
  const crossed = [...document.querySelectorAll("svg")].flatMap((svg) => {
    const words = [...svg.querySelectorAll("text")], parts = [...svg.querySelectorAll('[id^="axes"], [id^="legend"]')];
    return [words, parts].flatMap((all) => all.flatMap((one, place) => all.slice(place + 1).filter((other) => cross(box(one), box(other)))
      .map((other) => `${svg.ariaLabel}: ${one.textContent.trim()} | ${other.textContent.trim()}`)));
  });
  const widths = (name) => [...document.querySelectorAll(name)].map((element) => Math.round(element.getBoundingClientRect().width));
  document.title = JSON.stringify({
    window: innerWidth, page: document.documentElement.scrollWidth, figures: widths("svg"), holders: widths(".wide"),
    tops: [...document.querySelectorAll(".pictures svg")].slice(0, 2).map((element) => Math.round(element.getBoundingClientRect().top)),
    headings: [...document.querySelectorAll("h2")].map((element) => element.innerText), curves: document.querySelectorAll("svg path").length,
    crossed, title: document.querySelector("h1").innerText, heads: [...document.querySelectorAll("thead")].map((element) => Math.round(box(element).height)),
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


in_both = pytest.mark.parametrize("width", [1280, 500])  # Chromium's windows are no narrower
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)"
)


@in_both
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
    assert seen["crossed"] == []


@in_both
def test_a_comparison_comes_first_and_long_names_fit(tmp_path: Path, width: int) -> None:
    models = ("federated", "central", "local_only", "untrained")
    figures = {name: {"mean": 2.0, "sd": 0.1, "seeds": 3} for name in ("loss", "masked_accuracy")}
    seeds = {
        seed: {model: {"loss": 2.0, "masked_accuracy": 2.0} for model in models} for seed in "012"
    }
    compared = tmp_path / "compared"
    compared.mkdir()
    summary = {model: figures for model in models}
    (compared / "compare.json").write_text(json.dumps({"summary": summary, "seeds": seeds}))
    events = [TARGETS, *(round_event(number) for number in (1, 2, 3)), FINAL]
    names = [f"federated.strategy=FedAdam,client.lr={number}e-3" for number in (1, 2, 3, 4)]
    report(tmp_path, compared, *(write(tmp_path / name, events) for name in names))
    seen = look(tmp_path / "pages/report.html", width, tmp_path)
    assert seen["title"] == "fedhubert: 5 runs" and seen["page"] <= width
    assert seen["headings"][:3] == ["Summary", "Comparison", "Curves"]
    assert max(seen["heads"]) <= 110, seen["heads"]  # what is hidden does not make it tall
    assert seen["crossed"] == []
