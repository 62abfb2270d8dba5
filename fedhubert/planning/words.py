"""From the words of ``fedhubert plan`` to what is planned, with a line for each assumption that
says where it is from."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import Field, field_validator

from fedhubert.compose import compose
from fedhubert.config import validate
from fedhubert.config.base import Model, Positive
from fedhubert.data.corpora import with_absolute_data
from fedhubert.errors import ConfigError
from fedhubert.planning.inputs import Inputs, Rates, audio_of, inputs_of, open_data, stated_audio
from fedhubert.planning.throughput import measure_speed

MEASURE_S = 20.0
"""How long ``measure=true`` takes."""


class Words(Model):
    """The verb's own words, those of :class:`~fedhubert.planning.inputs.Rates` apart."""

    hours: Positive | None = None
    """Audio of all clients together; None: that of ``data.manifest``."""

    hours_per_client: tuple[Positive, ...] | None = None
    """Audio of each client (one number: of every client)."""

    measure: bool = False
    """Train here for a few seconds to see how fast that is."""

    as_json: bool = Field(False, alias="json")
    """Print JSON instead of text."""

    @field_validator("hours_per_client", mode="before")
    @classmethod
    def _one_or_a_list(cls, text: object) -> object:
        return (
            [part.strip() for part in text.strip("[]()").split(",")]
            if isinstance(text, str)
            else text
        )


_WORDS = {field.alias or name for name, field in Words.model_fields.items()}


def read_words(
    arguments: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> tuple[Inputs, dict[str, str], bool]:
    """Return what is planned, its assumptions (name -> value and where it is from), and whether
    JSON is asked for. ``clock`` times the opening of the manifest.

    Raises:
        FedhubertError: a word or setting that is wrong or missing, with the remedy; audio or a
            teacher that cannot be used.
    """
    words: dict[str, object] = {}
    given: dict[str, object] = {}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        owner = words if name in _WORDS else given if name in Rates.model_fields else None
        if owner is None:
            overrides.append(argument)
        else:
            owner[name] = value
    asked, config = validate(Words, words), compose(overrides)
    if "audio_s_per_s" not in given and not asked.measure:
        raise ConfigError(
            "how fast is a client? Give audio_s_per_s=N, the seconds of audio that it trains on in "
            "a second, or measure=true to measure it here",
            setting="audio_s_per_s",
        )
    stated = asked.hours is not None or asked.hours_per_client is not None
    if not stated and config.data.manifest is not None:
        config = with_absolute_data(config)
        started = clock()
        site = open_data(config)
        clients, audio = audio_of(site), f"{config.data.manifest}, to the batch"
        for number in range(len(clients)):  # as a site does, for the time that it takes
            part = site.partition(number)
            site.fingerprint(part, "plan")
            part.train_plan.audio_s(part.train_plan.first(0))
        rows, opened_s = len(site.manifest), clock() - started
    else:
        site, rows, opened_s = None, 0, 0.0
        clients = stated_audio(config, asked.hours, asked.hours_per_client)
        audio = (
            f"given; batches of data.batch_seconds={config.data.batch_seconds:g}, the most they "
            "can be"
        )
    sources = dict.fromkeys(given, "given")
    if asked.measure:
        measured = measure_speed(config, site, MEASURE_S)
        found = {"audio_s_per_s": measured.trained, "score_audio_s_per_s": measured.scored}
        given, sources = found | given, dict.fromkeys(found, measured.said) | sources
    rates = validate(Rates, given)
    inputs = replace(inputs_of(config, clients, rates), rows=rows, opened_s=opened_s)
    said = {"audio": audio, **_said(rates, sources)}
    if inputs.ranks > 1 and rates.rank_efficiency is None:
        said["rank_efficiency"] = "1: as if the devices of a client cost each other nothing"
    return inputs, said, asked.as_json


def _said(rates: Rates, sources: dict[str, str]) -> dict[str, str]:
    """Return each rate's value and where it is from."""
    values = rates.model_dump() | {
        "score_audio_s_per_s": rates.scoring,
        "round_overhead_s": rates.overhead_s,
    }
    values["down_mbit_s"] = rates.down_mbit_s or rates.up_mbit_s
    derived = {
        "score_audio_s_per_s": "three times audio_s_per_s",
        "down_mbit_s": "as up_mbit_s",
        "round_overhead_s": (
            f"the default {'on real sites' if rates.on_sites else 'of a simulation'}"
        ),
    }
    sources = dict.fromkeys(values, "the default") | derived | sources
    return {
        name: f"{value:.4g}, {sources[name]}" for name, value in values.items() if value is not None
    }
