"""Look at an unknown log: what its columns contain, and a first YAML for ingest.

:func:`survey` reads the log, :func:`choose` decides what each column is used as, and
:func:`dataset_text` writes the YAML.
"""

from recsys.data.describe.choices import Choices
from recsys.data.describe.deciding import choose, columns_of
from recsys.data.describe.reading import Log, Survey, open_log, survey
from recsys.data.describe.written import criteo_text, dataset_text, print_columns, root_of

__all__ = [
    "Choices",
    "Log",
    "Survey",
    "choose",
    "columns_of",
    "criteo_text",
    "dataset_text",
    "open_log",
    "print_columns",
    "root_of",
    "survey",
]
