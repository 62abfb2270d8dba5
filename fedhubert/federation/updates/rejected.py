"""Why an update is not used."""


class UpdateRejected(ValueError):
    """An update that must not reach the sum; ``reason`` is a short word for reports."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
