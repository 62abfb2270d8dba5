"""Seconds in words."""


def duration(seconds: float) -> str:
    """Return ``seconds`` as people say it: ``4.2 s``, ``12 min 05 s``, ``3 h 07 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {rest:02d} s"
    )
