"""Which columns of an unknown log are features, dense or categorical, and which would mislead."""

import numpy as np
from numpy.typing import NDArray

from recsys.data.describe import names
from recsys.data.describe.choices import Choices, Use
from recsys.data.describe.columns import Column, is_prose, share
from recsys.data.describe.label_choice import is_binary, sampled_labels
from recsys.data.describe.leaks import single_aucs
from recsys.data.describe.moments import Moment
from recsys.data.settings import CategoricalColumnSettings
from recsys.data.sources.base import OWN

LEAK_AUC, LEAK_AUC_OF_RATES = 0.9, 0.99  # the rates of an app or an ad may well reach 0.95
FEW_VALUES = 50
AFTERWARDS = "LEAK by name, known only after the event, so no feature"
OUTCOMES = "LEAK by name, outcomes as the label is, so no features"


def settle_columns(choices: Choices, moments: list[Moment]) -> None:
    """Features, dense or categorical, and what is left out."""
    labels = sampled_labels(choices)
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
    if name.startswith(OWN):
        return f"names that start with {OWN!r} are taken"
    if column.constant:
        choices.left_out.setdefault("always the same, so no feature", []).append(name)
        return "constant"
    if column.kind == "nested":
        return "neither an id, a number nor a list of ids"
    if name in times:
        if share(times[name].times > choices.time.times) > 0.5:
            choices.left_out.setdefault("times after the event, so no feature", []).append(name)
            return "a time after the event"
        return "another time; event_hour is of the event's"
    if names.known_afterwards(name):
        choices.left_out.setdefault(AFTERWARDS, []).append(name)
        return "LEAK by its name: known only after the event"
    if names.is_outcome(name) and (is_binary(column) or column.kind in ("whole", "number")):
        choices.left_out.setdefault(OUTCOMES, []).append(name)
        if is_binary(column):
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
