"""A seeded stream of impressions whose true click probabilities are known.

Users, ads and pages have power-law popularity and live for a part of the stream. The true logit is

    intercept(domain) + main effects + interactions + effects of dense values + effects by domain,

where interactions are products of latent vectors. All features interact, more strongly inside a
planted group than across groups. Attributes (features with few values, such as a segment, a
category or a placement) also interact across groups, which a model can learn from few rows. All
effects but the last are the same in all domains. The effects drift. Conversions, if enabled, change
nothing else in the stream. With ``history``, the user's past clicks add one more effect, which does
not drift and which the domains' base rates do not include: see :mod:`recsys.data.click_history`.
Chunks are made one at a time, so memory does not grow with the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from recsys.config import InputError
from recsys.data.click_history import HISTORY, ClickHistory
from recsys.data.conversions import CONVERSION, Conversions, intercept
from recsys.data.encoder import (
    EXAMPLES_PER_DOMAIN,
    Encoder,
    encoder_of_ids,
    plain_rows,
)
from recsys.data.encoder_format import (
    DOMAIN_COLUMN,
)
from recsys.data.encoding import milliseconds, signed_log1p
from recsys.data.schema import MAIN_TASK, CategoricalFeature
from recsys.data.settings import SyntheticSettings
from recsys.data.sources.base import Chunk, Source
from recsys.units import MS_PER_HOUR

HOURS_PER_DAY = 24
CALIBRATION_ROWS = 50_000
# Raw value = sinh(tail * z): the larger, the heavier the tail
DENSE_TAILS = [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0, 2.5]
# Keys of random streams
EFFECTS, ENTITIES, CALIBRATION, ROWS, TASTES, CONVERSION_EFFECTS, CONVERSION_ROWS, ATTRIBUTES = (
    range(8)
)
ATTRIBUTE_VALUES = 40  # a feature with at most this many is an attribute


@dataclass(frozen=True)
class _Feature:
    """``entity`` features have a limited lifetime; others follow their group's entity in a share
    ``sticky`` of the rows."""

    group: str
    size: int
    sticky: float = 0.0
    entity: bool = False


def _features(settings: SyntheticSettings) -> dict[str, _Feature]:
    return {
        "user_id": _Feature("user", settings.users, entity=True),
        "user_region": _Feature("user", 50, sticky=0.5),
        "user_segment": _Feature("user", 30, sticky=0.3),
        "user_device": _Feature("user", 12, sticky=0.3),
        "ad_id": _Feature("ad", settings.ads, entity=True),
        "ad_campaign": _Feature("ad", 400, sticky=0.5),
        "ad_advertiser": _Feature("ad", 120, sticky=0.3),
        "ad_category": _Feature("ad", 40, sticky=0.3),
        "page_id": _Feature("context", settings.contexts, entity=True),
        "page_placement": _Feature("context", 24, sticky=0.3),
        "page_source": _Feature("context", 16),
        "page_hour": _Feature("context", HOURS_PER_DAY),
        "cross_query": _Feature("cross", 1000),
        "cross_topic": _Feature("cross", 60),
        "cross_intent": _Feature("cross", 20),
        "cross_session": _Feature("cross", 80),
    }


class SyntheticStream:
    """Draws chunks of the stream.

    Raises:
        InputError: the shares of the domains do not add up to 1, or there are more windows than
            rows.
    """

    def __init__(self, settings: SyntheticSettings, window_hours: float) -> None:
        if abs(sum(domain.share for domain in settings.domains) - 1.0) > 1e-6:
            raise InputError("key 'synthetic.domains': the shares must add up to 1")
        if settings.windows > settings.rows:
            raise InputError("key 'synthetic.windows': more windows than rows; give fewer windows")
        self.settings = settings
        self.features = _features(settings)
        self.window_ms = round(window_hours * MS_PER_HOUR)
        self.start_ms = milliseconds(settings.start, "synthetic.start")
        self.examples: pl.DataFrame | None = None  # raw rows, set once chunks were drawn
        self._draw_effects()
        self._draw_entities()

    @property
    def dense(self) -> list[str]:
        """Names of the dense features."""
        return [f"dense_{index}" for index in range(len(DENSE_TAILS))]

    def chunks(self) -> Iterator[Chunk]:
        """The whole stream, in event time."""
        first, history = 0, self._history()
        for window in range(self.settings.windows):
            rows = self.settings.rows * (window + 1) // self.settings.windows - first
            pieces = -(-rows // self.settings.chunk_rows)
            low = self.start_ms + window * self.window_ms
            for piece in range(pieces):
                count = rows * (piece + 1) // pieces - rows * piece // pieces
                span = (
                    low + self.window_ms * piece // pieces,
                    low + self.window_ms * (piece + 1) // pieces,
                )
                yield Chunk(self._chunk(window, piece, first, count, span, history))
                first += count

    def _chunk(
        self,
        window: int,
        piece: int,
        first: int,
        count: int,
        span: tuple[int, int],
        history: ClickHistory | None,
    ) -> pl.DataFrame:
        random = self._random(ROWS, window, piece)
        event_time = np.sort(random.integers(*span, size=count))
        ids, domain, dense = self._inputs(random, window, event_time)
        logit = self._logit(window, ids, domain, dense) + self.intercepts[domain]
        probability = 1.0 / (1.0 + np.exp(-logit))
        delay_h = (
            random.exponential(self.settings.label_delay_hours, count)
            if self.settings.label_delay_hours
            else 0.0
        )
        delay_h = np.minimum(delay_h, self.settings.label_delay_cap_hours)
        raw = np.sinh(dense * np.array(DENSE_TAILS))
        chance = random.random(count)
        columns = {
            "example_id": first + np.arange(count),
            "event_time": event_time,
            "label_time": event_time + (delay_h * MS_PER_HOUR * np.ones(count)).astype(np.int64),
            "domain": domain.astype(np.int32),
            "group": ids["user_id"],
            "label": (chance < probability).astype(np.float32),
            **{name: raw[:, index] for index, name in enumerate(self.dense)},
            **ids,
            "probability": probability,
        }
        raw = pl.DataFrame(columns)
        frame = raw.with_columns(signed_log1p(name) for name in self.dense)
        if history is not None:
            frame = history.advance(frame, logit, chance)
        if self.conversions is not None:
            frame = self.conversions.add(frame, self._random(CONVERSION_ROWS, window, piece))
        if self.examples is None:
            first_rows = frame.with_columns(raw.select(self.dense))
            by_domain = first_rows.group_by("domain", maintain_order=True)
            self.examples = by_domain.head(EXAMPLES_PER_DOMAIN).sort("domain", maintain_order=True)
        return frame

    def _history(self) -> ClickHistory | None:
        settings = self.settings.history
        if settings is None:
            return None
        tastes = self._random(TASTES).standard_normal((self.settings.ads, settings.dimension))
        return ClickHistory(settings, tastes / np.linalg.norm(tastes, axis=1, keepdims=True))

    def _inputs(
        self, random: np.random.Generator, window: int, event_time: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Ids by feature [N] int64, domain [N] int64, and standard normal dense values [N, 8], NaN
        where missing."""
        count = len(event_time)
        shares = np.array([domain.share for domain in self.settings.domains])
        domain = np.searchsorted(np.cumsum(shares)[:-1], random.random(count), side="right")
        ids: dict[str, np.ndarray] = {}
        entity = np.zeros(count, dtype=np.int64)
        for name, feature in self.features.items():
            weights = self._popularity(name, window)
            ids[name] = _draw(random, weights, count)
            if feature.entity:
                entity = ids[name]
            elif feature.sticky:
                follows = random.random(count) < feature.sticky
                ids[name] = np.where(follows, self._attributes[name][entity], ids[name])
        ids["page_hour"] = event_time // MS_PER_HOUR % HOURS_PER_DAY
        dense = random.standard_normal((count, len(DENSE_TAILS)))
        dense[random.random(dense.shape) < self.settings.missing_share] = np.nan
        return ids, domain, dense

    def _popularity(self, name: str, window: int) -> np.ndarray:
        feature = self.features[name]
        weights = np.arange(1, feature.size + 1) ** -self.settings.popularity_exponent
        if not feature.entity:
            return weights
        birth, death = self._lives[name]
        now = window / self.settings.windows
        alive = (birth <= now) & (now < death)
        alive[0] = True  # at least one is always active
        return weights * alive

    def _logit(
        self, window: int, ids: dict[str, np.ndarray], domain: np.ndarray, dense: np.ndarray
    ) -> np.ndarray:
        """The logit [N] float64, without the domain's intercept."""
        settings = self.settings
        count, names = len(domain), list(self.features)
        turned = settings.drift * window / settings.windows
        keep, turn = np.sqrt(1.0 - turned), np.sqrt(turned)
        main, by_domain = np.zeros(count), np.zeros(count)
        vectors: dict[str, np.ndarray] = {}
        for name in names:
            row = ids[name]
            main += keep * self._main[0][name][row] + turn * self._main[1][name][row]
            by_domain += self._by_domain[name][domain, row]
            # [N, D]
            vectors[name] = keep * self._latent[0][name][row] + turn * self._latent[1][name][row]
        sums = {group: np.zeros((count, settings.latent_dimension)) for group in self._groups}
        within, pairs = np.zeros(count), 0
        for group, members in self._groups.items():
            sums[group] = sum((vectors[name] for name in members), sums[group])
            squares = sum(((vectors[name] ** 2).sum(axis=1) for name in members), np.zeros(count))
            within += (
                (sums[group] ** 2).sum(axis=1) - squares
            ) / 2  # all pairs of the group at once
            pairs += len(members) * (len(members) - 1) // 2
        total = sum(sums.values(), np.zeros((count, settings.latent_dimension)))
        all_squares = sum(((value**2).sum(axis=1) for value in sums.values()), np.zeros(count))
        between = ((total**2).sum(axis=1) - all_squares) / 2
        between_pairs = len(names) * (len(names) - 1) // 2 - pairs
        dense_effect = np.nan_to_num(dense) @ self._dense
        return (
            settings.main_strength * main / np.sqrt(len(names))
            + settings.domain_strength * by_domain / np.sqrt(len(names))
            + settings.within_strength * within / np.sqrt(pairs * settings.latent_dimension)
            + settings.between_strength
            * between
            / np.sqrt(between_pairs * settings.latent_dimension)
            + settings.dense_strength * dense_effect
            + settings.attribute_strength * self._attribute_effect(ids, keep, turn)
        )

    def _attribute_effect(self, ids: dict[str, np.ndarray], keep: float, turn: float) -> np.ndarray:
        """[N] float64: products of attributes from different groups, with unit variance if their
        values are independent and equally frequent."""
        stable, turning = self._attribute_latent
        sums: list[np.ndarray] = []  # [N, D], by group
        pairs, before = 0, 0
        for members in self._groups.values():
            vectors = [
                keep * stable[name][ids[name]] + turn * turning[name][ids[name]]
                for name in members
                if name in stable
            ]
            if vectors:
                sums.append(np.sum(vectors, axis=0))
            pairs += before * len(vectors)
            before += len(vectors)
        products = np.sum(sums, axis=0) ** 2 - np.sum(np.square(sums), axis=0)
        return products.sum(axis=1) / 2 / np.sqrt(pairs * self.settings.latent_dimension)

    @cached_property
    def intercepts(self) -> np.ndarray:
        """[domains] float64: intercepts that make each domain's mean probability over the stream
        its base rate."""
        _, domains, logits = zip(*self._calibration_rows(), strict=True)
        logit, domain = np.concatenate(logits), np.concatenate(domains)
        return np.array(
            [
                intercept(logit[domain == index], one.base_rate)
                for index, one in enumerate(self.settings.domains)
            ]
        )

    @cached_property
    def conversions(self) -> Conversions | None:
        """The second task, if there is one."""
        if self.settings.conversions is None:
            return None
        sizes = {name: feature.size for name, feature in self.features.items()}
        sample = [
            (ids, logit + self.intercepts[domain])
            for ids, domain, logit in self._calibration_rows()
        ]
        return Conversions(
            self.settings.conversions, sizes, self._random(CONVERSION_EFFECTS), sample
        )

    def _calibration_rows(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Ids by feature, domain and logit [N] of extra rows in each window that are not part of
        the stream."""
        per_window = -(-CALIBRATION_ROWS // self.settings.windows)
        for window in range(self.settings.windows):
            random = self._random(CALIBRATION, window)
            low = self.start_ms + window * self.window_ms
            times = random.integers(low, low + self.window_ms, size=per_window)
            ids, domain, dense = self._inputs(random, window, times)
            yield ids, domain, self._logit(window, ids, domain, dense)

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name, feature in self.features.items():
            groups.setdefault(feature.group, []).append(name)
        return groups

    def _draw_effects(self) -> None:
        random = self._random(EFFECTS)
        dimension, domains = self.settings.latent_dimension, len(self.settings.domains)
        sizes = {name: feature.size for name, feature in self.features.items()}
        self._main = [
            {n: random.standard_normal(size) for n, size in sizes.items()} for _ in range(2)
        ]
        self._latent = [
            {n: random.standard_normal((size, dimension)) for n, size in sizes.items()}
            for _ in range(2)
        ]
        self._by_domain = {n: random.standard_normal((domains, size)) for n, size in sizes.items()}
        dense = random.standard_normal(len(DENSE_TAILS))
        self._dense = dense / np.linalg.norm(dense)
        # A separate random stream, so the draws above are the same as before attributes existed
        random = self._random(ATTRIBUTES)
        attributes = {name: size for name, size in sizes.items() if size <= ATTRIBUTE_VALUES}
        self._attribute_latent = [
            {n: random.standard_normal((size, dimension)) for n, size in attributes.items()}
            for _ in range(2)
        ]

    def _draw_entities(self) -> None:
        random = self._random(ENTITIES)
        self._lives: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._attributes: dict[str, np.ndarray] = {}
        entities = 0
        for name, feature in self.features.items():
            if feature.entity:
                entities = feature.size
                life = random.exponential(self.settings.lifetime_share, entities)
                birth = random.uniform(-self.settings.lifetime_share, 1.0, entities)
                self._lives[name] = (birth, birth + life)
            elif feature.sticky:
                self._attributes[name] = random.integers(0, feature.size, entities)

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.settings.seed, *keys]))


def _draw(random: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """[count] int64 indices in proportion to ``weights``."""
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")


def synthetic_source(settings: SyntheticSettings, window_hours: float) -> Source:
    """The generated stream as a source; see :class:`SyntheticStream`."""
    stream = SyntheticStream(settings, window_hours)
    categorical = [
        CategoricalFeature(name, feature.size) for name, feature in stream.features.items()
    ]
    groups = {name: feature.group for name, feature in stream.features.items()}
    if settings.history is not None:
        categorical.append(CategoricalFeature(HISTORY, settings.ads, "list"))
        groups[HISTORY] = stream.features["ad_id"].group  # the group it interacts with
    return Source(
        dense=stream.dense,
        categorical=categorical,
        domains=[domain.name for domain in settings.domains],
        chunks=stream.chunks(),
        encoder=lambda: _encoder(stream, categorical),
        planted_groups=groups,
        origin_ms=stream.start_ms,
        expected_rows=settings.rows,
        tasks=[MAIN_TASK] if settings.conversions is None else [MAIN_TASK, CONVERSION],
    )


def _encoder(stream: SyntheticStream, categorical: list[CategoricalFeature]) -> Encoder:
    """An encoder for raw rows, equal to that of the chunks."""
    encoder = encoder_of_ids(
        stream.dense, categorical, [domain.name for domain in stream.settings.domains]
    )
    assert stream.examples is not None, "there are no chunks yet"
    names = [DOMAIN_COLUMN, *(column.name for column in encoder.columns)]
    return replace(encoder, examples=plain_rows(stream.examples.select(names), encoder.columns))
