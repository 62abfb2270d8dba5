"""Classes found by name: each stands in a module of its own and registers itself when that is
imported."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

ClassT = TypeVar("ClassT")


class Registry(Generic[ClassT]):
    """Names and what they stand for; a file added to ``package`` is found without being listed
    anywhere.

    Args:
        package: Dotted name of the package whose modules register classes here.
        announce: Told the name of every class that is registered.
    """

    def __init__(self, package: str, announce: Callable[[str], object] = str) -> None:
        self._package, self._announce = package, announce
        self._found: dict[str, ClassT] = {}

    def register(self, name: str) -> Callable[[ClassT], ClassT]:
        """Return a decorator that makes a class known as ``name``."""

        def known(found: ClassT) -> ClassT:
            self._found[name] = found
            self._announce(name)
            return found

        return known

    def __getitem__(self, name: str) -> ClassT:
        """Return what is known as ``name``; raises ``KeyError`` for a name that the configuration
        should have refused."""
        if name not in self._found:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
                importlib.import_module(module.name)
        return self._found[name]
