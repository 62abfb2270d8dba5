"""What is refused, by its code."""

from typing import Any

import numpy as np
import pytest

from fedhubert.federation.secure.errors import SecureError


def added(vectors: dict[int, Any], numbers: Any) -> Any:
    return np.sum([vectors[number] for number in numbers], axis=0)


def refusal(code: str) -> Any:
    return pytest.raises(SecureError, match="") if not code else _Refusal(code)


class _Refusal:
    def __init__(self, code: str) -> None:
        self._raises, self._code = pytest.raises(SecureError), code

    def __enter__(self) -> None:
        self._found = self._raises.__enter__()

    def __exit__(self, *details: Any) -> bool:
        caught = bool(self._raises.__exit__(*details))
        assert self._found.value.code == self._code
        return caught
