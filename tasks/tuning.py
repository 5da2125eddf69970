"""Tune the students: a study in .work/tune, an MLflow run per trial, better settings into
params/."""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown

from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.tuning_settings import TuneSettings
from recsys.evaluation.printed import TABLE_WIDTH
from recsys.files import write_atomically
from tasks.checks import check_settings
from tasks.courier import sending
from tasks.overrides import apply_overrides
from tasks.project import PARAMS, SCORES, TUNE_REPORT, TUNE_WORK, WINDOWS, only_one, require
from tasks.snapshots import check_scores
from tasks.tracking import RunRecord, record
from tasks.versioning import output_version

if TYPE_CHECKING:
    from recsys.distill.tuning import Outcome, Search, TrialResult

MOST_WORKERS = 2  # the default limit: more workers lose more time waiting for memory than they save


@dataclass(frozen=True)
class TuneOptions:
    """The options of a call; None means the value in params/tune.yaml. With ``dry_run``, params/ is
    not changed."""

    what: Sequence[str] = ("model",)
    minutes: float | None = None
    trials: int | None = None
    workers: int | None = None
    dry_run: bool = False


def tune_students(options: TuneOptions) -> "Outcome":
    """Search, check the best trials again, write reports/tune.md and, unless ``dry_run``, params/.

    Raises:
        InputError: a setting is wrong, there are no windows or too few early ones, or another
            process is tuning.
    """
    from recsys.distill.tuning import (
        Bench,
        Search,
        confirm,
        early_windows,
        reads_scores,
        study_name,
        tunable,
    )
    from recsys.distill.tuning_report import report

    project = check_settings()
    settings = _settings(options)
    present, space = tunable(project.students, project.train, settings, options.what)
    require(WINDOWS)
    scores = None
    if reads_scores(present, space):
        require(SCORES)
        check_scores()
        scores = SCORES
    with only_one("tune.lock", "tuning"):
        links = TUNE_WORK / "early"
        shutil.rmtree(links, ignore_errors=True)
        early = early_windows(WINDOWS, scores, project.evaluate, links)
        name = study_name(present, space, early, settings.seed)
        folder = TUNE_WORK / name
        folder.mkdir(parents=True, exist_ok=True)
        workers = settings.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        with sending(), Bench(early, folder, workers) as bench:
            search = Search(present, space, bench, settings)
            told = _Teller(search, name, options.what)
            search.run(told)
            outcome = confirm(search, lambda line: print(f"tune: {line}", flush=True))
            text = report(search, outcome)
            TUNE_REPORT.parent.mkdir(exist_ok=True)
            write_atomically(TUNE_REPORT, text.encode())
            told.record_end(outcome)
        shutil.rmtree(links)
    Console(width=max(Console().width, TABLE_WIDTH)).print(Markdown(text))
    if outcome.chosen and not options.dry_run:
        apply_overrides({key: json.dumps(value) for key, value in outcome.chosen.items()})
        print(f"tune: written; to see the changes: git diff {PARAMS}")
    return outcome


def _settings(options: TuneOptions) -> TuneSettings:
    """params/tune.yaml with the call's options; minutes take precedence over the file's trials."""
    settings = load_settings(PARAMS / "tune.yaml", TuneSettings)
    given = {
        name: value
        for name in ("minutes", "trials", "workers")
        if (value := getattr(options, name)) is not None
    }
    if "minutes" in given:
        given.setdefault("trials", None)
    return settings.with_values(given, {})


class _Teller:
    """Reports each trial's result on the terminal and in MLflow: a run for the study with one run
    per trial below it."""

    def __init__(self, search: "Search", study: str, what: Sequence[str]) -> None:
        self.search, self.study, self.what = search, study, ", ".join(what)
        self.dataset, self.version = Schema.load(WINDOWS).dataset, output_version(WINDOWS)
        self.started, self.best = time.monotonic(), math.inf
        self._record(f"tune: {self.what}", {"what": self.what}, grows=study)

    def __call__(self, trial: "TrialResult") -> None:
        said = f"{trial.state} {trial.message}".rstrip()
        if trial.ne is not None:
            self.best = min(self.best, trial.ne)
            said = f"NE {trial.ne:.4f}, best {self.best:.4f}"
        seconds = time.monotonic() - self.started
        print(f"tune: {seconds:4.0f} s, trial {trial.number}: {said}", flush=True)
        tags = {"state": trial.state} | ({"message": trial.message} if trial.message else {})
        self._record(
            f"tune: {self.what}, trial {trial.number}",
            trial.values,
            metrics={} if trial.ne is None else {"ne": trial.ne},
            curves={
                f"window/ne_{student}": [None, *(None if math.isnan(v) else v for v in curve)]
                for student, curve in trial.curves.items()
            },
            tags=tags,
            parent=self.study,
        )

    def record_end(self, outcome: "Outcome") -> None:
        """Record the study's table, and the NE of the settings before and after."""
        metrics = {"ne_before": outcome.before, "ne_after": outcome.after}
        artifacts = {str(TUNE_REPORT): ""}
        name = f"tune: {self.what}"
        self._record(name, {}, metrics=metrics, artifacts=artifacts, grows=self.study)

    def _record(self, name: str, parameters: dict[str, object], **further: object) -> None:
        record(
            RunRecord(name, "tune", parameters, self.version, self.dataset, **further)  # type: ignore[arg-type]
        )
