"""What each column of an unknown log is used as, and why."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import InputError, nearest_hint
from recsys.data.describe import names
from recsys.data.describe.columns import Column, column_of, is_prose, share
from recsys.data.describe.leaks import single_aucs
from recsys.data.describe.moments import Moment, find_moments
from recsys.data.describe.reading import Span, Survey, span_of
from recsys.data.settings import (
    NULL_VALUES,
    CategoricalColumnSettings,
    CounterSettings,
    DomainColumnSettings,
    ExplodeSettings,
    LabelSettings,
    NegativeSettings,
)
from recsys.data.sources.labels import NO, YES, binary_labels
from recsys.units import MS_PER_HOUR

LEAK_AUC, LEAK_AUC_OF_RATES = 0.9, 0.99  # the rates of an app or an ad may well reach 0.95
FEW_CLICKS = 1_000
FEW_VALUES = 50
WINDOWS = 8  # at least: four to begin with, four that judge
WINDOW_HOURS = (24.0 * 91, 24.0 * 30, 168.0, 24.0, 12.0, 6.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
LARGEST_DOMAINS, DOMAIN_SHARE, DOMAIN_VALUES = 3, 0.05, 30
NEGATIVES_PER_CLICK = 4
CLICKS_TO_DRAW_FROM = 50
LABELLED_ELEMENTS = r"^\s*\S+-[01](\s+\S+-[01])*\s*$"  # as MIND has them
QUARANTINE_LIMIT = 0.01
AFTERWARDS = "LEAK by name, known only after the event, so no feature"
OUTCOMES = "LEAK by name, outcomes as the label is, so no features"
COMMON_SEPARATOR = " "


@dataclass(frozen=True)
class Use:
    """What a column is used as (empty: not at all), and why."""

    role: str
    why: str = ""


@dataclass
class Choices:
    """What ingest is to make of a log; ``warnings`` are what a person should look at.

    ``left_out``: the columns that would mislead a model, by reason.
    """

    survey: Survey
    columns: list[Column]
    time: Moment
    span: Span
    window_hours: float
    label: LabelSettings | None = None
    further_labels: list[str] = field(default_factory=list)
    label_time: Moment | None = None
    explode: ExplodeSettings | None = None
    negatives: NegativeSettings | None = None
    group: str | None = None
    domain: DomainColumnSettings | None = None
    dense: list[str] = field(default_factory=list)
    categorical: list[CategoricalColumnSettings] = field(default_factory=list)
    counters: list[CounterSettings] = field(default_factory=list)
    base_rate: float = 0.0
    uses: dict[str, Use] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def students(self) -> list[str]:
        """The domains that are large enough for a student of their own, the largest first."""
        if self.domain is None:
            return ["all"]
        return list(self.domain.values.values())[:LARGEST_DOMAINS]


def columns_of(survey: Survey) -> list[Column]:
    """What the columns of a surveyed log hold."""
    return [column_of(raw, survey.distinct[raw.name]) for raw in survey.sample.iter_columns()]


def choose(survey: Survey, time: str | None = None, label: str | None = None) -> Choices:
    """Decide what each column of a surveyed log is used as.

    Args:
        time: the column of the time of the event, instead of the likeliest.
        label: the column of the label, likewise.

    Raises:
        InputError: the log has no such column, no time, or nothing to learn from: no label, no
            impressions, and no items and users to draw negatives for.
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
    explode = None if label is not None else _explode(columns)
    found = None if explode is not None else _label(columns, event, label)
    span = span_of(survey.log, event.settings, found, NULL_VALUES)
    hours = (span.last_ms - span.first_ms + 1) / MS_PER_HOUR
    window_hours = next((one for one in WINDOW_HOURS if hours / one >= WINDOWS), 24.0)
    choices = Choices(survey, columns, event, span, window_hours, found, explode=explode)
    choices.uses[event.column.name] = Use("time", _reading(event))
    _settle_labels(choices, moments)
    _settle_columns(choices, [one for one in moments if one is not event])
    _settle_groups(choices)
    if explode is None and choices.label is None:
        _settle_negatives(choices)
    _settle_counters(choices)
    _warn(choices)
    if not choices.categorical:
        raise InputError(
            f"{survey.log.files[0]}: no column is left for 'categorical'; models look up at least "
            f"one"
        )
    return choices


def _event_time(survey: Survey, moments: list[Moment], wanted: str | None) -> Moment:
    if wanted is not None:
        moments = [moment for moment in moments if moment.column.name == wanted]
    if not moments or (wanted is None and moments[0].likely < 0):
        what = f"column {wanted!r} holds" if wanted is not None else "no column holds"
        raise InputError(
            f"{survey.log.files[0]}: {what} no times that can be told to be such; a table needs a "
            f"column of the time of each event (numbers since 1970, ISO 8601, or of one format)"
            if wanted is not None
            else f"{survey.log.files[0]}: no column holds times; a table needs one: numbers since "
            f"1970, ISO 8601 text or text of one format (or name it: --time COLUMN)"
        )
    return moments[0]


def _reading(moment: Moment) -> str:
    settings = moment.settings
    return f"unit {settings.unit}" + (f", {settings.format}" if settings.format else "")


def _explode(columns: list[Column]) -> ExplodeSettings | None:
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
    """Lists of texts."""
    if column.values.dtype != pl.String:
        return column.values.cast(pl.List(pl.String))
    element = pl.element().str.strip_chars(" '\"[]")
    return (
        column.values.to_frame("values")
        .select(
            pl.col("values")
            .str.split(column.separator or COMMON_SEPARATOR)
            .list.eval(element.filter(element != ""))
        )
        .to_series()
    )


def _label(columns: list[Column], time: Moment, wanted: str | None) -> LabelSettings | None:
    """The column of the label; None: the log has none, or one that is always 1."""
    ranked: list[tuple[int, int, LabelSettings]] = []
    unnamed: list[LabelSettings] = []
    for column in columns:
        if column is time.column or (wanted is not None and column.name != wanted):
            continue
        left = [word for word in names.words(column.name) if word not in names.FILLERS]
        known = all(word in names.OF_LABELS or word in names.OF_OUTCOMES for word in left)
        rank = names.place(column.name, names.OF_LABELS) if left and known else None
        settings = LabelSettings(column=column.name)
        if _is_binary(column):
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
        raise InputError(f"column {wanted!r} holds no label: neither two values nor numbers")
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


def _is_binary(column: Column) -> bool:
    if column.kind not in ("whole", "text", "boolean") or column.distinct > 5:
        return False
    found = _texts(column)
    binary = found <= {*YES, *NO} or found <= {"1", "-1"}
    return bool(found) and binary


def _labels(choices: Choices) -> NDArray[np.bool_] | None:
    """[N] of the sample; None where the raw rows have none."""
    if choices.label is None:
        return None
    raw = choices.survey.sample[choices.label.column]
    found, _ = binary_labels(raw, choices.label, NULL_VALUES)
    return found.fill_null(0.0).to_numpy() > 0.5


def _settle_labels(choices: Choices, moments: list[Moment]) -> None:
    """Base rate, time of the label; a label that is always 1 is none."""
    span, rows = choices.span, choices.survey.rows
    if choices.explode is not None:
        shown = choices.explode.shown
        choices.uses[shown] = Use("shown", "a list of candidates; each becomes an example")
        by_name = {column.name: column for column in choices.columns}
        candidates = _elements(by_name[shown]).list.len().sum()
        if choices.explode.clicked is not None:
            clicked = choices.explode.clicked
            choices.uses[clicked] = Use("clicked", "those of the shown that were clicked")
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
        choices.uses[choices.label.column] = Use("", "always 1: a log of clicks alone")
        choices.label = None
        return
    choices.base_rate = span.clicks / max(labelled, 1)
    positive = choices.label.positive
    from_on = f"1 from {positive:g} on; " if positive is not None else ""
    choices.uses[choices.label.column] = Use("label", f"{from_on}{choices.base_rate:.3%} are 1")
    labels = _labels(choices)
    assert labels is not None
    time = choices.time
    for moment in moments:
        known = (moment.times.is_not_null() & time.times.is_not_null()).to_numpy()
        if moment is time or known.all() or known.sum() < 5:
            continue
        after = (moment.times >= time.times).fill_null(False).to_numpy()
        if labels[known].mean() > 0.95 and after[known].mean() > 0.99:
            choices.label_time = moment
            role = Use("label_time", f"{_reading(moment)}; there where the label is 1")
            choices.uses[moment.column.name] = role
            return


def _settle_columns(choices: Choices, moments: list[Moment]) -> None:
    """Features, dense or categorical, and what is left out."""
    labels = _labels(choices)
    times = {moment.column.name: moment for moment in moments}
    for column in choices.columns:
        if column.name in choices.uses:
            continue
        reason = _not_a_feature(column, choices, times, labels)
        if reason is not None:
            choices.uses[column.name] = Use("", reason)
        elif column.kind == "list":
            choices.uses[column.name] = Use("categorical", "a list")
            choices.categorical.append(
                CategoricalColumnSettings(
                    column=column.name, table_rows="auto", kind="list", separator=column.separator
                )
            )
        elif (why := _dense(column)) is not None:
            choices.uses[column.name] = Use("dense", why)
            choices.dense.append(column.name)
        else:
            choices.uses[column.name] = Use("categorical")
            choices.categorical.append(
                CategoricalColumnSettings(column=column.name, table_rows="auto")
            )


def _not_a_feature(
    column: Column, choices: Choices, times: dict[str, Moment], labels: NDArray[np.bool_] | None
) -> str | None:
    """Why a column is left out; a leak is a warning, too."""
    name, rows = column.name, choices.survey.rows
    if name == "":
        return "has no name: a writer's row numbers"
    if column.constant:
        choices.left_out.setdefault("always the same, so no feature", []).append(name)
        return "constant"
    if column.kind == "nested":
        return f"{column.dtype} is neither an id, a number nor a list of ids"
    if name in times:
        if share(times[name].times > choices.time.times) > 0.5:
            choices.left_out.setdefault("times after the event, so no feature", []).append(name)
            return "a time after the event"
        return "another time; event_hour is of the event's"
    if names.known_afterwards(name):
        choices.left_out.setdefault(AFTERWARDS, []).append(name)
        return "LEAK by its name: known only after the event"
    if names.is_outcome(name) and (_is_binary(column) or column.kind in ("whole", "number")):
        choices.left_out.setdefault(OUTCOMES, []).append(name)
        if _is_binary(column):
            choices.further_labels.append(name)
        return "LEAK by its name: an outcome"
    if labels is not None:
        alone, of_rates = single_aucs(column, labels)
        auc = max(alone, of_rates)
        if alone > LEAK_AUC or of_rates > LEAK_AUC_OF_RATES:
            choices.warnings.append(
                f"{name}: alone has AUC {auc:.3f}; likely known only with the label; left out"
            )
            return f"LEAK: alone has AUC {auc:.3f}"
        if auc > LEAK_AUC:
            choices.warnings.append(
                f"{name}: the click rates of its values alone have AUC {auc:.3f}; check that it is "
                f"known before the event"
            )
    if names.says(name, names.OF_SPLITS):
        return "how somebody split the log"
    unique = column.distinct > 0.95 * rows * (1 - column.missing) and rows > FEW_VALUES
    amount = column.kind == "number" or names.says(name, names.OF_AMOUNTS)
    if unique and column.kind in ("whole", "text") and not amount:
        return "a value per row: the row's own id"
    if column.kind == "text" and is_prose(column):
        return "prose, which no table row can stand for"
    return None


def _dense(column: Column) -> str | None:
    """Why a column is a number to the model; None: it is a category."""
    if column.kind == "number":
        return "no whole numbers"
    coded = names.says(column.name, names.OF_IDS) or names.says(column.name, names.OF_CODES)
    if column.kind != "whole" or (coded and not names.says(column.name, names.OF_AMOUNTS)):
        return None
    known = column.values.drop_nulls()
    low, middle, high = (float(known.quantile(part) or 0) for part in (0.0, 0.5, 1.0))
    if names.says(column.name, names.OF_AMOUNTS) and column.distinct > 10:
        return "an amount by its name"
    # Codes lie anywhere, counts begin at 0 or 1 and most are small
    small = known.filter(known.is_between(0, 20)).n_unique()
    if column.distinct > FEW_VALUES and -3 <= low <= 1 and small >= 10 and middle < high / 4:
        return "counts: many values, most of them small"
    return None


def _settle_groups(choices: Choices) -> None:
    """The group of gAUC and the domain."""
    rows = choices.survey.rows
    by_name = {column.name: column for column in choices.columns}
    if choices.explode is None:
        named = [
            (place, column.name)
            for column in choices.columns
            if (place := names.place(column.name, [*names.OF_GROUPS, *names.OF_USERS])) is not None
            and column.kind in ("whole", "text")
            and choices.uses[column.name].role in ("categorical", "")
            and 1.5 <= rows / max(column.distinct, 1) <= 5_000
            and column.distinct > FEW_VALUES
        ]
        choices.group = min(named)[1] if named else None
    for column in choices.columns:
        # A session or a request never comes again
        if names.says(column.name, names.OF_GROUPS) and column.distinct > 1_000:
            if choices.uses[column.name].role == "categorical":
                _drop(choices, column.name)
                choices.uses[column.name] = Use("", "does not come again")
            if column.name == choices.group:
                choices.uses[column.name] = Use("group", "AUC within it (gAUC) is reported")
    candidates = [
        (place, column.name)
        for column in choices.columns
        if (place := names.domain_place(column.name)) is not None
        and choices.uses[column.name].role == "categorical"
        and 2 <= column.distinct <= DOMAIN_VALUES
    ]
    for _, name in sorted(candidates):
        domain = _domain(by_name[name])
        if domain is not None and choices.domain is None:
            choices.domain = domain
            choices.uses[name] = Use("categorical, domain")


def _domain(column: Column) -> DomainColumnSettings | None:
    """Each common value as a domain; None: there are not two."""
    values = column.values
    if values.dtype == pl.Float64:
        values = values.cast(pl.Int64).cast(pl.String)
    shares = values.drop_nulls().value_counts(sort=True).to_dict(as_series=False)
    total = sum(shares["count"])
    common = [
        value
        for value, count in zip(shares[values.name], shares["count"], strict=True)
        if count >= DOMAIN_SHARE * total
    ]
    if len(common) < 2 or len(common) > 8:
        return None
    found: dict[str, str] = {}
    for value in common:
        slug = re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_")
        slug = slug if re.match("[a-z]", slug) else f"{_slug(column.name)}_{slug or 'value'}"
        while slug in found.values() or slug == "other":
            slug += "_2"
        found[value] = slug
    return DomainColumnSettings(column=column.name, values=found, other="other")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "domain"


def _drop(choices: Choices, name: str) -> None:
    choices.categorical = [one for one in choices.categorical if one.column != name]


def _best_id(choices: Choices, vocabulary: list[str], least: int) -> str | None:
    """The column that is called most like an id of such things."""
    ranked = []
    for column in choices.columns:
        place = names.place(column.name, vocabulary)
        usable = choices.uses[column.name].role in ("categorical", "categorical, domain", "group")
        if place is None or not usable or column.distinct < least or column.kind == "list":
            continue
        found = names.words(column.name)
        is_id = names.says(column.name, names.OF_IDS) or len(found) == 1
        ranked.append((not is_id, place, -column.distinct, column.name))
    return min(ranked)[3] if ranked else None


def _settle_negatives(choices: Choices) -> None:
    """Negatives for a log of clicks alone.

    Raises:
        InputError: there is no item to draw.
    """
    item = _best_id(choices, names.OF_ITEMS, 3)
    by_name = {column.name: column for column in choices.columns}
    sessions = [
        column.name
        for column in choices.columns
        if names.says(column.name, names.OF_SESSIONS)
        and (names.says(column.name, names.OF_IDS) or len(names.words(column.name)) == 1)
        and column.kind in ("whole", "text")
    ]
    session = sessions[0] if sessions else _best_id(choices, names.OF_USERS, 2)
    if item is None or session is None:
        binary = [column.name for column in choices.columns if _is_binary(column)]
        hint = f"; of two values are: {', '.join(binary[:6])}" if binary else ""
        raise InputError(
            f"{choices.survey.log.files[0]}: no column is called like a label, and none like an "
            f"item and a session or user to draw negatives for; name it: --label COLUMN{hint}"
        )
    hours = (choices.span.last_ms - choices.span.first_ms + 1) / MS_PER_HOUR
    per_hour = choices.survey.rows / max(hours, 1.0)
    back = min(max(round(CLICKS_TO_DRAW_FROM / per_hour + 0.5), 1), 24 * 7)
    choices.negatives = NegativeSettings(
        item=item,
        session=session,
        per_click=NEGATIVES_PER_CLICK,
        popularity_hours=back,
        seed=1,
    )
    choices.base_rate = 1 / (1 + NEGATIVES_PER_CLICK)
    choices.group = None
    if by_name[session].distinct > 1_000 and session != _best_id(choices, names.OF_USERS, 2):
        _drop(choices, session)
        choices.uses[session] = Use("session", "no item clicked in it is drawn as a negative")


def _settle_counters(choices: Choices) -> None:
    """Past-only statistics of the ids that are likely to matter: the item, the user, the item in
    its domain or for its user."""
    item = (
        choices.explode.item
        if choices.explode is not None
        else choices.negatives.item
        if choices.negatives is not None
        else _best_id(choices, names.OF_ITEMS, 3)
    )
    user = _best_id(choices, names.OF_USERS, 3)
    keys = [[name] for name in (item, user) if name is not None]
    if item is not None and choices.explode is not None and user is not None:
        keys.append([user, item])
    elif item is not None and choices.domain is not None and choices.domain.column != item:
        keys.append([item, choices.domain.column])
    if not keys:
        many = sorted(
            (-column.distinct, column.name)
            for column in choices.columns
            if choices.uses[column.name].role == "categorical"
            and column.kind in ("whole", "text")
            and choices.survey.rows / max(column.distinct, 1) >= 5
        )
        keys = [[name] for _, name in many[:2]]
    window = choices.window_hours
    short = [window / 24, window / 4, window] if window >= 24 else [window / 4, window, 4 * window]
    rate = min(max(float(f"{choices.base_rate:.3g}"), 0.0001), 0.9999)
    for by in keys:
        of_item = item in by and len(by) == 1
        choices.counters.append(
            CounterSettings(
                by=by,
                bin_minutes=float(f"{max(window * 60 / 144, 1.0):.3g}"),
                hours=[float(f"{one:.4g}") for one in (short if of_item else [7 * window])],
                examples=choices.negatives is None,
                prior_rate=rate,
            )
        )


def _warn(choices: Choices) -> None:
    """What the log as a whole should make a person think of."""
    survey, span, rows = choices.survey, choices.span, choices.survey.rows
    warnings = choices.warnings
    warnings[:0] = [f"{', '.join(left)}: {why}" for why, left in choices.left_out.items()]
    warnings += [
        f"{moment.column.name}: {note}" for moment in _used(choices) for note in moment.notes
    ]
    bad = max(span.no_time, span.no_label)
    for count, what in ((span.no_time, "no readable time"), (span.no_label, "no label")):
        if count:
            warnings.append(f"{count:,} of {rows:,} rows have {what}; ingest sets them aside")
    if bad > QUARANTINE_LIMIT * rows:
        warnings.append(
            f"that is more than ingest allows: mend the rows, or leave them out with 'filter', or "
            f"--set data.quarantine_limit={min(2 * bad / rows, 1):.2g}"
        )
    if span.unsorted:
        warnings.append(
            f"{span.unsorted:,} rows are earlier than the row before; ingest sorts them by time"
        )
    if survey.duplicates:
        warnings.append(
            f"{survey.duplicates:,} rows repeat another in every column; ingest keeps them"
        )
    clicks = choices.base_rate * rows if choices.explode is None else float("inf")
    if choices.negatives is not None:
        warnings.append(
            "a log of clicks alone: negatives are sampled, so every score depends on the sampler; "
            "popularity turns within hours, so try --set data.window_hours=1"
        )
    elif choices.label is not None and clicks < FEW_CLICKS:
        warnings.append(f"{clicks:,.0f} rows are 1: too few to tell good models from bad ones")
    if span.last_ms - span.first_ms < WINDOWS * WINDOW_HOURS[-1] * MS_PER_HOUR:
        warnings.append(
            f"all rows lie within {(span.last_ms - span.first_ms) / 60_000:.0f} minutes: too few "
            f"windows to train on some and to judge by others"
        )


def _used(choices: Choices) -> Iterable[Moment]:
    return [choices.time, *([choices.label_time] if choices.label_time is not None else [])]
