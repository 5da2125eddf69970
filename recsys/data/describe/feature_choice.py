"""Which columns of an unknown log are dense or categorical features, and which would mislead."""

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

LEAK_AUC, LEAK_AUC_OF_RATES = 0.9, 0.99  # honest rates of an app or an ad can reach 0.95
FEW_VALUES = 50
AFTERWARDS = "LEAK by name, known only after the event, so not a feature"
OUTCOMES = "LEAK by name, outcomes like the label, so not features"


def settle_columns(choices: Choices, moments: list[Moment]) -> None:
    """Choose dense and categorical features, and what is left out."""
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
    """Why a column is left out, else None; also warns of a leak."""
    name, rows = column.name, choices.survey.rows
    if name == "":
        return "has no name: a writer's row numbers"
    if name.startswith(OWN):
        return f"names that start with {OWN!r} are taken"
    if column.constant:
        choices.left_out.setdefault("always the same, so not a feature", []).append(name)
        return "constant"
    if column.kind == "nested":
        return "neither an id, a number nor a list of ids"
    if name in times:
        if share(times[name].times > choices.time.times) > 0.5:
            choices.left_out.setdefault("times after the event, so not a feature", []).append(name)
            return "a time after the event"
        return "another time; event_hour comes from the event's time"
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
                f"{name}: has AUC {auc:.3f} by itself; probably known only with the label; left out"
            )
            return f"LEAK: AUC {auc:.3f} by itself"
        if auc > LEAK_AUC:
            choices.warnings.append(
                f"{name}: the click rates of its values have AUC {auc:.3f}; check that it is "
                f"known before the event"
            )
    if names.says(name, names.OF_SPLITS):
        return "how the log was split for training"
    unique = column.distinct > 0.95 * rows * (1 - column.missing) and rows > FEW_VALUES
    amount = column.kind == "number" or names.says(name, names.OF_AMOUNTS)
    if unique and column.kind in ("whole", "text") and not amount:
        return "a different value in every row: the row's own id"
    if column.kind == "text" and is_prose(column):
        return "prose, which cannot be looked up in a table"
    return None


def _dense(column: Column) -> str | None:
    """Why a column should be a dense feature; None: it is a category."""
    if column.kind == "number":
        return "not whole numbers"
    coded = names.says(column.name, names.OF_IDS) or names.says(column.name, names.OF_CODES)
    if column.kind != "whole" or (coded and not names.says(column.name, names.OF_AMOUNTS)):
        return None
    known = column.values.drop_nulls()
    low, middle, high = (float(known.quantile(part) or 0) for part in (0.0, 0.5, 1.0))
    if names.says(column.name, names.OF_AMOUNTS) and column.distinct > 10:
        return "an amount by its name"
    # Codes have any values; counts start at 0 or 1 and most are small
    small = known.filter(known.is_between(0, 20)).n_unique()
    if column.distinct > FEW_VALUES and -3 <= low <= 1 and small >= 10 and middle < high / 4:
        return "counts: many values, most of them small"
    return None
