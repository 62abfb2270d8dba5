"""What requests say beside the job, and what of it a site takes: every field has one type, wherever it occurs."""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhubert.errors import FederationError

Number = Annotated[int, Field(ge=0, lt=2**40)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,128}$")]
"""Keys become part of file names."""

ItemT = TypeVar("ItemT")


class Said(dict[str, ItemT]):
    """A dictionary from a message, whose missing entries are a :class:`FederationError`."""

    def __missing__(self, name: str) -> ItemT:
        raise FederationError(f"the request has no `{name[:64]}`", setting="version")


class _Fields(BaseModel):
    """All are optional: which are needed, the handlers know."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    partitions: list[Number] = []
    extractor: Key = ""
    teacher: Key = ""
    targets: Key = ""
    model: str = ""
    round: Number = 0
    attempt: Number = 0
    layout: Key = ""
    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    budget_s: Annotated[float, Field(gt=0.0)] = 1.0
    norm_limit: float | None = None
    positions: dict[Key, Number] = {}
    steps: dict[Key, Number] = {}
    site_rounds: dict[Key, Number] = {}
    checkpoints: list[Number] = []


def read_task(text: str) -> Said[Any]:
    """Return a request's task; raises :class:`FederationError` for one that is no JSON object, or has a field of another type."""
    try:
        values = json.loads(text)
        _Fields.model_validate(values)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, item["loc"])) or "the task" for item in error.errors())
        raise FederationError(f"the request's {names[:200]} cannot be used", setting="version") from None
    except (ValueError, RecursionError):
        raise FederationError("the request's task is not JSON", setting="version") from None
    return Said({name: Said(value) if isinstance(value, dict) else value for name, value in values.items()})
