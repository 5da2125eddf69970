"""Tuning: search students' settings on the windows before those that judge them.

A trial trains every student, as the students stage does, on the early windows only. Its value is
the mean NE of the windows after the first, each predicted before training on it. Optuna's TPE
proposes the trials. The best trials and the present settings are trained again with other seeds,
and a change counts only if the gain exceeds its interval.
"""

import json
import math
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError
from scipy import stats

from recsys.config import InputError, Settings, nearest_hint
from recsys.data.encoder import Encoder
from recsys.data.schema import Schema
from recsys.distill.early_choice import ne_by_other_windows
from recsys.distill.score_log import LOG_FILE, ScoreLog
from recsys.distill.student_checks import check_students
from recsys.distill.student_settings import PLAIN, StudentsSettings
from recsys.distill.students import Run, runs_of, train_runs
from recsys.distill.teacher import CHECKPOINT_KEYS, PLACEMENT_KEYS
from recsys.distill.training_job import TrainingJob
from recsys.distill.tuning_settings import DimensionSettings, Space, TuneSettings
from recsys.evaluation.settings import EvaluateSettings
from recsys.files import fingerprint, folder_state, link_file, link_files
from recsys.provenance import code_of
from recsys.training.launch import launch, main_module_stays_here, start_server
from recsys.training.launch_settings import NodeSettings
from recsys.training.non_finite import NonFiniteError
from recsys.training.rank_process import die_with_parent
from recsys.training.settings import TrainSettings

S = TypeVar("S", bound=Settings)
Values = dict[str, Any]  # by key, such as train.dense_learning_rate
RUNS_FILE = "runs.jsonl"
STUDY_FILE = "study.log"
STARTUP_TRIALS = 8  # drawn at random before TPE starts to model the results
PRUNED_AFTER = 5  # trials
PRESENT = "present"  # marks the trial of the present settings, which may be outside the space
DISTILLATION = "students.distillation."
SHARE = 0.1  # share of the whole gain that a change must bring to be written
REPETITIONS = 20  # in a row, after which the space counts as exhausted
# Mistakes of the user, or of a value in the space
REFUSALS = (InputError, NonFiniteError)


@dataclass(frozen=True)
class Early:
    """The windows that tuning may read, in folders without any other windows."""

    windows_dir: Path
    scores_dir: Path | None
    name: str


def early_windows(
    windows_dir: Path, scores_dir: Path | None, settings: EvaluateSettings, folder: Path
) -> Early:
    """Link the windows before ``settings.first_evaluation_window``, and their scores, into the
    empty ``folder``.

    Raises:
        InputError: there is no schema, or there are fewer than two such windows.
    """
    schema, first = Schema.load(windows_dir), settings.first_evaluation_window
    where = settings.where("first_evaluation_window")
    if first < 2:
        raise InputError(
            f"{where}: tuning trains on the windows before it, so it must be at least 2, got "
            f"{first}"
        )
    if len(schema.windows) < first:
        raise InputError(
            f"{where}: tuning needs the {first} windows before it; the data have "
            f"{len(schema.windows)}"
        )
    early = replace(schema, windows=schema.windows[:first])
    windows, scores, states = folder / "windows", folder / "scores", []
    for name in (window.name for window in early.windows):
        link_files(windows_dir / name, windows / name)
        states.append(folder_state(windows_dir / name))
    early.save(windows)
    Encoder.load(windows_dir).save(windows)
    if scores_dir is None:
        return Early(windows, None, fingerprint(early, states))
    scores.mkdir(parents=True)
    for name in (window.name for window in early.windows):
        if (scores_dir / name).is_dir():
            link_files(scores_dir / name, scores / name)
            states.append(folder_state(scores_dir / name))
    for name in (LOG_FILE, *(f"{window.name}.parquet" for window in early.windows)):
        path = scores_dir / name
        if path.is_file():
            link_file(str(path), str(scores / name))
            # The log's own log.json changes with later windows
            states.append([] if name == LOG_FILE else path.stat().st_mtime_ns)
    return Early(windows, scores, fingerprint(early, states, ScoreLog(scores).facts.wait_ms))


@dataclass(frozen=True)
class Tunable:
    """The present settings, and the arm to measure."""

    students: StudentsSettings
    train: TrainSettings
    arm: str

    def value(self, key: str) -> Any:
        """The present value of ``key`` (``train.<key>`` or ``students.<key>``); None in an absent
        section.

        Raises:
            InputError: there is no such key.
        """
        first, *rest = key.split(".")
        sections: dict[str, Any] = {"students": self.students, "train": self.train}
        if first not in sections or not rest:
            hint = nearest_hint(first, sections)
            raise InputError(f"{key!r}: no key of train or students; {hint}")
        found = sections[first]
        for part in rest:
            if isinstance(found, Settings):
                if part not in type(found).model_fields:
                    hint = nearest_hint(part, type(found).model_fields)
                    raise InputError(f"{key!r}: no such key; {hint}")
                found = getattr(found, part)
            elif isinstance(found, list):
                if not part.isdigit() or int(part) >= len(found):
                    raise InputError(f"{key!r}: no element {part!r} in a list of {len(found)}")
                found = found[int(part)]
            elif isinstance(found, dict):
                found = found.get(part)
            elif found is not None:
                raise InputError(
                    f"{key!r}: what comes before {part!r} is a single value, not a section"
                )
        return found

    def changed(self, values: Values) -> "Tunable":
        """A copy with ``values``.

        Raises:
            InputError: the settings refuse a value.
        """
        return replace(
            self,
            students=_changed(self.students, values, "students."),
            train=_changed(self.train, values, "train."),
        )

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """A run per student and seed, in this order."""
        settings = self.students.model_copy(update={"seeds": list(seeds)})
        return [run for run in runs_of(settings) if run.arm == self.arm]


def tunable(
    students: StudentsSettings, train: TrainSettings, settings: TuneSettings, what: Sequence[str]
) -> tuple[Tunable, Space]:
    """The present settings, and the search space of everything in ``what``.

    The plain students are measured, or those of the first other arm if the space has keys of
    distillation.

    Raises:
        InputError: a name, key or arm does not exist, or a present value does not fit a range.
    """
    space: Space = {}
    present = Tunable(students, train, PLAIN)
    for name in what:
        where = settings.where(f"spaces.{name}")
        if name not in settings.spaces:
            raise InputError(f"{where}: {nearest_hint(name, settings.spaces)}")
        for key, dimension in settings.spaces[name].items():
            try:
                _check_present(key, dimension, present.value(key))
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
        space |= settings.spaces[name]
    if not space:
        raise InputError(f"{settings.where('spaces')}: {', '.join(what)}: no keys to tune")
    if any(key.startswith(DISTILLATION) for key in space):
        others = [name for name in students.arms if name != PLAIN]
        if not others:
            raise InputError(
                f"{students.where('arms')}: keys of distillation need an arm besides {PLAIN}"
            )
        present = replace(present, arm=others[0])
    return present, space


def _check_present(key: str, dimension: DimensionSettings, value: Any) -> None:
    if dimension.choices:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key!r} is {value!r} now, which is in none of the ranges; give choices")


def reads_scores(present: Tunable, space: Space) -> bool:
    """Whether trials need the teacher's scores."""
    distils = any(key.startswith(DISTILLATION) for key in space)
    return distils or any(run.distillation.reads_scores for run in present.runs([0]))


def _changed(settings: S, values: Values, prefix: str) -> S:
    own = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
    if not own:
        return settings
    raw = settings.model_dump(exclude_unset=True)
    for key, value in own.items():
        *sections, last = key.split(".")
        place: Any = raw
        present: Any = settings
        for part in sections:
            present = _inner(present, part)
            if isinstance(place, list):
                place = place[int(part)]
                continue
            if place.get(part) is None:
                place[part] = _plain(present)
            place = place[part]
        place[last] = value
    try:
        return type(settings).model_validate(raw).placed_as(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{prefix}{where}: {first['msg']}, got {first['input']!r}") from error


def _inner(present: Any, part: str) -> Any:
    if isinstance(present, list):
        return present[int(part)]
    return present.get(part) if isinstance(present, dict) else getattr(present, part, None)


def _plain(present: Any) -> Any:
    """Fill in an absent section or list, so that one of its keys can be set."""
    if isinstance(present, list):
        return [_plain(one) for one in present]
    if isinstance(present, Settings):
        return present.model_dump(exclude_unset=True)
    return dict(present) if isinstance(present, dict) else {}


@dataclass(frozen=True)
class Measured:
    """A student's result: NE of each window after the first (NaN where undefined)."""

    ne: list[float]
    seconds: float


def measure_run(run: Run, job: TrainingJob[StudentsSettings]) -> Measured:
    """Train one student on all windows of ``job``; leaves nothing in ``job.output_dir``.

    If the settings leave the recipe open, a window's NE is that of the recipe which the other
    windows choose, so that chosen and given recipes are judged alike.
    """
    started = time.monotonic()
    # Progress of single students would hide that of the search
    histories = {}
    for recipe in run.recipes:
        one = run.with_recipe(recipe)
        with tempfile.TemporaryDirectory(dir=job.output_dir) as folder, redirect_stderr(StringIO()):
            own = replace(job, output_dir=Path(folder))
            [histories[recipe]] = launch(train_runs, ([one], False, own), job.train)[0].values()
    return Measured(ne_by_other_windows(histories), time.monotonic() - started)


class Bench:
    """Trains students on the early windows, ``workers`` in parallel, and stores their results in
    ``folder``, so a repeated run costs nothing, even after a kill.

    One worker is this process.
    """

    def __init__(self, early: Early, folder: Path, workers: int) -> None:
        self.early, self.workers, self.folder = early, workers, folder
        self.seconds: list[float] = []  # per trained run
        self._file = folder / RUNS_FILE
        self._known: dict[str, list[float]] = {}
        if self._file.is_file():
            for line in self._file.read_text().splitlines():
                with_key = _parsed(line)
                self._known |= {} if with_key is None else with_key
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            start_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(
                workers, mp_context=context, initializer=die_with_parent
            )

    def submit(self, run: Run, settings: Tunable) -> "Future[Measured]":
        """Train ``run``; the future's exception is one of ``REFUSALS`` if the settings are
        refused."""
        train = _alone(settings.train)
        key = fingerprint(run, train.model_dump(exclude=PLACEMENT_KEYS))
        future: Future[Measured] = Future()
        if key in self._known:
            future.set_result(Measured(self._known[key], 0.0))
            return future
        students = settings.students.model_copy(update={"diagnostics": False})
        scores = self.early.scores_dir if run.distillation.reads_scores else None
        job = TrainingJob(self.early.windows_dir, students, train, self.folder, scores_dir=scores)
        if self._pool is not None:
            with main_module_stays_here(run, job):
                future = self._pool.submit(measure_run, run, job)
        else:
            try:
                future.set_result(measure_run(run, job))
            except REFUSALS as error:
                future.set_exception(error)
        future.add_done_callback(lambda done: self._remember(key, done))
        return future

    def _remember(self, key: str, done: "Future[Measured]") -> None:
        if done.cancelled() or done.exception() is not None:
            return
        measured = done.result()
        self.seconds.append(measured.seconds)
        self._known[key] = measured.ne
        with self._file.open("a") as file:
            file.write(json.dumps({key: measured.ne}) + "\n")

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _parsed(line: str) -> dict[str, list[float]] | None:
    """A line of the file of runs; None for a half-written line left by a killed process."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _alone(train: TrainSettings) -> TrainSettings:
    """``train`` on one rank with one thread."""
    return train.model_copy(
        update={
            "world_size": 1,
            "threads_per_rank": 1,
            "ranks_per_host": None,
            "max_restarts": 0,
            "min_world_size": None,
            "nodes": NodeSettings(),
            "network_interface": None,
        }
    )


@dataclass(frozen=True)
class TrialResult:
    """A finished trial.

    Attributes:
        state: complete, pruned or refused; ``message`` says why it was refused.
        values: the value of every key in the space.
        ne: mean NE over students and windows; None if it was not trained to the end.
        curves: NE of each window after the first, by student.
    """

    number: int
    state: str
    values: Values
    ne: float | None
    curves: dict[str, list[float]]
    message: str = ""


@dataclass
class _Running:
    """A running trial: the students yet to be trained, and the results of the others."""

    trial: Trial
    values: Values
    settings: Tunable
    runs: list[Run] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)


def study_name(present: Tunable, space: Space, early: Early, seed: int) -> str:
    """A name for everything that decides trial results: data, code, present settings, space."""
    students = present.students.model_dump(exclude=CHECKPOINT_KEYS | {"seeds"})
    train = present.train.model_dump(exclude=PLACEMENT_KEYS)
    return fingerprint(early.name, code_of(__name__), space, students, train, present.arm, seed)


class Search:
    """An Optuna study in ``bench.folder``, which a later process can continue."""

    def __init__(self, present: Tunable, space: Space, bench: Bench, settings: TuneSettings):
        self.present, self.space, self.bench, self.settings = present, space, bench, settings
        self.now = {key: present.value(key) for key in space}
        self.schema = Schema.load(bench.early.windows_dir)
        self._distributions = {key: _distribution(space[key], self.now[key]) for key in space}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(bench.folder / STUDY_FILE)))
        name = study_name(present, space, bench.early, settings.seed)
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            pruner=MedianPruner(n_startup_trials=PRUNED_AFTER),
        )
        self._take_up()
        # A restarted sampler must not repeat the draws of the killed one
        begun = len(self.study.get_trials(deepcopy=False)) - 1
        self.study.sampler = TPESampler(seed=settings.seed + begun, n_startup_trials=STARTUP_TRIALS)

    def run(self, told: Callable[[TrialResult], None]) -> None:
        """Try settings until the budget is spent; call ``told`` with each finished trial.

        Raises:
            InputError: the current settings cannot be trained.
        """
        started, running = time.monotonic(), {}
        ended: list[TrialResult] = []
        while True:
            while len(running) < self.bench.workers and self._goes_on(started, len(running)):
                one = self._asked()
                self._start_next(one, running, ended)
            if running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._took(running.pop(future), future, running, ended)
            for result in ended:
                told(result)
            if not running and not ended:
                return
            ended.clear()

    def best(self) -> list[Values]:
        """The changes in the best trials, best first, without the present settings."""
        found: list[Values] = []
        for trial in sorted(self._complete(), key=lambda one: (one.value, one.number)):
            changes = self._changes(trial)
            if changes and changes not in found:
                found.append(changes)
        return found

    def counts(self) -> dict[str, int]:
        """Trials of the study by state."""
        states = [trial.user_attrs.get("state") for trial in self._ended()]
        return {state: states.count(state) for state in ("complete", "pruned", "refused")}

    def _take_up(self) -> None:
        """Queue the present settings first, and then what a killed process was working on."""
        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in left:
            self.study.tell(trial.number, state=TrialState.FAIL)
        queue = [one for one in left if one.params.keys() == self.space.keys()]
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not any(PRESENT in one.user_attrs for one in (*self._ended(), *waiting, *queue)):
            nearest = {key: self._nearest(key) for key in self.space}
            self.study.enqueue_trial(nearest, user_attrs={PRESENT: True})
        for trial in queue:
            marks = {key: value for key, value in trial.user_attrs.items() if key == PRESENT}
            self.study.enqueue_trial(trial.params, user_attrs=marks)

    def _complete(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [one for one in trials if one.value is not None and math.isfinite(one.value)]

    def _ended(self) -> list[FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=states)

    def _goes_on(self, started: float, running: int) -> bool:
        trials = self._ended()
        if self.settings.trials is not None:
            return len(trials) + running < self.settings.trials
        if not trials:
            return True
        recent = [self._changes(trial) for trial in trials[-REPETITIONS:]]
        older = [self._changes(trial) for trial in trials[:-REPETITIONS]]
        if len(recent) == REPETITIONS and all(one in older for one in recent):
            return False
        budget = self.settings.minutes * 60
        again = self.settings.seeds * (self.settings.finalists + len(self.space) + 3)
        seconds = float(np.mean(self.bench.seconds)) if self.bench.seconds else 0.0
        reserve = again * len(self.present.students.students) * seconds / self.bench.workers
        return time.monotonic() - started < budget - min(reserve, budget / 2)

    def _asked(self) -> _Running:
        trial = self.study.ask(self._distributions)
        return _Running(trial, self._changes(trial), self.present)

    def _start_next(
        self, one: _Running, running: dict[Future[Measured], _Running], ended: list[TrialResult]
    ) -> None:
        """Train the trial's next student; before the first one, check the settings."""
        if not one.measured and not one.runs:
            try:
                one.settings = self.present.changed(one.values)
                check_students(self.schema, one.settings.students)
            except InputError as error:
                ended.append(self._refused(one, error))
                return
            one.runs = one.settings.runs([self.settings.seed])
        running[self.bench.submit(one.runs[0], one.settings)] = one

    def _took(
        self,
        one: _Running,
        future: "Future[Measured]",
        running: dict[Future[Measured], _Running],
        ended: list[TrialResult],
    ) -> None:
        """Record a student's result; continue with the next one, or end the trial."""
        error = future.exception()
        if isinstance(error, REFUSALS):
            ended.append(self._refused(one, error))
            return
        run, *one.runs = one.runs
        one.measured[run.student.name] = future.result().ne
        ne = _mean(np.concatenate([np.array(curve) for curve in one.measured.values()]))
        if not math.isfinite(ne):
            why = f"{run.student.name!r}: no early window has a click and an example without one"
            ended.append(self._refused(one, InputError(why)))
        elif not one.runs:
            ended.append(self._ended_as(one, "complete", ne, TrialState.COMPLETE))
        else:
            one.trial.report(ne, step=len(one.measured))
            if one.values and one.trial.should_prune():
                ended.append(self._ended_as(one, "pruned", None, TrialState.PRUNED))
            else:
                self._start_next(one, running, ended)

    def _refused(self, one: _Running, error: BaseException) -> TrialResult:
        message = " ".join(str(error).split())
        result = self._ended_as(one, "refused", None, TrialState.PRUNED, message)
        if not one.values:
            raise InputError(f"the current settings cannot be trained: {message}") from error
        return result

    def _ended_as(
        self, one: _Running, name: str, ne: float | None, state: TrialState, message: str = ""
    ) -> TrialResult:
        one.trial.set_user_attr("state", name)
        if message:
            one.trial.set_user_attr("message", message)
        self.study.tell(one.trial, ne, state=state)
        values = self.now | one.values
        return TrialResult(one.trial.number, name, values, ne, one.measured, message)

    def _changes(self, trial: Trial | FrozenTrial) -> Values:
        """The values in which a trial differs from the present settings."""
        if PRESENT in trial.user_attrs:
            return {}
        values = {}
        for key, stored in trial.params.items():
            is_choice = bool(self.space[key].choices)
            value = json.loads(stored) if is_choice else float(f"{stored:.3g}")
            if value != self.now[key]:
                values[key] = value
        return values

    def _nearest(self, key: str) -> Any:
        """The present value in Optuna's form, which has no lists; clipped to the range."""
        dimension, now = self.space[key], self.now[key]
        if dimension.choices:
            return json.dumps(now)
        return min(max(float(now), dimension.low or 0.0), dimension.high or 0.0)


def _distribution(dimension: DimensionSettings, now: Any) -> BaseDistribution:
    """The distribution for Optuna; the present value is one of the choices."""
    if dimension.choices:
        texts = [json.dumps(one) for one in (now, *dimension.choices)]
        return CategoricalDistribution(list(dict.fromkeys(texts)))
    assert dimension.low is not None
    assert dimension.high is not None
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the defined values; NaN if there are none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


@dataclass(frozen=True)
class Difference:
    """A paired difference of NE, with its interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], confidence: float
) -> Difference:
    """``second`` - ``first``, each [students, seeds, windows] of NE, with a Student's t interval.

    Cells with the same seed share its luck, and cells of the same window share its rows, so neither
    are independent. The interval is the wider of two: over students and seeds, with means over
    windows, and over students and windows, with means over seeds.
    """
    difference = second - first
    mean = _mean(difference)
    half = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a window without clicks has no NE
        units = (np.nanmean(difference, axis=2), np.nanmean(difference, axis=1))
    for unit in units:
        values = unit[np.isfinite(unit)]
        if len(values) > 1:
            t = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
            half = max(half, float(t * values.std(ddof=1) / math.sqrt(len(values))))
    return Difference(mean, mean - half, mean + half)


@dataclass(frozen=True)
class KeyEffect:
    """A key of the best settings: its old and new values, and the effect of its change on top of
    the others' (in NE; below 0 is better), or None if the others cannot be trained without it."""

    key: str
    before: Any
    after: Any
    effect: Difference | None
    taken: bool


@dataclass(frozen=True)
class Outcome:
    """The result of tuning; ``chosen`` is empty if the present settings are good enough.

    ``before`` and ``after`` are NE on the early windows. ``difference`` is for the chosen settings,
    or for the best ones if none are chosen; None if no trial differed from the present.
    """

    before: float
    after: float
    difference: Difference | None
    keys: list[KeyEffect]
    chosen: Values


def confirm(search: Search, says: Callable[[str], None] = lambda line: None) -> Outcome:
    """Train the best trials and the present settings with other seeds, then the best one with each
    of its changes undone; ``says`` is called with what is being trained.

    Raises:
        InputError: the current settings cannot be trained.
    """
    settings = search.settings
    finalists = search.best()[: settings.finalists]
    says(f"the present settings and the best {len(finalists)} again, {settings.seeds} seeds")
    present, *others = _measured(search, [{}, *finalists])
    if present is None:
        raise InputError("the current settings cannot be trained with every seed")
    before = _mean(present)
    found = [(c, ne) for c, ne in zip(finalists, others, strict=True) if ne is not None]
    if not found:
        return Outcome(before, before, None, [], {})
    best, ne = min(found, key=lambda one: _mean(one[1]))
    difference = paired_difference(present, ne, settings.confidence)
    if difference.high >= 0:
        return Outcome(before, _mean(ne), difference, [], {})
    says(f"the best with each of its {len(best)} changes undone, {settings.seeds} seeds")
    put_back = [{k: v for k, v in best.items() if k != key} for key in best]
    effects = {
        key: paired_difference(without, ne, settings.confidence)
        for key, without in zip(best, _measured(search, put_back), strict=True)
        if without is not None
    }
    # Prefer few changes. Try first those with a certain effect of their own, then also those with a
    # share of the gain. Take the first set that beats the present settings beyond its interval and
    # is not worse than all changes together beyond its interval.
    chosen = best
    sure = {key for key in best if key not in effects or effects[key].high < 0}
    carry = {key for key, one in effects.items() if one.mean < SHARE * difference.mean}
    for needed in (sure, sure | carry):
        fewer = {key: value for key, value in best.items() if key in needed}
        [own_ne] = _measured(search, [fewer]) if 0 < len(fewer) < len(best) else [None]
        if own_ne is None:
            continue
        own = paired_difference(present, own_ne, settings.confidence)
        lost = paired_difference(ne, own_ne, settings.confidence)
        if own.high < 0 and lost.low <= 0:
            chosen, ne, difference = fewer, own_ne, own
            break
    keys = [
        KeyEffect(key, search.now[key], best[key], effects.get(key), key in chosen) for key in best
    ]
    return Outcome(before, _mean(ne), difference, keys, chosen)


def _measured(search: Search, candidates: list[Values]) -> list[NDArray[np.float64] | None]:
    """NE of each candidate, [students, seeds, windows]; None if its training was refused."""
    first = search.settings.seed + 1
    seeds = range(first, first + search.settings.seeds)
    futures: list[list[Future[Measured]]] = []
    for values in candidates:
        settings = search.present.changed(values)
        futures.append([search.bench.submit(run, settings) for run in settings.runs(seeds)])
    found: list[NDArray[np.float64] | None] = []
    for runs in futures:
        wait(runs)
        errors = [future.exception() for future in runs]
        for error in errors:
            if error is not None and not isinstance(error, REFUSALS):
                raise error
        if any(errors):
            found.append(None)
        else:
            ne = np.array([future.result().ne for future in runs])
            found.append(ne.reshape(-1, len(seeds), ne.shape[1]))
    return found
