"""Labels from columns, from impression lists, and for logs with only clicks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.config import InputError
from recsys.data.encoding import canonical_text, category_text
from recsys.data.names import EVENT_TIME, OWN
from recsys.data.settings import ExplodeSettings, LabelSettings, NegativeSettings
from recsys.data.sources.base import LABEL, ROW
from recsys.units import MS_PER_HOUR

DRAW_ROUNDS = 20
YES, NO = ("1", "true", "t", "yes", "y", "+1"), ("0", "false", "f", "no", "n")
HOUR, FIRST_CLICK, CLICKS = f"{OWN}hour", f"{OWN}first_click", f"{OWN}clicks"
SHOWN, CLICKED, UNREADABLE = f"{OWN}shown", f"{OWN}clicked", f"{OWN}unreadable"


@dataclass
class LabelsSeen:
    """Whether a label column, read block by block, contains 0, and -1 before the first 0."""

    zero: bool = False
    negative: bool = False


def binary_labels(
    column: pl.Series,
    settings: LabelSettings,
    null_values: Sequence[str],
    seen: LabelsSeen | None = None,
) -> tuple[pl.Series, pl.Series]:
    """Float32 labels, null where there is none, and whether a non-missing value is not a label.

    -1 is a label if the column has no 0. If ``column`` is one block of a column, ``seen`` says
    whether there was a 0, and is updated.
    """
    seen = LabelsSeen() if seen is None else seen
    text = canonical_text(category_text(column), null_values).str.strip_chars()
    frame = pl.DataFrame({"text": text.str.to_lowercase()})
    if settings.positive is not None:
        number = pl.col("text").cast(pl.Float64, strict=False).fill_nan(None)
        label = (number >= settings.positive).cast(pl.Float32)
    else:
        # -1 is a negative label if the column has only 1 and -1; beside zeros it means something
        # else
        seen.zero |= bool((frame["text"] == "0").any())
        if not seen.zero:
            seen.negative |= bool((frame["text"] == "-1").any())
        negative = () if seen.zero else ("-1",)
        label = (
            pl.when(pl.col("text").is_in(YES))
            .then(1.0)
            .when(pl.col("text").is_in([*NO, *negative]))
            .then(0.0)
            .cast(pl.Float32)
        )
    frame = frame.with_columns(label=label)
    wrong = frame.select(wrong=pl.col("text").is_not_null() & pl.col("label").is_null())["wrong"]
    return frame["label"], wrong


def impression_lists(
    frame: pl.DataFrame, settings: ExplodeSettings, null_values: Sequence[str]
) -> tuple[pl.DataFrame, pl.Series]:
    """``frame`` with lists of shown and clicked items in own columns, and whether a row's lists are
    unreadable.

    Raises:
        InputError: a column does not contain lists, and no separator is given.
    """
    shown = _as_list(frame, settings.shown, settings.separator, null_values)
    if settings.clicked is not None:
        clicked = _as_list(frame, settings.clicked, settings.separator, null_values)
        shown, clicked = _comparable(shown, clicked)
        lists = frame.with_columns(shown.alias(SHOWN), clicked.alias(CLICKED))
        return lists, pl.Series("wrong", np.zeros(frame.height, dtype=bool))
    mark = settings.label_separator or ""
    parts = pl.DataFrame({ROW: frame[ROW], SHOWN: shown})
    parts = parts.filter(pl.col(SHOWN).list.len() > 0).explode(SHOWN)
    pattern = f"^(?s)(?P<item>.*){_escaped(mark)}(?P<label>[01])$"
    found = parts[SHOWN].str.extract_groups(pattern).struct.unnest()
    parts = parts.with_columns(
        found["item"].alias(SHOWN),
        pl.when(found["label"] == "1").then(found["item"]).alias(CLICKED),
        found["item"].is_null().alias(UNREADABLE),
    )
    lists = parts.group_by(ROW, maintain_order=True).agg(
        SHOWN, pl.col(CLICKED).drop_nulls(), pl.col(UNREADABLE).any()
    )
    joined = frame.join(lists, on=ROW, how="left", maintain_order="left")
    return joined.drop(UNREADABLE), joined[UNREADABLE].fill_null(False)


def _escaped(mark: str) -> str:
    """``mark`` escaped for a regular expression."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in mark)


def _as_list(
    frame: pl.DataFrame, name: str, separator: str | None, null_values: Sequence[str]
) -> pl.Series:
    column = frame[name]
    if isinstance(column.dtype, pl.Array):
        return column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        return column
    if column.dtype == pl.Null:
        return column.cast(pl.List(pl.Null))
    if separator is None or column.dtype != pl.String:
        raise InputError(
            f"column {name!r} holds {column.dtype}, not lists; if it is text, set "
            f"explode.separator to what separates its elements"
        )
    whole = canonical_text(column, null_values).str.strip_chars(" []()\t").fill_null("")
    element = pl.element().str.strip_chars(" '\"")
    split = pl.col(name).str.split(separator).list.eval(element.filter(element != ""))
    return whole.to_frame().select(split)[name]


def _comparable(shown: pl.Series, clicked: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both lists with elements of the same type: their own, or text."""
    one, other = (getattr(each.dtype, "inner", pl.Null()) for each in (shown, clicked))
    if one == other:
        return shown, clicked
    if pl.Null in (one, other):
        dtype = pl.List(other if one == pl.Null else one)
        return shown.cast(dtype), clicked.cast(dtype)
    if one.is_integer() and other.is_integer():
        return shown.cast(pl.List(pl.Int64)), clicked.cast(pl.List(pl.Int64))
    return _texts(shown), _texts(clicked)


def _texts(lists: pl.Series) -> pl.Series:
    """Lists of the elements' canonical texts."""
    flat = pl.DataFrame({"row": np.arange(len(lists)), "value": lists})
    flat = flat.filter(pl.col("value").list.len() > 0).explode("value")
    flat = flat.with_columns(canonical_text(category_text(flat["value"]), ()).alias("value"))
    grouped = flat.group_by("row", maintain_order=True).agg("value")
    rows = pl.DataFrame({"row": np.arange(len(lists))})
    return rows.join(grouped, on="row", how="left", maintain_order="left")["value"]


def explode_impressions(
    frame: pl.DataFrame, settings: ExplodeSettings, count: str | None
) -> pl.DataFrame:
    """One example per element of the shown list, in order; label 1 if it was clicked.

    Repeated elements of either list count once. ``count`` names a column for the list's length.
    """
    item = settings.item
    clicked = frame.select(
        ROW, pl.col(CLICKED).list.unique(maintain_order=True).alias(item)
    ).explode(item)
    clicked = clicked.drop_nulls().with_columns(pl.lit(1.0, dtype=pl.Float32).alias(LABEL))
    shown = pl.col(SHOWN).list.unique(maintain_order=True)
    raw = (item, settings.shown, settings.clicked, SHOWN, CLICKED)
    kept = [name for name in frame.columns if name not in raw]
    counted = [shown.list.len().alias(count)] if count is not None else []
    exploded = frame.select(*kept, *counted, shown.alias(item)).explode(item)
    exploded = exploded.filter(pl.col(item).is_not_null())
    joined = exploded.join(clicked, on=[ROW, item], how="left", maintain_order="left")
    return joined.with_columns(pl.col(LABEL).fill_null(0.0))


@dataclass
class NegativeState:
    """Earlier clicks: the items clicked in each session, and clicks per item and hour as far back
    as popularity reaches."""

    first: pl.DataFrame | None = None
    counts: pl.DataFrame | None = None


def sample_negatives(
    frame: pl.DataFrame, settings: NegativeSettings, state: NegativeState
) -> pl.DataFrame:
    """Each click (label 1) followed by its sampled negatives (label 0), from a seed.

    Clicks with no earlier clicks to draw from (in the first hours of the log) are left out, and a
    negative that is still an item of the session after 20 draws is dropped.

    Args:
        frame: clicks of whole hours.
        state: what is known from earlier hours; it is updated.
    """
    item, session = settings.item, settings.session
    clicks = frame.sort(EVENT_TIME, ROW).with_columns(
        (pl.col(EVENT_TIME) // MS_PER_HOUR).alias(HOUR)
    )
    first = clicks.select(session, item, pl.col(EVENT_TIME).alias(FIRST_CLICK))
    first = first if state.first is None else pl.concat([state.first, first])
    first = first.group_by(session, item).agg(pl.col(FIRST_CLICK).min())
    counts = clicks.group_by(HOUR, item).agg(pl.len().cast(pl.Int64).alias(CLICKS))
    counts = counts if state.counts is None else pl.concat([state.counts, counts])
    popularity = _popularity(counts, settings)
    if clicks.height:
        reached = pl.col(HOUR) > clicks[HOUR][-1] - settings.popularity_hours
        state.first, state.counts = first, counts.filter(reached)
    clicks = clicks.filter(pl.col(HOUR).is_in(list(popularity))).with_columns(
        pl.lit(1.0).alias(LABEL)
    )
    open_slots = pl.concat(
        [clicks.select(list(dict.fromkeys([ROW, session, EVENT_TIME, HOUR])))] * settings.per_click
    )
    found = [clicks.select(ROW, item).clear()]
    for draw in range(DRAW_ROUNDS):
        if open_slots.height == 0:
            break
        drawn = _draw(open_slots, popularity, item, clicks.schema[item], (settings.seed, draw))
        drawn = drawn.join(first, on=[session, item], how="left", maintain_order="left")
        banned = (pl.col(FIRST_CLICK) <= pl.col(EVENT_TIME)).fill_null(False)
        found.append(drawn.filter(~banned).select(ROW, item))
        open_slots = drawn.filter(banned).select(open_slots.columns)
    negatives = pl.concat(found).join(clicks.drop(item), on=ROW, how="left", maintain_order="left")
    negatives = negatives.with_columns(pl.lit(0.0).alias(LABEL)).select(clicks.columns)
    both = pl.concat([clicks, negatives]).with_columns(pl.col(LABEL).cast(pl.Float32))
    return both.sort(EVENT_TIME, ROW, maintain_order=True).drop(HOUR)


Popularity = dict[int, tuple[np.ndarray, np.ndarray]]


def _popularity(counts: pl.DataFrame, settings: NegativeSettings) -> Popularity:
    """Per hour, the items clicked in the hours before, with cumulative clicks."""
    by_hour: Popularity = {}
    shifted = [
        counts.with_columns(pl.col(HOUR) + back) for back in range(1, settings.popularity_hours + 1)
    ]
    past = (
        pl.concat(shifted)
        .group_by(HOUR, settings.item)
        .agg(pl.col(CLICKS).sum())
        .sort(HOUR, settings.item)
    )
    for (hour,), rows in past.group_by(HOUR, maintain_order=True):
        by_hour[int(str(hour))] = (
            rows[settings.item].to_numpy(),
            rows[CLICKS].cum_sum().to_numpy(),
        )
    return by_hour


def _draw(
    slots: pl.DataFrame,
    popularity: Popularity,
    item: str,
    dtype: pl.DataType,
    seed: tuple[int, int],
) -> pl.DataFrame:
    """``slots`` sorted by hour, with an item drawn for each; an hour's draws do not depend on other
    hours."""
    slots = slots.sort(HOUR, maintain_order=True)
    drawn = []
    for (hour,), rows in slots.group_by(HOUR, maintain_order=True):
        items, cumulative = popularity[int(str(hour))]
        random = np.random.default_rng((*seed, int(str(hour))))
        drawn.append(
            items[
                np.searchsorted(
                    cumulative, random.random(rows.height) * cumulative[-1], side="right"
                )
            ]
        )
    return slots.with_columns(pl.Series(item, np.concatenate(drawn), dtype=dtype))
