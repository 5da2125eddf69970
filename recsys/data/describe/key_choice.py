"""Which ids of an unknown log matter: group, domain, items and users."""

import re

import polars as pl

from recsys.config import InputError
from recsys.data.describe import names
from recsys.data.describe.choices import Choices, Use
from recsys.data.describe.columns import Column
from recsys.data.describe.label_choice import is_binary
from recsys.data.settings import CounterSettings, DomainColumnSettings, NegativeSettings
from recsys.units import MINUTES_PER_HOUR, MS_PER_HOUR

DOMAIN_SHARE, DOMAIN_VALUES = 0.05, 30  # least share of rows per domain; most domain values
FEWEST_GROUPS = 50
MANY_VALUES = 1_000
NEGATIVES_PER_CLICK = 4
CLICKS_TO_DRAW_FROM = 50
# For sampled negatives, in multiples of the hours from which they are drawn: what matters is how an
# item's popularity changes after these (docs/benchmarks/real_logs.md)
COUNTED_SPANS, PAIR_SPANS, BINS_PER_SPAN = (0.5, 1, 3, 6, 24, 240), (0.5, 1, 6, 240), 12
PAIRED_COLUMNS, PAIRED_VALUES = 4, 64  # at most


def settle_groups(choices: Choices) -> None:
    """Choose the group for gAUC and the domain."""
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
            and column.distinct > FEWEST_GROUPS
        ]
        choices.group = min(named)[1] if named else None
    for column in choices.columns:
        # A session or request does not return later
        if names.says(column.name, names.OF_GROUPS) and column.distinct > MANY_VALUES:
            if choices.uses[column.name].role == "categorical":
                _drop(choices, column.name)
                choices.uses[column.name] = Use("", "does not return later")
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
    """Each common value as a domain; None if there are fewer than two."""
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
    """The column whose name is most like an id from ``vocabulary``; None if there is none."""
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


def settle_negatives(choices: Choices) -> None:
    """Choose negatives for a log that has only clicks.

    Raises:
        InputError: there is no item column to draw from.
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
        binary = [column.name for column in choices.columns if is_binary(column)]
        hint = f"; columns with two values: {', '.join(binary[:6])}" if binary else ""
        raise InputError(
            f"{choices.survey.log.files[0]}: no column name looks like a label, or like an "
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
    # An item's popularity changes within the hours from which negatives are drawn
    choices.window_hours = min(choices.window_hours, float(back))
    choices.group = None
    if by_name[session].distinct > MANY_VALUES and session != _best_id(choices, names.OF_USERS, 2):
        _drop(choices, session)
        choices.uses[session] = Use("session", "no item clicked in it is drawn as a negative")


def settle_counters(choices: Choices) -> None:
    """Choose past-only statistics of the ids that are likely to matter: the item, the user, the
    item per domain or per user."""
    if choices.negatives is not None:
        choices.counters = _counters_of_negatives(choices, choices.negatives)
        return
    item = (
        choices.explode.item
        if choices.explode is not None
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
                prior_rate=rate,
            )
        )


def _counters_of_negatives(choices: Choices, negatives: NegativeSettings) -> list[CounterSettings]:
    """Statistics of the item, and of the item paired with the domain and a few small columns. Users
    get none: sampling gives every user the same click rate."""
    domain = None if choices.domain is None else choices.domain.column
    small = sorted(
        (column.name == domain, column.distinct, column.name)
        for column in choices.columns
        if choices.uses[column.name].role.startswith("categorical")
        and column.name != negatives.item
        and column.kind in ("whole", "text", "boolean")
        and 2 <= column.distinct <= PAIRED_VALUES
    )
    paired = [[negatives.item, name] for *_, name in small[-PAIRED_COLUMNS:]]
    return [
        CounterSettings(
            by=by,
            bin_minutes=negatives.popularity_hours * MINUTES_PER_HOUR / BINS_PER_SPAN,
            hours=[negatives.popularity_hours * one for one in spans],
            prior_rate=choices.base_rate,
        )
        for by, spans in [([negatives.item], COUNTED_SPANS), *((by, PAIR_SPANS) for by in paired)]
    ]
