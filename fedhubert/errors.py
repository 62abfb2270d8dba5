"""Errors a user can act on.

Every one carries a short ``code`` and the name of the ``setting`` to look at. Those two, and
nothing else, may leave a site in an error reply: messages can hold paths, so they go to the site's
own log only.
"""


class FedhubertError(Exception):
    """A failure whose message tells the user what to change.

    Args:
        message: What went wrong and how to mend it; may name files and keys.
        setting: The config key (or command flag) to look at, if there is one.
    """

    code = "error"

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class ConfigError(FedhubertError):
    """A config key that is unknown, missing, out of range or at odds with another."""

    code = "config"


class DataError(FedhubertError):
    """Audio, a manifest or a partition that cannot be used."""

    code = "data"


class TargetsError(FedhubertError):
    """Pseudo-labels that are missing or do not fit the audio."""

    code = "targets"


class CheckpointError(FedhubertError):
    """A checkpoint that is missing, cut short, or of another model."""

    code = "checkpoint"


class TrainingError(FedhubertError):
    """Local training that cannot go on (for example a loss that is not finite)."""

    code = "training"


class RankError(TrainingError):
    """A process that trains a client together with others, and died, hung or failed."""

    code = "ranks"

    def __init__(self, message: str) -> None:
        super().__init__(message, setting="client.device")


class FederationError(FedhubertError):
    """A federation that cannot run or finish a round."""

    code = "federation"


def quoted(value: object, most: int = 80) -> str:
    """Return how messages quote a value that came from outside: cut, so that no log holds more of
    it than it takes to find it."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= most + 2 else f"{text[:most]}..."
