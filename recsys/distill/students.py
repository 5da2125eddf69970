"""Students: one small model per domain, trained once per arm (without a teacher, with one) and
seed."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recsys.config import InputError
from recsys.data.encoder import Encoder
from recsys.data.loader import WindowReader
from recsys.data.rows import Rows
from recsys.data.schema import CANDIDATES_DIR, Schema
from recsys.distill.adapter import StudentAdapter
from recsys.distill.diagnostics import DistillationDiagnostics
from recsys.distill.distillation_settings import DistillationSettings, overlaid
from recsys.distill.early_choice import EarlyChoice, lowest_ne
from recsys.distill.heads import PEER_TABLE_PREFIX, RANKER_PREFIX, DistilledRanker
from recsys.distill.kept_runs import content_of, keep, take
from recsys.distill.losses import DistillationLoss
from recsys.distill.recipe import CHOICES_FILE, Recipe
from recsys.distill.score_log import ScoreLog
from recsys.distill.student_checks import check_students, tasks_of
from recsys.distill.student_settings import AUTO, StudentSettings, StudentsSettings
from recsys.distill.teacher import CHECKPOINT_KEYS, PLACEMENT_KEYS, model_size
from recsys.distill.teacher_gate import GATE_FILE, GatedCandidates, GatedScores, in_words
from recsys.distill.training_job import TrainingJob, resumable
from recsys.files import PARTIAL_SUFFIX, fingerprint, folder_state, write_durably, write_json
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings
from recsys.progress import EVERY_PASS, RowProgress
from recsys.provenance import code_of
from recsys.scratch import scratch
from recsys.serving.calibrating import calibration_of
from recsys.serving.export import export_ranker
from recsys.training import ranks
from recsys.training.batch_size import AUTO_BATCH
from recsys.training.engine import Engine, LossFunction
from recsys.training.label_loss import label_loss
from recsys.training.launch import launch
from recsys.training.resume import CHECKPOINTS_DIR, Checkpoints
from recsys.training.settings import TrainSettings
from recsys.training.side_by_side import launch_side_by_side
from recsys.validation.progressive import DataView, predict_then_train

EXPORT_DIR = "export"
SIZE_FILE = "size.json"
ENDED_FILE = "ended.json"
TRIAL_DIR = "trial"
# Settings of which each run has its own part
OF_EACH_RUN = {"model", "students", "seeds", "distillation", "arms"}


@dataclass(frozen=True)
class Run:
    """One student, arm and seed, with the student's own settings.

    ``table_learning_rates`` are the candidates; the first is used where early windows do not
    choose. None is the rate in the training settings.
    """

    student: StudentSettings
    arm: str
    seed: int
    model: ModelSettings
    distillation: DistillationSettings
    table_learning_rates: tuple[float | None, ...] = (None,)

    @property
    def is_distilled(self) -> bool:
        """Whether the run trains more than the plain ranker."""
        return not self.distillation.is_plain

    @property
    def recipes(self) -> list[Recipe]:
        """The recipes among which early windows choose, simplest first; just one if there is no
        choice."""
        settings = self.distillation
        choices: list[Rows] = [settings.rows] if settings.rows != AUTO else ["own", "all"]
        if settings.rows == AUTO and settings.reads_scores:
            choices.insert(1, "scores_elsewhere")
        return [Recipe(rows, rate) for rows in choices for rate in self.table_learning_rates]

    def with_recipe(self, recipe: Recipe) -> "Run":
        """The same run with ``recipe``."""
        changed = overlaid(self.distillation, DistillationSettings(rows=recipe.rows))
        rates = (recipe.table_learning_rate,)
        return replace(self, distillation=changed, table_learning_rates=rates)

    def folder(self, output_dir: Path) -> Path:
        """The folder of its predictions and metrics."""
        return output_dir / self.student.name / self.arm / f"seed-{self.seed}"


def train_students(
    job: TrainingJob[StudentsSettings],
    resume_dir: Path | None = None,
    kept_dir: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train all students in all arms and seeds, in one launch of ranks.

    Arms with the same seed start from the same weights and, with the same ``rows``, see the same
    batches; what they add to the ranker is not served. Writes
    <student>/<arm>/seed-<n>/{predictions,metrics.json}, <student>/<arm>/export/ for the first seed,
    and size.json (parameters of a served student), which is in <student>/ for a student with its
    own model or several tasks. Where ``rows`` or ``table_learning_rate`` is ``auto``, they are
    chosen first, and <student>/chosen.json gives the choice and the NE behind it.

    With ``resume_dir``, a killed run resumes at its student and window, as in
    :func:`recsys.distill.teacher.train_teacher`. The caller removes ``resume_dir``.

    With ``kept_dir`` as well, results are kept there until the next call, which reuses them for
    each student, arm and seed whose own settings, data and code are unchanged. With several nodes
    nothing is kept.

    Returns:
        Metrics of each window by "<student>/<arm>/seed-<n>".

    Raises:
        InputError: a student's domain or task is not in the data, a model has towers or breaks its
            budget, there are too few windows to choose on, or ``resume_dir`` is in use.
    """
    check_students(Schema.load(job.windows_dir), job.settings)
    if resume_dir is None:
        return run_students(job)
    if job.train.nodes.count > 1:
        kept_dir = None
    with resumable(job, resume_dir, _run_name(job), students_checkpoints) as resumed:
        return run_students(resumed, kept_dir)


def run_students(
    job: TrainingJob[StudentsSettings], kept_dir: Path | None = None
) -> dict[str, list[dict[str, Any]]]:
    """One launch of :func:`train_students`: each student continues from its last checkpoint to the
    last window."""
    schema = Schema.load(job.windows_dir)
    Encoder.load(job.windows_dir)  # the exports contain it
    needed, windows = job.settings.windows_to_choose_on, len(schema.windows)
    if windows < needed:
        raise InputError(
            f"{job.settings.where('auto_windows')}: auto is chosen on {needed} windows, "
            f"the data have {windows}; set fewer, or rows: own and a table_learning_rate"
        )
    runs, trials = runs_of(job.settings), []
    if kept_dir is not None:
        trials = [one for tried in _trials(runs, job).values() for one in tried.values()]
        for key in _keys(trials, job, "trial"):
            take(kept_dir, key, _root(job))
    runs = _with_recipes(runs, job)
    if kept_dir is not None:
        taken = sum(take(kept_dir, key, _root(job)) for key in _keys(runs, job, "run"))
        if taken:
            said = f"{taken} of {len(runs)} trainings are unchanged and reused"
            print(f"students: {said}", file=sys.stderr, flush=True)
    results = _launch(train_runs, runs, job)
    if kept_dir is not None:
        kept = {
            key: [_checkpoint_folder(run, job, kind) / ENDED_FILE, *outputs]
            for kind, own in (("trial", trials), ("run", runs))
            for key, run in _keys(own, job, kind).items()
            for outputs in [_outputs(run, job, schema) if kind == "run" else []]
        }
        keep(kept_dir, _root(job), kept)
    return results


def _root(job: TrainingJob[StudentsSettings]) -> Path:
    """The folder with a launch's outputs and checkpoints."""
    return job.output_dir.parent


def _checkpoint_folder(run: Run, job: TrainingJob[StudentsSettings], kind: str) -> Path:
    folder = _root(job) / CHECKPOINTS_DIR
    return folder / _trial_name(run) if kind == "trial" else run.folder(folder)


def _outputs(run: Run, job: TrainingJob[StudentsSettings], schema: Schema) -> list[Path]:
    """Everything that training ``run`` has written, except its checkpoints."""
    folder = run.folder(job.output_dir)
    if run.seed != job.settings.seeds[0]:
        return [folder]
    return [folder, folder.parent / EXPORT_DIR, _size_file(run, folder, schema)]


def _size_file(run: Run, folder: Path, schema: Schema) -> Path:
    """The size.json for the served student: its own, or the one shared by equal students."""
    is_common = run.student.model is None and len(schema.tasks) == 1
    return (folder.parents[2] if is_common else folder.parents[1]) / SIZE_FILE


def _keys(runs: list[Run], job: TrainingJob[StudentsSettings], kind: str) -> dict[str, Run]:
    """``runs`` keyed by everything that decides their output, which excludes other runs'
    settings."""
    of_all = (
        content_of(job.windows_dir),
        code_of(__name__),
        job.settings.model_dump(exclude=CHECKPOINT_KEYS | OF_EACH_RUN, exclude_unset=True),
        job.train.model_dump(exclude=PLACEMENT_KEYS),
        kind,
    )
    scores = None if job.scores_dir is None else content_of(job.scores_dir)
    return {
        fingerprint(
            of_all,
            scores if run.distillation.reads_scores else None,
            run.student.model_dump(exclude={"model", "distillation", "budget"}),
            run.student.model is None,
            run.arm,
            run.seed,
            run.seed == job.settings.seeds[0],
            run.model.model_dump(),
            run.distillation.model_dump(),
            run.table_learning_rates,
        ): run
        for run in runs
    }


def _launch(
    function: Callable[..., dict[str, Any]], runs: list[Run], job: TrainingJob[StudentsSettings]
) -> dict[str, Any]:
    """Call ``function(runs, shows progress, job)`` on all ranks together, or on each rank with a
    part of the runs."""
    if not job.settings.side_by_side or job.train.nodes.count > 1:
        return launch(function, (runs, True, job), job.train)[0]
    schema = Schema.load(job.windows_dir)
    costs = [_examples(_data(schema, run, job), run, job.checkpoints) for run in runs]
    alone = replace(job, train=job.train.model_copy(update={"world_size": 1}))
    return launch_side_by_side(function, runs, costs, (alone,), job.train)


def _run_name(job: TrainingJob[StudentsSettings]) -> str:
    """A name for what decides the students' weights: data, scores, code and settings, but not
    placement."""
    decisive = (
        job.settings.model_dump(exclude=CHECKPOINT_KEYS, exclude_unset=True),
        job.train.model_dump(exclude=PLACEMENT_KEYS),
    )
    scores = None if job.scores_dir is None else folder_state(job.scores_dir)
    return fingerprint(folder_state(job.windows_dir), scores, code_of(__name__), decisive)


def students_checkpoints(
    folder: Path, run: str, settings: StudentsSettings, continued: bool = False
) -> Checkpoints:
    """The checkpoints of ``run`` in ``folder``, one subfolder per student, according to
    ``settings``."""
    every, keep = settings.checkpoint_every_batches, settings.keep_checkpoints
    return Checkpoints(folder, run, keep, every, continued=continued)


def runs_of(settings: StudentsSettings) -> list[Run]:
    """All students, seeds and arms, in the order of training."""
    return [
        Run(
            student,
            arm,
            seed,
            settings.model_of(student),
            settings.distillation_of(student, arm),
            settings.table_learning_rates,
        )
        for student in settings.students
        for seed in settings.seeds
        for arm in settings.arms
    ]


def train_runs(
    runs: list[Run], shown: bool, job: TrainingJob[StudentsSettings]
) -> dict[str, list[dict[str, Any]]]:
    """Train ``runs`` on this rank, one after the other, with or without showing progress; see
    :func:`train_students`."""
    schema = Schema.load(job.windows_dir)
    views = [_data(schema, run, job) for run in runs]
    examples = [
        _examples(view, run, job.checkpoints) for run, view in zip(runs, views, strict=True)
    ]
    results = {}
    is_shown, counted = shown and ranks.rank() == 0, f"{EVERY_PASS}, by every arm"
    with RowProgress("students", sum(examples), is_shown, counted) as progress:
        for run, view, expected in zip(runs, views, examples, strict=True):
            own = _of_run(job, run)
            history = (
                None if own.checkpoints is None else _ended(own.checkpoints, len(schema.windows))
            )
            if history is None:
                history = _train_run(run, view, own, progress)
            else:
                progress.advance(expected)
            results[_name(run)] = history
    return results


def _with_recipes(runs: list[Run], job: TrainingJob[StudentsSettings]) -> list[Run]:
    """``runs`` with their chosen recipes, one choice for all seeds of a student's arm; writes each
    student's chosen.json."""
    trials = _trials(runs, job)
    asked = {_trial_name(one): one for tried in trials.values() for one in tried.values()}
    histories = {name: _tried(trial, job) for name, trial in asked.items()}
    new = [trial for name, trial in asked.items() if not histories[name]]
    if new:
        histories |= _launch(_try_recipes, new, job)
    chosen: dict[str, dict[str, EarlyChoice[Recipe]]] = {}
    for (student, arm), tried in trials.items():
        found = lowest_ne({recipe: histories[_trial_name(one)] for recipe, one in tried.items()})
        chosen.setdefault(student, {})[arm] = found
        if new:
            print(f"{student}, {arm}: rows {found}", file=sys.stderr, flush=True)
    for student, arms in chosen.items():
        (job.output_dir / student).mkdir(exist_ok=True)
        write_json(
            job.output_dir / student / CHOICES_FILE,
            {arm: {**asdict(one.choice), **one.as_json()} for arm, one in arms.items()},
        )
    return [
        run.with_recipe(
            chosen[run.student.name][run.arm].choice if len(run.recipes) > 1 else run.recipes[0]
        )
        for run in runs
    ]


def _trials(
    runs: list[Run], job: TrainingJob[StudentsSettings]
) -> dict[tuple[str, str], dict[Recipe, Run]]:
    """The runs among which early windows choose, by student and arm, where there is a choice."""
    return {
        (run.student.name, run.arm): {recipe: run.with_recipe(recipe) for recipe in run.recipes}
        for run in runs
        if len(run.recipes) > 1 and run.seed == job.settings.seeds[0]
    }


def _try_recipes(
    trials: list[Run], shown: bool, job: TrainingJob[StudentsSettings]
) -> dict[str, list[dict[str, Any]]]:
    """Train ``trials`` on the first windows, each from its last checkpoint; keeps only their
    metrics."""
    schema, count = Schema.load(job.windows_dir), job.settings.auto_windows
    views = [_data(schema, trial, job, count) for trial in trials]
    examples = [_examples(view, trial, None) for view, trial in zip(views, trials, strict=True)]
    histories = {}
    is_shown, counted = shown and ranks.rank() == 0, f"{EVERY_PASS}, by every choice"
    with RowProgress("students' choices", sum(examples), is_shown, counted) as progress:
        for trial, data in zip(trials, views, strict=True):
            kept = _trial_checkpoints(trial, job)
            engine, loss_function = _engine(trial, data, job.train)
            with TemporaryDirectory(dir=scratch()) as temporary:
                # The predictions judge the teacher, also after a kill
                folder = Path(temporary) if kept is None else kept.folder / TRIAL_DIR
                gated, _ = _gated(trial, data, folder)
                history = predict_then_train(
                    engine, loss_function, gated, folder, progress, checkpoints=kept
                )
            if kept is not None:
                _end(kept, history)
            histories[_trial_name(trial)] = history
    return histories


def _tried(trial: Run, job: TrainingJob[StudentsSettings]) -> list[dict[str, Any]]:
    """The metrics of a trial that an earlier process has finished; empty if it has not."""
    kept = _trial_checkpoints(trial, job)
    return [] if kept is None else _last_history(kept.folder)


def _trial_checkpoints(trial: Run, job: TrainingJob[StudentsSettings]) -> Checkpoints | None:
    kept = job.checkpoints
    if kept is None:
        return None
    folder = kept.folder / _trial_name(trial)
    if ranks.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    return replace(kept, folder=folder, continued=False)  # a stream does not need them later


def _trial_name(run: Run) -> str:
    return f"{run.student.name}/{run.arm}/{run.recipes[0]}"


def _name(run: Run) -> str:
    return run.folder(Path()).as_posix()


def _of_run(job: TrainingJob[StudentsSettings], run: Run) -> TrainingJob[StudentsSettings]:
    """``job`` in the folders of ``run``."""
    kept = job.checkpoints
    own = None if kept is None else replace(kept, folder=run.folder(kept.folder))
    return replace(job, output_dir=run.folder(job.output_dir), checkpoints=own)


def _examples(data: DataView, run: Run, checkpoints: Checkpoints | None) -> int:
    """The total for a student's progress; see :meth:`DataView.examples`."""
    if ranks.rank() != 0:
        return 0  # rank 0 shows the progress
    history = [] if checkpoints is None else _last_history(run.folder(checkpoints.folder))
    return data.examples(history)


def _ended(checkpoints: Checkpoints, windows: int) -> list[dict[str, Any]] | None:
    """The metrics of a student that an earlier process has finished after ``windows`` windows; None
    if it has not."""
    history: list[dict[str, Any]] = []
    if ranks.rank() == 0:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        history = _last_history(checkpoints.folder)
    history = ranks.broadcast(history)
    return history if len(history) == windows else None


def _last_history(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a finished student's windows; empty if it is not finished."""
    path = folder / ENDED_FILE
    return json.loads(path.read_text()) if path.exists() else []


def _end(checkpoints: Checkpoints, history: list[dict[str, Any]]) -> None:
    """Note that a student is done, then remove its checkpoints unless it will be continued."""
    if ranks.rank() == 0:
        partial = checkpoints.folder / f"{ENDED_FILE}{PARTIAL_SUFFIX}"
        write_durably(partial, json.dumps(history))
        partial.rename(checkpoints.folder / ENDED_FILE)
        if not checkpoints.continued:
            for path in checkpoints.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
    ranks.barrier()


def _data(
    schema: Schema,
    run: Run,
    job: TrainingJob[StudentsSettings],
    first_windows: int | None = None,
) -> DataView:
    assert run.distillation.rows != AUTO, "rows are chosen before a run sees data"
    reader = WindowReader(job.windows_dir, tasks_of(run.student, schema), first_windows)
    domain = schema.domains.index(run.student.domain)
    scores = candidates = None
    if run.distillation.reads_scores:
        assert job.scores_dir is not None, "a mode that reads scores needs a log"
        scores = ScoreLog(job.scores_dir, reader.logits)
        scored = job.scores_dir / CANDIDATES_DIR
        if run.distillation.candidates and scored.is_dir():
            candidates = ScoreLog(scored, reader.logits)
    choice = job.settings.batch_size
    size = job.train.global_batch_size if choice == AUTO_BATCH else choice
    rows = run.distillation.rows
    passes = job.settings.dense_passes
    fits = choice == AUTO_BATCH
    return DataView(reader, size, domain, scores, rows, fits, passes, candidates)


def _train_run(
    run: Run, data: DataView, job: TrainingJob[StudentsSettings], progress: RowProgress
) -> list[dict[str, Any]]:
    """Train one student in its own folders, given by ``job``; export it if it has the first
    seed."""
    schema, folder, checkpoints = data.reader.schema, job.output_dir, job.checkpoints
    engine, loss_function = _engine(run, data, job.train)
    data, gate = _gated(run, data, folder)
    diagnostics = None
    if job.settings.diagnostics and isinstance(loss_function, DistillationLoss):
        diagnostics = DistillationDiagnostics(loss_function)
    history = predict_then_train(
        engine,
        loss_function,
        data,
        folder,
        progress,
        checkpoints=checkpoints,
        diagnostics=diagnostics,
        live=None if job.live_dir is None else job.live_dir / f"{_name(run)}.jsonl",
    )
    if gate is not None and ranks.rank() == 0:
        verdicts = gate.report()
        write_json(folder / GATE_FILE, {"windows": verdicts})
        if said := in_words(verdicts):
            print(f"{_name(run)}: {said}", file=sys.stderr, flush=True)
    if run.seed == job.settings.seeds[0]:
        state = engine.gather_state()
        if ranks.rank() == 0:
            served = {
                name.removeprefix(RANKER_PREFIX): v
                for name, v in state.items()
                if _is_served(name, run)
            }
            export_dir, domain = folder.parent / EXPORT_DIR, run.student.domain
            encoder = Encoder.load(data.reader.windows_dir)
            chosen = job.settings.export
            export_ranker(
                served,
                schema,
                run.model,
                encoder,
                export_dir,
                domain=domain,
                precision=chosen.tables,
                calibration=calibration_of(
                    folder, Schema.load(data.reader.windows_dir), schema.tasks, chosen
                ),
                card=_card(run, data, history),
            )
            write_json(_size_file(run, folder, schema), model_size(served))
    if checkpoints is not None:
        _end(checkpoints, history)
    return history


def _card(run: Run, data: DataView, history: list[dict[str, Any]]) -> dict[str, Any]:
    """What the export says about its origin."""
    windows = [window.name for window in data.reader.windows]
    return {
        "student": run.student.name,
        "arm": run.arm,
        "seed": run.seed,
        "dataset": data.reader.schema.dataset,
        "windows": {"first": windows[0], "last": windows[-1], "count": len(windows)},
        "distillation": run.distillation.model_dump(),
        "last_window": history[-1] if history else {},
        "code": fingerprint(code_of(__name__)),
    }


def _gated(run: Run, data: DataView, output_dir: Path) -> tuple[DataView, GatedScores | None]:
    """``data`` without scores where the teacher is worse than the student."""
    settings = run.distillation
    if settings.gate_windows is None or not isinstance(data.scores, ScoreLog):
        return data, None
    gate = GatedScores(
        data.scores, data.reader, output_dir, settings.gate_windows, settings.gate_deviations
    )
    candidates = data.candidates
    if isinstance(candidates, ScoreLog):
        candidates = GatedCandidates(candidates, gate)
    return replace(data, scores=gate, candidates=candidates), gate


def _engine(run: Run, data: DataView, train: TrainSettings) -> tuple[Engine, LossFunction]:
    schema = data.reader.schema
    [rate] = run.table_learning_rates
    update = {} if rate is None else {"table_learning_rate": rate}
    train = train.model_copy(update={"global_batch_size": data.batch_size, **update})
    ranker = build_ranker(schema, run.model, None, run.seed, table_device="meta")
    if not run.is_distilled:
        engine = Engine(ranker, train, run.seed)
        return engine, partial(label_loss, weights=run.student.task_weights)
    settings, peer, adapter = run.distillation, None, None
    if settings.has_peer:
        assert settings.peer_model is not None
        peer = build_ranker(schema, settings.peer_model, None, run.seed, "meta", PEER_TABLE_PREFIX)
    if settings.way.adapts:
        adapter = StudentAdapter(settings, train, run.seed, ranks.world_size(), schema.tasks[1:])
    rate, further = schema.initial_base_rate, schema.further_base_rates
    distilled = DistilledRanker(ranker, settings, run.seed, rate, peer, further)
    loss = DistillationLoss(settings, adapter, run.student.task_weights)
    return Engine(distilled, train, run.seed, side=adapter), loss


def _is_served(name: str, run: Run) -> bool:
    return not run.is_distilled or name.startswith(RANKER_PREFIX)
