"""Column names of a part: the project's own, and those of features."""

from collections.abc import Sequence
from urllib.parse import quote, unquote

from recsys.data.schema import task_columns

# The project's own columns beside those of a log, which may have any other name.
OWN = "own:"
EVENT_TIME = f"{OWN}event_time"
NUMBER = f"{OWN}number:"  # followed by a column's name: its values as numbers
FEATURE_PREFIX = "feature:"
# Columns of parts, of scores joined to them and of predictions; and, by task, label_<task> and so
# on.
OWN_COLUMNS = frozenset(
    ["example_id", "event_time", "label_time", "domain", "group", "weight", "staleness_ms"]
)
TASK_COLUMNS = ("label", "score", "logit", "probability")


def feature_column(name: str, tasks: Sequence[str]) -> str:
    """The column (and so the table and the module) of the feature ``name`` in data with ``tasks``.

    This is the name itself, unless it is one of the project's own or cannot be a module's name
    (empty, or with a dot): then it is ``feature:`` and the percent-encoded name. Two names never
    share a column; :func:`feature_name` is the inverse.

    Example::

        feature_column("price", ["click"])  # price
        feature_column("ad.id", ["click"])  # feature:ad%2Eid
    """
    own = OWN_COLUMNS.union(*(task_columns(base, tasks) for base in TASK_COLUMNS))
    if name and "." not in name and name not in own and not name.startswith(FEATURE_PREFIX):
        return name
    return FEATURE_PREFIX + quote(name, safe="").replace(".", "%2E")


def feature_name(column: str) -> str:
    """The user's name for the feature of a column."""
    encoded = column.removeprefix(FEATURE_PREFIX)
    return column if encoded == column else unquote(encoded)
