"""What the documentation says is there: links, anchors, files, tests, keys, verbs, commands, rounds."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhubert.cli import VERBS
from fedhubert.compose import group_choices
from fedhubert.config import Config
from fedhubert.config.catalog import all_keys
from fedhubert.config.explain import markdown
from fedhubert.errors import FedhubertError
from fedhubert.federation.site.policy_model import Policy
from fedhubert.runs.store import RoundStore

from .cli import check_command, composed
from .pages import REPOSITORY, Page, commands_of, pages

PAGES = pages()
README = next(page for page in PAGES if page.path == REPOSITORY / "README.md")
WIDTH, LENGTH = 110, 250
GROUPS = {name for name, key in all_keys().items() if key.is_group}
PLACES = ("fedhubert/", "tests/", "conf/", "docker/", "server_app/", "client_app/")
MODULES = [str(path) for place in PLACES for path in (REPOSITORY / place).rglob("*.py")]

every_page = pytest.mark.parametrize("page", PAGES, ids=str)


@pytest.fixture(autouse=True)
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUBERT_CORPUS", "/corpus")


def test_the_readme_is_short() -> None:
    assert len(README.lines) <= LENGTH
    assert not [line for line in README.lines if len(line) > WIDTH]
    prose = [line for line in README.prose if not line.startswith("|")]
    several = [
        line
        for line in prose
        if re.search(r"[.?!][)*]* +[A-Z`\[]", re.sub(r"`[^`]*`", "`x`", line))
    ]
    assert not several, "one sentence a line"


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(REPOSITORY), f"{page}: {link}"
        if anchor:
            assert anchor in Page(target).anchors, f"{page}: no heading for {link}"


@every_page
def test_files_and_tests_that_are_named_exist(page: Page) -> None:
    for name in page.code:
        path, _, test = name.partition("::")
        if path.startswith(PLACES) and "NAME" not in path and re.fullmatch(r"[\w./-]+", path):
            assert (REPOSITORY / path).exists(), f"{page}: {name}"
            assert not test or f"def {test}(" in (REPOSITORY / path).read_text(), f"{page}: {name}"
        elif "NAME" not in path and re.fullmatch(
            r"[\w.-]+/[\w./-]+\.py", path
        ):  # told from a folder below
            assert any(module.endswith(f"/{path}") for module in MODULES), f"{page}: {name}"


def dotted(page: Page) -> Iterator[str]:
    """Yield what looks like a key of the configuration in a page's code and shell snippets."""
    shells = [snippet.text for snippet in page.snippets if snippet.language in ("bash", "")]
    for text in [*page.code, *shells]:
        for name in re.findall(r"(?<![\w./@-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w/*(-])", text):
            if name.split(".")[0] in GROUPS:
                yield name


@every_page
def test_keys_that_are_named_exist(page: Page) -> None:
    policy = {
        f"{group}.{name}"
        for group, field in Policy.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
    }
    known = set(all_keys()) | policy
    files = (
        ".py",
        ".csv",
        ".json",
        ".jsonl",
        ".md",
        ".pt",
        ".yaml",
        ".safetensors",
        ".onnx",
        ".pt2",
    )
    unknown = {name for name in dotted(page) if name not in known and not name.endswith(files)}
    assert not unknown, page


def test_the_table_of_keys_is_what_the_models_say() -> None:
    """`python -m tests.docs` writes it anew."""
    chapter = (REPOSITORY / "conf/README.md").read_text()
    assert f"<!-- keys -->\n{markdown()}\n<!-- /keys -->\n" in chapter
    assert all(f"| `{name}` |" in chapter for name, key in all_keys().items() if not key.is_group)


def test_one_group_as_a_table_and_what_is_none() -> None:
    assert markdown("checkpoint").startswith("### `checkpoint`\n") and "| `checkpoint.every` |" in (
        markdown("checkpoint")
    )
    with pytest.raises(FedhubertError, match="no group `client.lr`"):
        markdown("client.lr")


def test_a_sites_settings_are_all_in_its_operators_chapter() -> None:
    chapter = (REPOSITORY / "client_app/README.md").read_text()
    rows = re.findall(
        r"^\| (`[^|]*) \|", chapter.split("## Settings")[1].split("## ")[0], re.MULTILINE
    )
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    of_keys = {key.rules["site"] for key in all_keys().values() if "site" in key.rules}
    assert of_keys <= named and {"policy", "coordinator-key", "site-key", "audit"} <= named


def test_every_verb_experiment_and_choice_is_documented() -> None:
    readme, chapter = README.path.read_text(), (REPOSITORY / "conf/README.md").read_text()
    assert all(f"`fedhubert {verb}" in readme for verb in VERBS)
    for group, names in group_choices().items():
        assert len(names) == 1 or all(f"`{name}`" in chapter for name in names), group


@every_page
def test_commands_are_taken_by_the_command_line(page: Page) -> None:
    for words in page.commands:
        try:
            check_command(words)
        except (FedhubertError, SystemExit, AssertionError) as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.path.name == "README.md"], ids=str)
def test_a_chapter_begins_with_a_command(page: Page) -> None:
    first = page.snippets[0]
    assert first.language == "bash" and (page is README or first.line <= 12)


@every_page
def test_verbs_in_the_text_exist(page: Page) -> None:
    for code in page.code:
        if named := re.match(r"fedhubert ([a-z][a-z-]*)", code):
            assert named[1] in VERBS, f"{page}: {code}"


@every_page
def test_python_snippets_are_python(page: Page) -> None:
    for snippet in page.snippets:
        if snippet.language == "python":
            ast.parse(textwrap.dedent(snippet.text))


def saved(config: Config) -> set[int]:
    """Return the rounds whose checkpoints are there at the end of a run."""
    rounds, every = config.federated.num_rounds, config.checkpoint.every
    numbers = {*range(every, rounds + 1, every), rounds}
    return set(sorted(numbers)[-config.checkpoint.keep_last :])


def runs() -> dict[str, Config]:
    """Return the runs that commands of the documentation begin, by the last name of their folders."""
    found = {}
    for words in (words for page in PAGES for words in page.commands):
        outs = [word for word in words if word.startswith("out=")]
        if words[:2] == ["fedhubert", "train"] and outs and "-m" not in words:
            found[Path(outs[0]).name] = composed([word for word in words[2:] if word[0] != "-"])
    server = next(
        words
        for page in PAGES
        for words in page.commands
        if words[:2] == ["flwr", "run"] and "experiment=demo" in " ".join(words)
    )
    overrides = re.search(r'overrides="(.*)"', " ".join(server))
    assert overrides
    config = composed(overrides[1].split())
    return {**found, Path(str(config.out)).name: config}


def test_rounds_that_are_named_are_saved_by_a_run_of_the_documentation() -> None:
    known, named = runs(), 0
    for page in PAGES:
        text = "\n".join([*page.code, *(snippet.text for snippet in page.snippets)])
        for path, number in re.findall(r"([\w./~-]*)/checkpoints/round_(\d{3})_", text):
            named += 1
            assert int(number) in saved(known[Path(path).name]), f"{page}: {path}, round {number}"
        bare = set(re.findall(r"(?<!/)\bround_(\d{3})", text))
        assert not bare, f"{page}: rounds {bare} of no run"
    assert named >= 2


def test_what_the_checks_hold_would_fail() -> None:
    wrong = [
        "fedhubert trian experiment=demo",
        "fedhubert train federated.rounds=3",
        "fedhubert train federated.client_fraction=2",
        "fedhubert train experiment=none_such",
        "fedhubert export --checkpoint x --format onyx --out y",
        "fedhubert compare seeds=3 --eval-manifests x",
        "fedhubert plan hour=3",
        "fedhubert recipe demo nowhere:seed=1",
        "fedhubert fork runs/x out=y client.rate=3",
        "flwr run . --run-config 'overrides=\"client.rate=3\"'",
        "make nothing",
        "python -m tests.nothing",
        "docker/nothing.sh",
        "pip install 'fedhubert[nothing]'",
        "for x in 1 2; do fedhubert certs --sites $x; done   # a comment",
    ]
    for line in wrong:
        (words,) = commands_of(line)
        with pytest.raises((FedhubertError, SystemExit, AssertionError)):
            check_command(words)


def test_rounds_that_stay_are_those_that_the_store_keeps(tmp_path: Path) -> None:
    config = composed(["experiment=demo"])
    assert saved(config) == {100, 150, 200, 250, 300} and RoundStore(tmp_path).rounds() == []
