"""From parsed rows of a table log to examples: elements of lists, sampled negatives, values."""

from dataclasses import dataclass

import polars as pl

from recsys.data.collisions import DistinctValues
from recsys.data.encoding import value_hashes
from recsys.data.names import EVENT_TIME
from recsys.data.settings import TableSettings
from recsys.data.sources.base import LABEL, ROW
from recsys.data.sources.labels import (
    CLICKED,
    NegativeState,
    explode_impressions,
    sample_negatives,
)
from recsys.data.sources.table_encoder import SHOWN_COUNT, categories, feature_values


@dataclass
class Examples:
    """Examples in event time, of ``rows`` rows of the log; how many rows gave none, how many
    examples are more than one per row, and how many clicked items were not shown."""

    frame: pl.DataFrame
    rows: int
    dropped: dict[str, int]
    made: int
    unseen_clicks: int


def examples_of(good: pl.DataFrame, settings: TableSettings, state: NegativeState) -> Examples:
    """The examples of parsed rows; ``state`` is brought up to date."""
    frame, rule, unseen = good, "", 0
    if settings.explode is not None:
        count = None if SHOWN_COUNT in good.columns else SHOWN_COUNT
        frame, rule = explode_impressions(good, settings.explode, count), "nothing shown"
        clicked = good[CLICKED].list.drop_nulls().list.n_unique().fill_null(0).sum()
        unseen = round(clicked) - round(frame[LABEL].cast(pl.Float64).sum())
    if settings.sample_negatives is not None:
        frame = sample_negatives(frame, settings.sample_negatives, state)
        rule = "no clicks before it to draw negatives from"
    kept = frame[ROW].n_unique()
    dropped = {rule: good.height - kept} if good.height > kept else {}
    frame = frame.sort(EVENT_TIME, ROW, maintain_order=True)
    return Examples(frame, good.height, dropped, frame.height - kept, unseen)


def counted_features(settings: TableSettings) -> dict[str, DistinctValues]:
    """For the features whose ``table_rows`` are auto, by name."""
    features = [one.feature for one in categories(settings) if one.table_rows == "auto"]
    history = settings.history
    if history is not None and history.table_rows == "auto":
        features.append(history.name)
    return {name: DistinctValues() for name in features}


def count_values(
    frame: pl.DataFrame, settings: TableSettings, values: dict[str, DistinctValues]
) -> None:
    """Count the values of the examples ``frame``."""
    for one in categories(settings):
        if one.feature in values:
            found = feature_values(frame, one, settings.null_values)
            values[one.feature].add(value_hashes(found, settings.null_values))
    history = settings.history
    if history is not None and history.name in values:
        values[history.name].add(value_hashes(frame[history.item]))


def used_columns(settings: TableSettings) -> list[str]:
    """Columns that examples are made of beside time, label and domain."""
    negatives, history = settings.sample_negatives, settings.history
    used = [settings.group] if settings.group is not None else []
    used += [*settings.dense, *(name for one in categories(settings) for name in one.columns)]
    used += [column for counter in settings.counters for column in counter.by]
    used += [history.user, history.item] if history is not None else []
    return used + ([negatives.item, negatives.session] if negatives is not None else [])
