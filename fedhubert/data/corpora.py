"""Where speech is found: any folder of audio, a LibriSpeech tree, and the sample speech that demos
use."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedhubert.config import Config
from fedhubert.data.folders import UNKNOWN, Candidate, Found, walk
from fedhubert.data.parts import ARCHIVE, CUT, REQUIRED
from fedhubert.errors import ConfigError, DataError

SAMPLE_LANGUAGES = ("en", "es", "fr", "it", "ru")
DEFAULT_SPEAKER_PATTERN = "{speaker}/"

_APT_TIMEOUT_S = 900
_VOICE = re.compile(r"(?P<language>[a-z]{2})_[A-Z]{2}_[fm]_\w+$")


def cache_folder() -> Path:
    """Return the user's cache folder for fedhubert: FEDHUBERT_CACHE, or ``fedhubert`` below
    XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("FEDHUBERT_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "fedhubert"
    )


def sample_folder() -> Path:
    """Return where ``fedhubert prepare sample`` keeps the sample speech."""
    return cache_folder() / "sample"


def resolve_manifest(name: str) -> Path:
    """Return the manifest file that ``data.manifest`` means: ``sample``, or a path; raises
    :class:`DataError` with the remedy."""
    if name == "sample":
        manifest = sample_folder() / "manifest.csv"
        if not manifest.is_file():
            raise DataError(
                f"the sample speech is not here ({manifest}): fetch it with `fedhubert prepare "
                "sample`",
                setting="data.manifest",
            )
        return manifest
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"data.manifest: no such file {path}; `fedhubert prepare folder` writes one",
            setting="data.manifest",
        )
    return path.absolute()


def with_absolute_data(config: Config) -> Config:
    """Return ``config`` with its manifest found, and named so that it means the same in every
    process.

    Raises:
        ConfigError: ``data.manifest`` is not set.
        DataError: there is no such file.
    """
    if config.data.manifest is None:
        raise ConfigError(
            "no audio: give data.manifest=PATH (`fedhubert prepare` writes one)",
            setting="data.manifest",
        )
    manifest = resolve_manifest(config.data.manifest)
    root = str(Path(config.data.root).expanduser().absolute()) if config.data.root else None
    return config.model_copy(
        update={"data": config.data.model_copy(update={"manifest": str(manifest), "root": root})}
    )


def scan_folder(
    root: Path, speaker_pattern: str = DEFAULT_SPEAKER_PATTERN, *, follow_links: bool = False
) -> Found:
    """Return the audio below ``root``; speaker and other columns come from ``speaker_pattern``.

    The pattern is matched at the start of the relative path; each ``{name}`` stands for a run of
    characters without ``/``, and names other than ``speaker`` become columns:
    ``{language}/{speaker}/``, or ``{digit}_{speaker}_``. A file that does not match has the speaker
    ``unknown``.
    """
    name = by_pattern(speaker_pattern)
    seen = walk(root, follow_links=follow_links)
    found = Found(root, rejected=seen.rejected, remarks=seen.remarks())
    found.candidates = [Candidate(path, *name(path)) for path in seen.paths]
    say_unmatched(found, speaker_pattern)
    return found


def by_pattern(speaker_pattern: str) -> Callable[[str], tuple[str, dict[str, str]]]:
    """Return what gives a path's speaker and other columns by a pattern (see
    :func:`scan_folder`); raises :class:`DataError` for one that names no speaker."""
    names = re.findall(r"{(\w+)}", speaker_pattern)
    if "speaker" not in names or len(set(names)) < len(names):
        raise DataError(
            f"--speaker-pattern {speaker_pattern!r} needs {{speaker}} once, for example "
            f"'{{speaker}}/' or '{{language}}/{{speaker}}_'",
            setting="--speaker-pattern",
        )
    taken = sorted({*REQUIRED, *CUT, *ARCHIVE}.intersection(names) - {"speaker"})
    if taken:
        raise DataError(
            f"--speaker-pattern {speaker_pattern!r}: {taken[0]} is a column that every manifest "
            "has: call it something else",
            setting="--speaker-pattern",
        )
    literal = re.split(r"{\w+}", speaker_pattern)
    groups = [f"(?P<{name}>[^/]+?)" for name in names] + [""]
    pattern = re.compile(
        "".join(re.escape(text) + group for text, group in zip(literal, groups, strict=True))
    )

    def name(path: str) -> tuple[str, dict[str, str]]:
        match = pattern.match(path)
        values = {name: match.group(name) if match else UNKNOWN for name in names}
        return values.pop("speaker"), values

    return name


def say_unmatched(found: Found, speaker_pattern: str) -> None:
    """Remark how many paths a pattern fits, where it is not all of them."""
    fits = sum(item.speaker != UNKNOWN for item in found.candidates)
    if fits < len(found.candidates):
        found.remarks.append(
            f"warning: --speaker-pattern {speaker_pattern!r} fits {fits} of "
            f"{len(found.candidates)} paths; the speaker of the others is `{UNKNOWN}`"
        )


def scan_librispeech(root: Path) -> Found:
    """Return the utterances of a LibriSpeech tree (speaker/chapter/speaker-chapter-utterance.flac),
    with text where transcripts are. Subsets may be links to where they are kept."""
    seen = walk(root, follow_links=True)
    found = Found(root, rejected=seen.rejected, remarks=seen.remarks())
    texts = _transcripts(root, {os.path.dirname(path) for path in seen.paths}, found)
    for path in seen.paths:
        stem = Path(path).stem
        parts = stem.split("-")
        if len(parts) == 3 and all(part.isdigit() for part in parts):
            columns = {
                "chapter": parts[1],
                "language": "en",
                "text": texts.get(stem, ""),
                "source": "librispeech",
            }
            found.candidates.append(Candidate(path, parts[0], columns))
    if not found.candidates:
        raise DataError(
            f"{root} holds no LibriSpeech files (names like 84-121123-0001.flac)", setting="--root"
        )
    return found


def _transcripts(root: Path, folders: set[str], found: Found) -> dict[str, str]:
    """Return utterance -> text of the ``*.trans.txt`` files in these folders; hidden ones
    (AppleDouble) are passed over, and what is not UTF-8 is read as Latin-1."""
    texts: dict[str, str] = {}
    for folder in sorted(folders):
        for transcript in sorted((root / folder).glob("*.trans.txt")):
            if transcript.name.startswith("."):
                continue
            try:
                content = transcript.read_bytes()
            except OSError as error:
                found.remarks.append(f"warning: no text from {transcript}: {error.strerror}")
                continue
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                found.remarks.append(f"warning: {transcript} is not UTF-8: read as Latin-1")
                text = content.decode("latin-1")
            for line in text.splitlines():
                name, _, said = line.partition(" ")
                texts[name] = said
    return texts


def download_librispeech(root: Path, subset: str) -> Path:
    """Download a LibriSpeech subset (``dev-clean``, ``train-clean-100``, ...) below ``root`` with
    torchaudio; return its folder."""
    from torchaudio.datasets import LIBRISPEECH

    root.mkdir(parents=True, exist_ok=True)
    try:
        LIBRISPEECH(str(root), url=subset, download=True)
    except Exception as error:  # torchaudio passes on whatever its downloader raises
        raise DataError(
            f"LibriSpeech {subset} could not be downloaded: {type(error).__name__}: {error}",
            setting="--download",
        ) from None
    return root / "LibriSpeech" / subset


def fetch_sample(folder: Path) -> Found:
    """Make sure that the sample speech lies below ``folder`` and return its utterances.

    Debian's spoken prompts in five languages (about two hours, one voice each, 8 kHz), fetched with
    ``apt-get download`` and unpacked, without root; where there is no apt, LibriSpeech dev-clean.

    Raises:
        DataError: neither could be had; says what to do.
    """
    prompts = folder / "prompts"
    if not prompts.is_dir():
        try:
            _fetch_prompts(prompts)
        except DataError as no_apt:
            librispeech = folder / "LibriSpeech" / "dev-clean"
            try:
                if not librispeech.is_dir():
                    download_librispeech(folder, "dev-clean")
            except DataError as no_download:
                raise DataError(
                    f"no sample speech: {no_apt}; {no_download}. Bring your own audio: `fedhubert "
                    "prepare folder --root DIR --out manifest.csv`, "
                    "then `fedhubert train data.manifest=manifest.csv`"
                ) from None
            return Found(
                folder,
                [
                    Candidate(f"LibriSpeech/dev-clean/{item.path}", item.speaker, item.columns)
                    for item in scan_librispeech(librispeech).candidates
                ],
            )
    return scan_prompts(folder)


def scan_prompts(folder: Path) -> Found:
    """Return the prompts below ``folder/prompts``: one folder a voice, named like
    ``en_US_f_Allison``; recorded silence is left out."""
    found = Found(folder)
    for path in walk(folder / "prompts").paths:
        voice, *rest = path.split("/")
        match = _VOICE.match(voice)
        if match and rest[0] != "silence":
            columns = {
                "language": match.group("language"),
                "source": "asterisk-core-sounds",
                "license": "CC-BY-3.0" if voice.startswith("ru") else "CC-BY-SA-3.0",
            }
            found.candidates.append(Candidate(f"prompts/{path}", voice, columns))
    return found


def _fetch_prompts(prompts: Path) -> None:
    """Download and unpack the packages into ``prompts``, which appears only when all is there."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DataError(
            f"{' and '.join(missing)} not found (the sample speech comes as Debian packages)"
        )
    prompts.parent.mkdir(parents=True, exist_ok=True)
    packages = [f"asterisk-core-sounds-{language}-wav" for language in SAMPLE_LANGUAGES]
    with tempfile.TemporaryDirectory(dir=prompts.parent, prefix=".fetch-") as scratch:
        work = Path(scratch)
        for name in ("lists/partial", "cache/archives/partial", "debs", "unpacked"):
            (work / name).mkdir(parents=True)
        options = [
            *("-o", f"Dir::State::Lists={work / 'lists'}"),
            *("-o", f"Dir::Cache={work / 'cache'}"),
            *("-o", "APT::Sandbox::User="),
            *("-o", "Acquire::Languages=none"),
        ]
        _run(["apt-get", *options, "-qq", "update"], work / "debs")
        _run(["apt-get", *options, "-qq", "download", *packages], work / "debs")
        debs = sorted((work / "debs").glob("*.deb"))
        if len(debs) != len(packages):
            raise DataError(
                f"apt-get downloaded {len(debs)} of {len(packages)} packages of sample speech"
            )
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), str(work / "unpacked")], work)
        (work / "unpacked/usr/share/asterisk/sounds").rename(prompts)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_APT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} did not finish within {_APT_TIMEOUT_S} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(
            f"{command[0]} failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )
