"""The label of an unknown log: a column of its own, impression lists, or none."""

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.data.describe import names
from recsys.data.describe.choices import Choices, Use
from recsys.data.describe.columns import Column, share
from recsys.data.describe.moments import Moment
from recsys.data.settings import NULL_VALUES, ExplodeSettings, LabelSettings
from recsys.data.sources.labels import NO, YES, binary_labels
from recsys.units import MS_PER_HOUR

WAITED_FOR = 0.99  # share of the positives
LABELLED_ELEMENTS = r"^\s*\S+-[01](\s+\S+-[01])*\s*$"  # as in MIND


def find_explode(columns: list[Column]) -> ExplodeSettings | None:
    """How the log lists impressions: with labelled elements, or as shown and clicked; None if it
    does not."""
    lists = [column for column in columns if column.kind == "list"]
    for column in columns:
        if column.values.dtype == pl.String and column.kind in ("list", "text"):
            known = column.values.drop_nulls()
            if len(known) and known.str.contains(LABELLED_ELEMENTS).all():
                return ExplodeSettings(
                    shown=column.name, item="candidate", separator=" ", label_separator="-"
                )
    for clicked in lists:
        for shown in lists:
            named = names.says(clicked.name, names.CLICKED) and names.says(shown.name, names.SHOWN)
            if clicked is shown or not named or clicked.separator != shown.separator:
                continue
            both = pl.DataFrame(
                {"shown": _elements(shown), "clicked": _elements(clicked)}
            ).drop_nulls()
            inside = both["clicked"].list.set_difference(both["shown"]).list.len() == 0
            if len(both) and share(inside) > 0.9:
                taken = {column.name for column in columns}
                item = "candidate" if "candidate" not in taken else "shown_item"
                return ExplodeSettings(
                    shown=shown.name,
                    clicked=clicked.name,
                    item=item,
                    separator=shown.separator,
                )
    return None


def _elements(column: Column) -> pl.Series:
    """The column's values as lists of texts."""
    if column.values.dtype != pl.String:
        return column.values.cast(pl.List(pl.String))
    element = pl.element().str.strip_chars(" '\"[]")
    return (
        column.values.to_frame("values")
        .select(
            pl.col("values")
            .str.split(column.separator or " ")
            .list.eval(element.filter(element != ""))
        )
        .to_series()
    )


def find_label(columns: list[Column], time: Moment, wanted: str | None) -> LabelSettings | None:
    """The label column; None if the log has none, or only one that is always 1."""
    ranked: list[tuple[int, int, LabelSettings]] = []
    unnamed: list[LabelSettings] = []
    for column in columns:
        if column is time.column or (wanted is not None and column.name != wanted):
            continue
        left = [word for word in names.words(column.name) if word not in names.FILLERS]
        known = all(word in names.OF_LABELS or word in names.OF_OUTCOMES for word in left)
        rank = names.place(column.name, names.OF_LABELS) if left and known else None
        settings = LabelSettings(column=column.name)
        if is_binary(column):
            if rank is not None or wanted is not None:
                ranked.append((0, rank or 0, settings))
            elif column.distinct == 2:
                unnamed.append(settings)
        elif column.kind in ("whole", "number") and (rank is not None or wanted is not None):
            low, high = float(column.values.min() or 0), float(column.values.max() or 0)  # type: ignore[arg-type]
            stars = names.says(column.name, ("rating", "stars", "score"))
            if high > low >= -1:
                settings = LabelSettings(column=column.name, positive=0.8 * high if stars else 1)
                ranked.append((1, rank or 0, settings))
    if ranked:
        return min(ranked, key=lambda one: one[:2])[2]
    if wanted is not None:
        raise InputError(f"column {wanted!r} is not a label: neither two values nor numbers")
    by_name = {column.name: column for column in columns}
    minus = [one for one in unnamed if _texts(by_name[one.column]) == {"-1", "1"}]
    unnamed = minus or unnamed
    return unnamed[0] if len(unnamed) == 1 else None


def _texts(column: Column) -> set[str]:
    values = column.values.drop_nulls()
    if values.dtype == pl.Float64:
        whole = values.filter(values == values.floor()).cast(pl.Int64, strict=False)
        return set() if len(whole) < len(values) else set(whole.unique().cast(pl.String)[:9])
    return set(values.unique()[:9].str.to_lowercase()) if values.dtype == pl.String else set()


def is_binary(column: Column) -> bool:
    """Whether the values can be used as labels directly: 1/0, true/false, yes/no or 1/-1."""
    if column.kind not in ("whole", "text", "boolean") or column.distinct > 5:
        return False
    found = _texts(column)
    binary = found <= {*YES, *NO} or found <= {"1", "-1"}
    return bool(found) and binary


def sampled_labels(choices: Choices) -> NDArray[np.bool_] | None:
    """The sample's labels [N]; None if the raw rows have none."""
    if choices.label is None:
        return None
    raw = choices.survey.sample[choices.label.column]
    found, _ = binary_labels(raw, choices.label, NULL_VALUES)
    return found.fill_null(0.0).to_numpy() > 0.5


def settle_labels(choices: Choices, moments: list[Moment]) -> None:
    """Find the base rate and the label's time; a label that is always 1 does not count."""
    span, rows = choices.span, choices.survey.rows
    if choices.explode is not None:
        shown = choices.explode.shown
        choices.uses[shown] = Use("shown", "a list of candidates; each becomes an example")
        by_name = {column.name: column for column in choices.columns}
        candidates = _elements(by_name[shown]).list.len().sum()
        if choices.explode.clicked is not None:
            clicked = choices.explode.clicked
            choices.uses[clicked] = Use("clicked", "which of the shown items were clicked")
            clicks = _elements(by_name[clicked]).list.unique().list.len().sum()
        else:
            clicks = _elements(by_name[shown]).list.eval(pl.element().str.ends_with("-1"))
            clicks = clicks.list.sum().sum()
        choices.base_rate = float(clicks) / max(float(candidates), 1.0)
        return
    if choices.label is None:
        return
    labelled = rows - span.no_label
    if span.clicks >= labelled:
        choices.uses[choices.label.column] = Use("", "always 1: a log with only clicks")
        choices.label = None
        return
    choices.base_rate = span.clicks / max(labelled, 1)
    positive = choices.label.positive
    from_on = f"1 from {positive:g} on; " if positive is not None else ""
    choices.uses[choices.label.column] = Use("label", f"{from_on}{choices.base_rate:.3%} are 1")
    labels = sampled_labels(choices)
    assert labels is not None
    time = choices.time
    for moment in moments:
        known = (moment.times.is_not_null() & time.times.is_not_null()).to_numpy()
        if moment is time or known.all() or known.sum() < 5:
            continue
        after = (moment.times >= time.times).fill_null(False).to_numpy()
        if labels[known].mean() > 0.95 and after[known].mean() > 0.99:
            choices.label_time = moment
            role = Use("label_time", f"{moment.reading}; present where the label is 1")
            choices.uses[moment.column.name] = role
            delays = (moment.times - time.times).filter(pl.Series(known & (labels > 0)))
            quarter = (span.last_ms - span.first_ms) / 4  # else little would be left to learn from
            longest = min(float(delays.quantile(WAITED_FOR) or 0), quarter)
            choices.attribution_hours = max(math.ceil(longest / MS_PER_HOUR), 1)
            return
