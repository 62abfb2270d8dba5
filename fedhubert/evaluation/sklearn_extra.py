"""scikit-learn, which only evaluation needs."""

import importlib.util

from fedhubert.errors import ConfigError


def require_sklearn() -> None:
    """Raise :class:`ConfigError` that says how to install it, where it is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("probes and clusters need scikit-learn: pip install 'fedhubert[eval]'")
