"""Where the pseudo-labels come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedhubert.config.base import Model, NonNegative, PositiveInt
from fedhubert.config.keys import key
from fedhubert.config.target_sets import MAX_SETS, TargetSet, read_sets

LAYER_AUTO = "layer:auto"


class TargetsConfig(Model):
    """Where the pseudo-labels come from."""

    kind: Literal["kmeans", "precomputed"] = "kmeans"
    """kmeans: federated k-means over what ``source`` names. precomputed: each site's ``labels``."""

    source: str = "mfcc"
    """What k-means sees: mfcc (39-dimensional Kaldi MFCC at 100 Hz), layer:N (the output of
    transformer layer N, from 1, of ``checkpoint``, at 50 Hz), or layer:auto (the layer that tells
    phones of ``choice_phones`` apart best)."""

    checkpoint: str | None = key(None, server_only=True, path=True)
    """Of source=layer:N: a round checkpoint or a run's folder, on the server."""

    choice_manifest: str | None = key(None, server_only=True, path=True)
    """Of source=layer:auto: audio on the server that no client trains on."""

    choice_phones: str | None = key(None, server_only=True, path=True)
    """Its phones in time (``path,start_sample,end_sample,phone``), by which a layer is chosen."""

    num_clusters: Annotated[int, Field(ge=2)] = key(500, unit="clusters")
    """Pseudo-labels to predict. Tens for minutes of audio, 100 for the first iteration of the
    recipe, 500 for the second."""

    sets: Annotated[tuple[str, ...], Field(max_length=MAX_SETS)] = ()
    """Of source=mfcc: kinds of features to cluster side by side, each with a head of its own: mfcc,
    static (13 cepstra) or deltas; ``_z``: on the scale of speech; ``_speaker``: standardised per
    speaker, on the site; ``:K``: K clusters. Figures are of the first. None: MFCC alone."""

    label_rate_hz: Literal[50, 100] = key(100, unit="Hz", site="label-rate-hz", composed=None)
    """Of the labels; null: the source's rate (mfcc and precomputed 100, layer:N 50). State it for
    precomputed labels at 50."""

    labels: str | None = key(None, site="labels", path=True)
    """Of kind=precomputed: a .km file (one line per manifest row), or column:NAME of the
    manifest."""

    max_iterations: PositiveInt = key(30, unit="iterations")
    """Steps of k-means at most, each one round trip to every site."""

    tolerance: NonNegative = 1e-4
    """k-means stops when the inertia falls by less than this fraction."""

    seeding: Literal["local", "moments"] = "local"
    """Where the first centroids come from. local: each client's own, weighted. moments: points
    drawn like the pooled frames, by their mean and covariance, which are sums (``secure``)."""

    max_frames_per_client: PositiveInt = key(200_000, unit="frames")
    """Frames of each client that k-means sees. Those of source=layer:N are kept on the site's disk
    until its audio is labelled: frames x width x 4 bytes."""

    seed_frames_per_client: PositiveInt = key(20_000, unit="frames")
    """Frames of each client among which the first centroids are chosen; fewer for wide features,
    where choosing is slow."""

    min_frames: PositiveInt = key(20, unit="frames", site="min-frames", site_may="raise")
    """Sums, seeds and label counts over fewer frames of a client do not leave it."""

    group_frames: PositiveInt = key(1, unit="frames", site="group-frames", site_may="raise")
    """k-means sees means over groups of so many similar frames of a client: 20 hides single frames,
    for 2 % more inertia."""

    label_column: str | None = key(None, site="label-column")
    """A manifest column with one label per utterance, or space-separated labels per frame: purity
    and PNMI of the targets. On a site with a manifest of its own only the site names it."""

    label_values: tuple[str, ...] = ()
    """The column's values, in an agreed order; only counts by their place in this list leave a
    site, other values are left out."""

    @property
    def label_sets(self) -> tuple[TargetSet, ...]:
        """The sets of pseudo-labels, the first of which figures are of."""
        kind = self.source if self.kind == "kmeans" else self.kind
        return read_sets(self.sets, self.num_clusters) or (TargetSet(kind, self.num_clusters),)

    @property
    def of_a_layer(self) -> bool:
        """Whether k-means sees a layer of a model, chosen yet or not."""
        return self.kind == "kmeans" and self.source != "mfcc"

    @property
    def layer(self) -> int | None:
        """The transformer layer that k-means sees, from 1; None for MFCC and precomputed labels.

        Raises ``ValueError`` for layer:auto, which is a number by the time that a run begins.
        """
        return int(self.source.removeprefix("layer:")) if self.of_a_layer else None

    @field_validator("source")
    @classmethod
    def _source_known(cls, source: str) -> str:
        if not re.fullmatch(r"mfcc|layer:([1-9][0-9]{0,2}|auto)", source):
            raise ValueError(
                f"{source!r} is none of mfcc, layer:N with N from 1 on, and layer:auto"
            )
        return source

    @field_validator("sets")
    @classmethod
    def _sets_known(cls, sets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        about = info.data
        if sets and (about.get("kind", "kmeans"), about.get("source", "mfcc")) != (
            "kmeans",
            "mfcc",
        ):
            raise ValueError(
                "these are kinds of MFCC, clustered by the federation: leave them out where "
                f"kind={about.get('kind')} and source={about.get('source')}"
            )
        read_sets(sets, about.get("num_clusters", 2))
        return sets

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_source(cls, values: object) -> object:
        """``label_rate_hz: null`` means the rate at which the source's labels come."""
        if isinstance(values, Mapping) and values.get("label_rate_hz") is None:
            return {
                **values,
                "label_rate_hz": 50
                if str(values.get("source", "mfcc")).startswith("layer:")
                else 100,
            }
        return values

    @model_validator(mode="after")
    def _labels_given(self) -> Self:
        if self.kind == "precomputed" and not self.labels:
            raise ValueError(
                "kind=precomputed needs `labels`: a .km file, or column:NAME for a manifest column"
            )
        rate_hz = 50 if self.of_a_layer else 100
        if self.kind == "kmeans" and self.label_rate_hz != rate_hz:
            raise ValueError(
                f"label_rate_hz={self.label_rate_hz}, but labels of source={self.source} come at "
                f"{rate_hz} Hz; leave it out"
            )
        if self.source == LAYER_AUTO and not (self.choice_manifest and self.choice_phones):
            raise ValueError(
                "source=layer:auto needs choice_manifest and choice_phones: held-out audio and its "
                "phones in time"
            )
        if bool(self.label_column) != bool(self.label_values):
            raise ValueError(
                "label_column and label_values belong together: the values, in an agreed order, "
                "keep their names on the sites"
            )
        if len(set(self.label_values)) < len(self.label_values):
            raise ValueError("label_values names a value twice")
        return self
