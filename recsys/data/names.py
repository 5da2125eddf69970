"""Columns of a part: the project's own names, and what a feature's column is called."""

from collections.abc import Sequence
from urllib.parse import quote, unquote

from recsys.data.schema import task_columns

# Columns of the project's own beside those of a log, which may have any name but these.
OWN = "own:"
EVENT_TIME = f"{OWN}event_time"
NUMBER = f"{OWN}number:"  # and a column's name: its values as numbers
FEATURE_PREFIX = "feature:"
# Columns of parts, of scores joined to them and of predictions; and, by task, label_<task> and so
# on.
OWN_COLUMNS = frozenset(
    ["example_id", "event_time", "label_time", "domain", "group", "weight", "staleness_ms"]
)
TASK_COLUMNS = ("label", "score", "logit", "probability")


def feature_column(name: str, tasks: Sequence[str]) -> str:
    """The column, and so the table and the module, of the feature ``name`` in data of ``tasks``.

    The name itself, unless it is one of the project's own or one that a module cannot have (with a
    dot, or empty): then ``feature:`` and the name, percent-encoded. Two names never share a column;
    :func:`feature_name` is the way back.

    Example::

        feature_column("price", ["click"])  # price
        feature_column("ad.id", ["click"])  # feature:ad%2Eid
    """
    own = OWN_COLUMNS.union(*(task_columns(base, tasks) for base in TASK_COLUMNS))
    if name and "." not in name and name not in own and not name.startswith(FEATURE_PREFIX):
        return name
    return FEATURE_PREFIX + quote(name, safe="").replace(".", "%2E")


def feature_name(column: str) -> str:
    """The feature whose column it is, as the user calls it."""
    encoded = column.removeprefix(FEATURE_PREFIX)
    return column if encoded == column else unquote(encoded)
