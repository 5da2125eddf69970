"""``towerflow compare``: two folders or registered models on the same rows."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown

from recsys.config import InputError, load_settings
from recsys.evaluation.printed import TABLE_WIDTH
from recsys.evaluation.settings import EvaluateSettings
from tasks.project import PARAMS, STUDENTS

if TYPE_CHECKING:
    from recsys.evaluation.pairs import Pair

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def compare_named(first: str, second: str, first_window: int | None, task: str | None) -> None:
    """Print the comparison of ``second`` with ``first``.

    Args:
        first, second: a folder, or ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        first_window: index of the first window to compare; None: the evaluation's first window.
        task: another task than the models' main one; None: the main one.

    Raises:
        InputError: one does not exist, or the two cover different rows.
    """
    from recsys.evaluation.pairs import compare_sources

    settings = load_settings(PARAMS / "evaluate.yaml", EvaluateSettings)
    start = settings.first_evaluation_window if first_window is None else first_window
    pairs = compare_sources(_folder(first), _folder(second), settings, start, task)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(Markdown(comparison_table(first, second, pairs)))
    made = sum(len(pair.comparisons) for pair in pairs)
    console.print(
        f"difference: B - A; low and high: {settings.confidence:.0%} by {settings.blocks}, seeds "
        f"nested; p corrected for {made} comparisons (Holm).",
        highlight=False,
    )


def comparison_table(first: str, second: str, pairs: "list[Pair]") -> str:
    """A Markdown table with one line per model and metric."""
    from recsys.evaluation.comparison import p_text
    from recsys.evaluation.metrics import LABELS

    shown = [pair.model for pair in pairs] != [""]
    headings = [*(["model"] if shown else []), "metric", "A", "B", "B - A", "low", "high", "p"]
    texts = 2 if shown else 1
    lines = [
        f"- A: {first}",
        f"- B: {second}",
        *(f"- {pair.model or 'rows'}: {pair.rows:,}, seeds: {pair.seeds}" for pair in pairs),
        "",
        f"| {' | '.join(headings)} |",
        "|---" * texts + "|---:" * (len(headings) - texts) + "|",
    ]
    for pair in pairs:
        for one in pair.comparisons:
            values = [(one.first, ".4f"), (one.second, ".4f"), (one.difference, "+.5f")]
            values += [(one.low, "+.5f"), (one.high, "+.5f")]
            cells = [format(value, form) if math.isfinite(value) else "-" for value, form in values]
            cells.append(p_text(one.p_holm))
            names = [*([pair.model] if shown else []), LABELS[one.metric]]
            lines.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join(lines) + "\n"


def _folder(source: str) -> Path:
    """The folder with the predictions of ``source``.

    Raises:
        InputError: there is no such folder, or no such registered model.
    """
    if source.startswith("models:"):
        return _registered(source)
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"{source}: no such folder")
    return folder


def _registered(uri: str) -> Path:
    """The folder of the arm that was registered as ``uri``, if the arm has not changed since.

    A registered model was trained on every window. It is judged by the predictions that its arm
    made before training on them, which stay in the project.
    """
    from tasks.registry import folder_hash
    from tasks.tracking import connect, in_one_line

    match = REGISTERED.fullmatch(uri)
    if match is None:
        raise InputError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = match["name"], match["alias"], match["version"]
    try:
        mlflow, _ = connect()
        client = mlflow.MlflowClient()
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
        exported = Path(mlflow.artifacts.download_artifacts(uri))
    except InputError:
        raise
    except Exception as error:  # whatever MLflow raises
        raise InputError(f"{uri}: {in_one_line(error)}") from error
    arm = STUDENTS / found.tags["student"] / found.tags["arm"]
    copies = {folder_hash(one) for one in (exported / "artifacts").iterdir()}
    if not (arm / "export").is_dir() or folder_hash(arm / "export") not in copies:
        raise InputError(
            f"{uri}: its predictions are not in this project, {arm} holds another model; check out "
            f"the code {found.tags.get('code_version', '')}, then: dvc checkout"
        )
    return arm
