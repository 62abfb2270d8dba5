"""Flower's private parts: looked up when they are wanted, and named where this Flower lacks
them."""

import importlib
import importlib.metadata
from typing import Any

from fedhubert.errors import FedhubertError


class UnsupportedFlower(FedhubertError):
    """This Flower lacks a part that fedhubert needs."""

    code = "flower_version"


def supported() -> str:
    """Return the versions of Flower that fedhubert supports, as its installed metadata has them."""
    try:
        needs = importlib.metadata.requires("fedhubert") or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    return next(
        (need for need in needs if need.startswith("flwr")),
        "flwr: see dependencies in pyproject.toml",
    )


def lacks(what: str) -> UnsupportedFlower:
    """Return the error that says that this Flower has no such part."""
    return UnsupportedFlower(
        f"Flower {importlib.metadata.version('flwr')} has no {what}; fedhubert supports "
        f"{supported()}"
    )


def private(module: str, name: str) -> Any:
    """Return ``name`` of one of Flower's private modules.

    Raises:
        UnsupportedFlower: this Flower has it elsewhere, or no more.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise lacks(f"{module}.{name}") from None
