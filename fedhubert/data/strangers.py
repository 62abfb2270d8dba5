"""What people give as a manifest that is none, and paths that other systems would understand: each
called what it is, with the remedy."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

_PREPARE = "`fedhubert prepare folder --root DIR --out M.csv` writes a manifest"
_COLUMNS = (
    ("client_id", "Common Voice's table: `fedhubert prepare commonvoice --root DIR` reads it"),
    ("n_frames", "fairseq's table of translations: its audio, by `fedhubert prepare folder`"),
    ("file_name", "an audiofolder's: `fedhubert prepare huggingface --root DIR` reads its folder"),
    ("wav", f"SpeechBrain's table: {_PREPARE} of its audio"),
)
"""Columns by which tables of other tools are told."""
_KALDI = ("wav.scp", "segments", "utt2spk", "spk2utt")
_BEGINNINGS = (
    (
        b"PAR1",
        "a Parquet table: write it as CSV (pandas: `read_parquet(A).to_csv(B, index=False)`)",
    ),
    (b"\x1f\x8b", "compressed by gzip: `gunzip` it"),
    (b"PK", "a spreadsheet or zip archive: save the table as CSV in UTF-8"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (b"RIFF", f"audio: {_PREPARE}"),
    (b"fLaC", f"audio: {_PREPARE}"),
    (b"OggS", f"audio: {_PREPARE}"),
    (b"ID3", f"audio: {_PREPARE}"),
)
_LOOK_AT = 4096
REWRITE = "`ffmpeg -i IN -ac 1 -ar 16000 OUT.flac` rewrites it"
"""The remedy for audio that is not read."""
_PLAIN_WAV = (1, 3, 6, 7, 0xFFFE)
"""Numbers of codings that libsndfile reads: these failed for another reason."""
_AUDIO_BEGINNINGS = (
    (0, b"version https://git-lfs.github.com/spec/", "a git-lfs pointer: `git lfs pull` there"),
    (0, b"/annex/objects/", "a git-annex pointer: `git annex get` there"),
    (4, b"ftyp", f"MP4 (m4a): {REWRITE}"),
    (0, b"\x1a\x45\xdf\xa3", f"Matroska or WebM: {REWRITE}"),
    (0, b"\x30\x26\xb2\x75", f"Windows Media: {REWRITE}"),
    (0, b"#!AMR", f"AMR: {REWRITE}"),
    (0, b"MAC ", f"Monkey's Audio: {REWRITE}"),
    (0, b"wvpk", f"WavPack: {REWRITE}"),
    (28, b"Speex", f"Speex: {REWRITE}"),
    (29, b"FLAC", f"FLAC in Ogg: {REWRITE}"),
    (0, b"PK\x03\x04", "a zip archive: unpack it, or `fedhubert prepare archive`"),
    (0, b"\x1f\x8b", "compressed by gzip: `gunzip` it"),
)


def mistaken_for_manifest(path: Path, header: Iterable[str] = ()) -> str:
    """Return what a file is in the place of a manifest, with the remedy.

    Args:
        header: Names in its first line, where it has any.
    """
    names = set(header)
    for column, said in _COLUMNS:
        if column in names:
            return f"this is {said}"
    if path.name in _KALDI or path.suffix == ".scp":
        return "this is a list of Kaldi's: `fedhubert prepare kaldi --root DIR` reads its folder"
    with path.open("rb") as file:
        head = file.read(_LOOK_AT)
    for mark, said in _BEGINNINGS:
        if head.startswith(mark):
            return f"this is {said}"
    if head.lstrip().startswith((b"{", b"[")):
        if b'"supervisions"' in head or b'"sampling_rate"' in head or b'"recording_id"' in head:
            return "this is lhotse's: `fedhubert prepare lhotse` reads it"
        return f"this is JSON, such as NeMo's: {_PREPARE} of its audio"
    if b"\0" in head:
        return "this is no text, or UTF-16: save it as UTF-8"
    return _PREPARE if not names else f"the first line names the columns; {_PREPARE}"


def about_path(path: Path) -> str:
    """Return why nothing is at ``path``, where it looks like one of another system; '' else."""
    name = str(path)
    first = {part.rstrip(":") for part in path.parts if part.endswith(":")}
    if first & {"http", "https", "s3", "gs", "hdfs"}:
        return "an address: download what is there, manifests name files"
    if "file" in first:
        return "write the path without file://"
    if "\\" in name:
        return "Windows' path: write / for \\, from the audio root on"
    if "~" in path.parts:
        return "~ is not expanded in a manifest: write the folder's name, or set data.root"
    if name != name.strip():
        return "the path ends in a space"
    names = {path.name.lower(), path.name.upper(), path.stem + path.suffix.lower()}
    names |= {path.stem + path.suffix.upper()}
    for other in sorted(names - {path.name}):
        if os.path.exists(path.with_name(other)):
            return f"there is {other}, in other letters: write the manifest again"
    for other in (unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        if other != name and os.path.exists(other):
            return "a file of that name is there, in Unicode's other form: write the manifest again"
    return ""


def about_audio(path: Path, offset: int = 0) -> str:
    """Return what lies at ``offset`` of a file that no decoder opens, with the remedy; '' where
    that is not known."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            head = file.read(_LOOK_AT)
    except OSError:
        return ""
    for place, mark, said in _AUDIO_BEGINNINGS:
        if head[place : place + len(mark)] == mark:
            return f"this is {said}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "this is a web page: download by the link to the file itself"
    if not any(head):
        return "it begins with zeros, as copies that were cut off do: copy it again"
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return "this is SPHERE compressed by shorten: `sph2pipe -f wav IN OUT.wav` rewrites it"
    if head[:4] == b"RIFF" and (place := head.find(b"fmt ")) > 0:
        coding = int.from_bytes(head[place + 8 : place + 10], "little")
        if coding not in _PLAIN_WAV:
            return f"this is a wav of coding {coding:#06x}: {REWRITE}"
    return ""
