"""Decide what each column of an unknown log is used as, and why."""

from recsys.config import InputError, nearest_hint
from recsys.data.describe.choices import Choices, Use
from recsys.data.describe.columns import Column, column_of
from recsys.data.describe.feature_choice import settle_columns
from recsys.data.describe.key_choice import settle_counters, settle_groups, settle_negatives
from recsys.data.describe.label_choice import find_explode, find_label, settle_labels
from recsys.data.describe.moments import Moment, find_moments
from recsys.data.describe.reading import Survey, span_of
from recsys.data.settings import NULL_VALUES
from recsys.data.sources.files import hive_keys
from recsys.units import MS_PER_HOUR

FEW_CLICKS = 1_000
WINDOWS = 8  # at least: four to start with, four for judging
WINDOW_HOURS = (24.0 * 91, 24.0 * 30, 168.0, 24.0, 12.0, 6.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
QUARANTINE_LIMIT = 0.01  # ingest's default


def columns_of(survey: Survey) -> list[Column]:
    """The contents of a surveyed log's columns."""
    return [column_of(raw, survey.distinct[raw.name]) for raw in survey.sample.iter_columns()]


def choose(survey: Survey, time: str | None = None, label: str | None = None) -> Choices:
    """Decide what each column of a surveyed log is used as.

    Args:
        time: the column with the event's time; None: the likeliest one.
        label: the column with the label; None: the likeliest one.

    Raises:
        InputError: the log lacks the given column, a time, or anything to learn from (a label,
            impression lists, or items and users for which negatives can be drawn).
    """
    columns = columns_of(survey)
    by_name = {column.name: column for column in columns}
    for name in (time, label):
        if name is not None and name not in by_name:
            raise InputError(
                f"{survey.log.files[0]}: no column {name!r}; {nearest_hint(name, by_name)}"
            )
    moments = find_moments(columns)
    event = _event_time(survey, moments, time)
    explode = None if label is not None else find_explode(columns)
    found = None if explode is not None else find_label(columns, event, label)
    span = span_of(survey.log, event.settings, found, NULL_VALUES)
    hours = (span.last_ms - span.first_ms + 1) / MS_PER_HOUR
    window_hours = next((one for one in WINDOW_HOURS if hours / one >= WINDOWS), 24.0)
    choices = Choices(survey, columns, event, span, window_hours, found, explode=explode)
    choices.uses[event.column.name] = Use("time", event.reading)
    settle_labels(choices, moments)
    settle_columns(choices, [one for one in moments if one is not event])
    settle_groups(choices)
    if explode is None and choices.label is None:
        settle_negatives(choices)
    settle_counters(choices)
    _warn(choices)
    if not choices.categorical:
        raise InputError(
            f"{survey.log.files[0]}: no column is left for 'categorical'; models look up at least "
            f"one"
        )
    return choices


def _event_time(survey: Survey, moments: list[Moment], wanted: str | None) -> Moment:
    file = survey.log.files[0]
    if wanted is not None:
        moments = [moment for moment in moments if moment.column.name == wanted]
        if not moments:
            raise InputError(
                f"{file}: column {wanted!r} does not contain times: neither numbers since 1970 nor "
                f"ISO 8601 nor text of one known format"
            )
    elif not moments or moments[0].likely < 0:
        others = ", ".join(moment.column.name for moment in moments)
        hint = f"; if it is one of {others}, name it: --time COLUMN" if others else ""
        raise InputError(
            f"{file}: no column contains event times; a table needs one: numbers since 1970, ISO "
            f"8601 text or text of one format{hint}; where the order of the rows is time, write "
            f"row_clock in its place"
        )
    return moments[0]


def _warn(choices: Choices) -> None:
    """Add warnings about the log as a whole."""
    survey, span, rows = choices.survey, choices.span, choices.survey.rows
    warnings = choices.warnings
    warnings[:0] = [f"{', '.join(left)}: {why}" for why, left in choices.left_out.items()]
    for moment in (choices.time, choices.label_time):
        if moment is not None:
            warnings += [f"{moment.column.name}: {note}" for note in moment.notes]
    bad = max(span.no_time, span.no_label)
    for count, what in ((span.no_time, "no readable time"), (span.no_label, "no label")):
        if count:
            warnings.append(f"{count:,} of {rows:,} rows have {what}; ingest sets them aside")
    if bad > QUARANTINE_LIMIT * rows:
        warnings.append(
            f"that is more than ingest allows: correct the rows, or leave them out with 'filter', "
            f"or --set data.quarantine_limit={min(2 * bad / rows, 1):.2g}"
        )
    keys = dict.fromkeys(key for file in survey.log.files for key in hive_keys(file))
    if keys:
        warnings.append(
            f"the files' folders say {', '.join(keys)}: columns of text that ingest knows, too; "
            f"add those that are features"
        )
    if span.unsorted:
        warnings.append(
            f"{span.unsorted:,} rows are earlier than the previous row; ingest sorts them by time"
        )
    if survey.duplicates:
        warnings.append(
            f"{survey.duplicates:,} rows repeat another in every column; ingest keeps them"
        )
    clicks = choices.base_rate * rows if choices.explode is None else float("inf")
    if choices.negatives is not None:
        warnings.append(
            "a log with only clicks: negatives are sampled, so every score depends on the sampler; "
            "windows are as short as the hours from which negatives are drawn"
        )
    elif choices.label is not None and clicks < FEW_CLICKS:
        warnings.append(
            f"{clicks:,.0f} rows have label 1: too few to tell good models from bad ones"
        )
    if span.last_ms - span.first_ms < WINDOWS * WINDOW_HOURS[-1] * MS_PER_HOUR:
        warnings.append(
            f"all rows lie within {(span.last_ms - span.first_ms) / 60_000:.0f} minutes: too few "
            f"windows to train on some and to judge by others"
        )
