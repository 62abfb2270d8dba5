"""What lies where weights should: a pointer to them, a web page, an archive, nothing."""

import zipfile
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b".git/annex/objects/")
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"(\xb5/\xfd": "zstd",
}
_OTHERS = {
    b"\x89HDF": "TensorFlow's or Keras's",
    b"\x93NUMPY": "NumPy's",
    b"GGUF": "llama.cpp's",
}
_PROGRAM = (
    "which runs but is no model to train or evaluate: name the checkpoint that it was made of"
)
_LOOK_AT = 1024
_TAR_MARK = slice(257, 262)


def mistaken_for_weights(path: Path) -> str | None:
    """Return what a file is that cannot be weights by its first bytes, with the remedy; None for
    one that can be, or that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(_LOOK_AT)
    except OSError:
        return None
    if not head:
        return "is empty: copy or download it again"
    if head.startswith(_POINTER):
        return (
            "is a git-lfs pointer, a few lines in the place of the file: fetch the file itself "
            "with `git lfs pull` in that clone, "
            "or download it from the model's page"
        )
    if len(head) < _LOOK_AT and any(mark in head for mark in _ANNEX):
        return "is a git-annex pointer: fetch the file itself with `git annex get`"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<script")):
        return (
            "is a web page, not weights: the address that it was downloaded from shows a page "
            "about the file, or an error. "
            "Download it by the link to the file itself"
        )
    if path.suffix == ".onnx":
        return f"is an ONNX graph, {_PROGRAM}"
    others = [tool for mark, tool in _OTHERS.items() if head.startswith(mark)]
    others += ["Flax's"] * (path.suffix == ".msgpack")
    if others:
        return f"is a file of {others[0]}: save the model by PyTorch, or download its PyTorch files"
    for mark, kind in _ARCHIVES.items():
        if head.startswith(mark):
            return f"is a {kind} archive: unpack it and name what is in it"
    if head[_TAR_MARK] == b"ustar":
        return "is a tar archive: unpack it and name what is in it"
    if head.startswith(b"PK"):
        return _zip_of_another_kind(path)
    if _is_text(head):
        return f"is text, not weights; it begins with {head[:40].decode(errors='replace')!r}"
    return None


def _zip_of_another_kind(path: Path) -> str | None:
    """torch.save writes zip files, and so do others."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # cut short or damaged: whoever reads it says that
        return None
    if "constants.pkl" in names:
        return (
            "is a TorchScript archive, a program: load it by torch.jit where it is trusted, save "
            "its state_dict() by torch.save, and name that"
        )
    if "archive_format" in names:
        return f"is a program of torch.export, {_PROGRAM}"
    return None if "data.pkl" in names else "is a zip archive: unpack it and name what is in it"


def _is_text(head: bytes) -> bool:
    """Whether these are the first bytes of a text: safetensors begins with a length, which has
    zeros, and PyTorch's files with the marks of zip or pickle."""
    if b"\x00" in head:
        return False
    try:
        shown = head[:-3].decode() if len(head) == _LOOK_AT else head.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in shown)
