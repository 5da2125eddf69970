"""Choose crosses on early windows, and write them into the dataset's YAML."""

import json

from rich.console import Console
from rich.table import Table

from recsys.baselines.crosses import Cross, CrossChoice, CrossChoiceSettings, choose_crosses
from recsys.baselines.settings import BaselinesSettings
from recsys.config import InputError, load_settings
from recsys.data.names import feature_column
from recsys.data.schema import Schema
from recsys.evaluation.printed import TABLE_WIDTH
from tasks.checks import check_settings
from tasks.overrides import apply_overrides
from tasks.project import PARAMS, WINDOWS, require
from tasks.settings import DATASETS

SHOWN = 5  # pairs that were not chosen


def propose_crosses(settings: CrossChoiceSettings, write: bool) -> CrossChoice:
    """Print the gain of pairs of columns; with ``write``, add those chosen to the dataset's
    ``crosses``.

    Raises:
        InputError: there are no windows of the chosen dataset, its YAML has no table, or there are
            too few columns or early windows.
    """
    project = check_settings()
    name = project.data.dataset
    table = project.dataset.table
    if table is None:
        raise InputError(
            f"{PARAMS / DATASETS / name}.yaml: crosses need a log described in the section table; "
            f"generated streams and Criteo's layout have fixed features"
        )
    require(WINDOWS)
    schema = Schema.load(WINDOWS)
    if schema.dataset != name:
        raise InputError(
            f"{WINDOWS}: holds the dataset {schema.dataset}, not {name}; run towerflow ingest"
        )
    stored = {feature.name for feature in schema.categorical}
    column_of = {
        column: one.column
        for one in table.categorical
        if one.kind == "id" and (column := feature_column(one.feature, schema.tasks)) in stored
    }
    feature_of = {column: feature for feature, column in column_of.items()}
    known = [
        (feature_of[one.columns[0]], feature_of[one.columns[1]])
        for one in table.crosses
        if len(one.columns) == 2 and set(one.columns) <= set(feature_of)
    ]
    baselines = load_settings(PARAMS / "baselines.yaml", BaselinesSettings)
    choice = choose_crosses(WINDOWS, list(column_of), known, project.evaluate, baselines, settings)
    _print(choice, column_of)
    if write and choice.chosen:
        present = [one.model_dump(mode="json", exclude_unset=True) for one in table.crosses]
        added = [[column_of[feature] for feature in one.columns] for one in choice.chosen]
        apply_overrides({f"{DATASETS}.{name}.table.crosses": json.dumps([*present, *added])})
        print(f"crosses: written into {PARAMS / DATASETS / name}.yaml; next: towerflow run")
    return choice


def _print(choice: CrossChoice, column_of: dict[str, str]) -> None:
    table = Table("pair", "chosen", "gain in % NE", "interval", "ids")

    def add(one: Cross, chosen: str) -> None:
        pair = ", ".join(column_of[feature] for feature in one.columns)
        interval = f"{one.low:+.2f} to {one.high:+.2f}"
        table.add_row(pair, chosen, f"{one.gain:+.2f}", interval, f"{one.ids:,}")

    for place, one in enumerate(choice.chosen, start=1):
        add(one, str(place))
    taken = {one.columns for one in choice.chosen}
    for one in [one for one in choice.tried if one.columns not in taken][:SHOWN]:
        add(one, "")
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)
    print(
        f"crosses: {len(choice.chosen)} of {len(choice.tried)} pairs chosen on early windows; "
        f"{len(choice.too_large)} have too many distinct values"
    )
