"""Streams, teachers, scores and students of the distillation experiments, each made once and kept.

Everything lies in one folder a stream, size and seed, so that a killed run goes on at the student
it was at, and more seeds, arms or scores add to what is there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from recsys.config import load_settings
from recsys.data.ingest import ingest
from recsys.data.schema import Schema, Window
from recsys.data.settings import DatasetSettings, DataSettings
from recsys.distill.augment_settings import AugmentSettings
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings
from recsys.distill.score_log import SCORE_SCHEMA
from recsys.distill.scoring import ScoringJob, WindowPlan, finish_scoring, plans_of, score_part
from recsys.distill.student_settings import PLAIN, StudentSettings, StudentsSettings
from recsys.distill.students import runs_of, train_runs
from recsys.distill.teacher import train_teacher
from recsys.distill.teacher_settings import TeacherLadderSettings, TeacherSettings
from recsys.distill.training_job import TrainingJob
from recsys.training.launch import launch
from recsys.training.settings import TrainSettings

PARAMS, WORK = Path("params"), Path(".work/distillation_modes")
DONE = "done.json"
SPARSE = "synthetic_sparse"  # the generated stream of these experiments
STREAM_SEED = 1000  # added to a seed
STUDENTS = "students"
SMALLEST = 1e-6  # probability of a score made by hand
FIRST_WINDOW = 4  # of those that judge, if a stream says no other
FIRST_TRAINED_WINDOW = 1  # the window before it is predicted by an untrained model


@dataclass(frozen=True)
class StreamCase:
    """A log: changes to params/datasets/<dataset>.yaml, how often the teacher publishes, which
    domains have students.

    ``base_rate_factor`` multiplies each domain's share of clicks. The windows from ``first_window``
    on judge.
    """

    changes: dict[str, float] = field(default_factory=dict)
    snapshot_every_windows: int = 1
    base_rate_factor: float = 1.0
    dataset: str = SPARSE
    domains: tuple[str, ...] = ()
    max_windows: int | None = None
    window_hours: float = 24.0
    first_window: int = FIRST_WINDOW

    def before(self, first_window: int) -> "StreamCase":
        """Its windows before those that judge, to choose strengths on; judged from ``first_window``
        on."""
        return replace(self, max_windows=self.first_window, first_window=first_window)


SHIFTED = {"drift": 0.8, "domain_strength": 0.7}
EBNERD = StreamCase(dataset="ebnerd_demo", domains=("desktop", "mobile"))
GLOBO = StreamCase(
    dataset="globo_clicks",
    domains=("desktop", "mobile"),
    max_windows=72,
    window_hours=1.0,
    first_window=24,
)
STREAMS = {
    "default": StreamCase(),
    "shifted": StreamCase(SHIFTED),
    "stale": StreamCase(SHIFTED, snapshot_every_windows=3),
    "drift-0": StreamCase({**SHIFTED, "drift": 0.0}),
    "drift-1": StreamCase({**SHIFTED, "drift": 1.0}),
    "domains-0": StreamCase({**SHIFTED, "domain_strength": 0.0}),
    "domains-1.4": StreamCase({**SHIFTED, "domain_strength": 1.4}),
    "more-clicks": StreamCase(SHIFTED, base_rate_factor=5.0),
    "ebnerd": EBNERD,
    "ebnerd-before": EBNERD.before(FIRST_TRAINED_WINDOW),
    "globo": GLOBO,
    "globo-before": GLOBO.before(GLOBO.first_window // 2),
}
PEER = load_settings(PARAMS / "teacher.yaml", TeacherSettings).model.model_copy(
    update={"towers": False}
)
# When the modes were compared; ten times the default, which that comparison led to
ADAPTER_RATE = 0.01


def _adapter(kind: str, update: str = "before") -> AdapterSettings:
    return AdapterSettings.model_validate(
        {"kind": kind, "update": update, "learning_rate": ADAPTER_RATE}
    )


UNSCALED = "AH, beta = alpha = w = 1"
# The strengths are those that ``bench.distillation.modes tune`` found; see
# docs/benchmarks/distillation_modes.md.
ARMS: dict[str, DistillationSettings] = {
    PLAIN: DistillationSettings(mode="none"),
    "shared": DistillationSettings(mode="shared", loss_weight=3.0),
    "affine": DistillationSettings(mode="affine", loss_weight=3.0),
    UNSCALED: DistillationSettings(mode="auxiliary", gradient_scale=1.0),
    "AH": DistillationSettings(mode="auxiliary", gradient_scale=10.0),
    "AH + SA, extra head": DistillationSettings(
        mode="auxiliary_adapter", gradient_scale=10.0, adapter=_adapter("extra_head")
    ),
    "AH + SA, replace": DistillationSettings(
        mode="auxiliary_adapter", gradient_scale=10.0, adapter=_adapter("replace")
    ),
    "co-distillation": DistillationSettings(
        mode="co_distillation", gradient_scale=10.0, peer_model=PEER
    ),
}


# By dataset, as ``tune`` found them on the windows before those that judge.
STRENGTHS: dict[str, dict[str, dict[str, float]]] = {
    "ebnerd_demo": {
        "shared": {"loss_weight": 0.3},
        "affine": {"loss_weight": 0.3},
        "AH": {"gradient_scale": 0.3},
        "AH + SA, extra head": {"gradient_scale": 0.3},
        "AH + SA, replace": {"gradient_scale": 0.3},
        "co-distillation": {"gradient_scale": 0.3},
    },
    "globo_clicks": {
        "shared": {"loss_weight": 0.3},
        "affine": {"loss_weight": 0.3},
        "AH": {"gradient_scale": 1.0},
        "AH + SA, extra head": {"gradient_scale": 1.0},
        "AH + SA, replace": {"gradient_scale": 3.0},
        "co-distillation": {"gradient_scale": 1.0},
    },
}


def arms_of(case: StreamCase) -> dict[str, DistillationSettings]:
    """The arms at the strengths that were tuned for the log."""
    changes = STRENGTHS.get(case.dataset, {})
    return {name: arm.model_copy(update=changes.get(name, {})) for name, arm in ARMS.items()}


@dataclass(frozen=True)
class Scores:
    """Whose scores the students read.

    ``teacher``: a model of params/teacher_ladder.yaml, else that of params/teacher.yaml. ``lag``: a
    window is scored by the snapshot so many windows older than the newest one allowed, or the first
    one. ``ratio``: the scored probability is multiplied by it. ``truth``: the stream's true
    probability takes the teacher's place.
    """

    teacher: str = ""
    lag: int = 0
    ratio: float = 1.0
    truth: bool = False

    @property
    def name(self) -> str:
        """Added to the names of folders; empty for a teacher as it is."""
        parts = [f"-{self.teacher}"] if self.teacher else []
        parts += [f"-lag{self.lag}"] if self.lag else []
        parts += ["-truth"] if self.truth else []
        return "".join(parts + ([f"-{self.ratio:g}"] if self.ratio != 1.0 else []))


TEACHER = Scores()


@dataclass(frozen=True)
class Lab:
    """One stream with one seed."""

    work: Path
    stream: str
    seed: int
    rows: int
    ranks: int
    logs: Path

    @property
    def case(self) -> StreamCase:
        """What the stream is."""
        return STREAMS[self.stream]

    @property
    def folder(self) -> Path:
        """Where all of it lies; a real log has its own number of rows."""
        rows = f"-{self.rows}" if self.case.dataset == SPARSE else ""
        return self.work / f"{self.stream}{rows}-{self.seed}"

    @property
    def windows(self) -> Path:
        """The ingested stream; a real log's is the same for all seeds."""
        return (self.folder if self.case.dataset == SPARSE else self.work / self.stream) / "windows"

    @property
    def domains(self) -> list[str]:
        """Those that have a student."""
        return list(self.case.domains) or Schema.load(self.windows).domains

    def train(self) -> TrainSettings:
        """params/train.yaml on ``ranks`` ranks."""
        return load_settings(PARAMS / "train.yaml", TrainSettings).model_copy(
            update={"world_size": self.ranks}
        )

    def make_windows(self) -> None:
        """The stream, if it is not there."""
        self._once(self.windows, self._ingest)

    def make_teacher(self, scores: Scores = TEACHER) -> None:
        """The teacher of ``scores``, if it is not there."""
        self._once(self.teacher_folder(scores), lambda folder: self._teach(folder, scores))

    def teacher_folder(self, scores: Scores) -> Path:
        """Where the teacher of ``scores`` lies."""
        return self.folder / f"teacher{replace(scores, lag=0, ratio=1.0).name}"

    def prepare(self, scores: Scores = TEACHER) -> None:
        """Windows, the teacher and its scores; what is there already is left."""
        self.make_windows()
        name = self.folder / f"scores{scores.name}"
        if scores.truth:
            self._once(name, lambda folder: self._write_truth(folder, scores.ratio))
        elif scores.ratio != 1.0:
            self.prepare(replace(scores, ratio=1.0))
            self._once(name, lambda folder: self._write_biased(folder, scores))
        else:
            self.make_teacher(scores)
            self._once(name, lambda folder: self._score(folder, scores))

    def students(self, arms: dict[str, DistillationSettings]) -> StudentsSettings:
        """One student a domain, in ``arms``."""
        settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
        return StudentsSettings(
            model=settings.model,
            seeds=[self.seed],
            students=[StudentSettings(name=domain, domain=domain) for domain in self.domains],
            distillation=DistillationSettings(head_layers=settings.distillation.head_layers),
            arms=arms,
            diagnostics=False,
        )

    def train_students(
        self, arms: dict[str, DistillationSettings], scores: Scores = TEACHER
    ) -> None:
        """Train what is not there yet, one run at a time; what reads no scores is trained once for
        all of them."""
        settings, train = self.students({PLAIN: ARMS[PLAIN], **arms}), self.train()
        for run in runs_of(settings):
            output = self.folder / self.output(run.distillation, scores)
            folder = run.folder(output)
            described = json.dumps(
                {"distillation": run.distillation.model_dump(), "model": run.model.model_dump()}
            )
            if (folder / DONE).is_file() and (folder / DONE).read_text() == described:
                continue
            job = TrainingJob(
                self.windows,
                settings,
                train,
                output,
                scores_dir=self.folder / f"scores{scores.name}",
            )
            launch(train_runs, ([run], job), train)
            (folder / DONE).write_text(described)

    def output(self, distillation: DistillationSettings, scores: Scores) -> str:
        """Name of the folder of students that learn so."""
        return STUDENTS + (scores.name if distillation.reads_scores else "")

    def score_log(self, scores: Scores, window: str) -> pl.DataFrame:
        """example_id and logit of a window's scores; no row where nothing was scored."""
        folder = self.folder / f"scores{scores.name}"
        by_hand = folder / f"{window}.parquet"
        paths = (
            [by_hand] if by_hand.is_file() else sorted((folder / window).glob("segment-*.parquet"))
        )
        none = pl.DataFrame(schema={"example_id": pl.Int64, "logit": pl.Float32})
        return pl.concat([none, *(pl.read_parquet(path, columns=none.columns) for path in paths)])

    def _once(self, folder: Path, make: Callable[[Path], None]) -> None:
        if (folder / DONE).is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        (folder / DONE).write_text("{}")

    def _ingest(self, folder: Path) -> None:
        case, settings = self.case, load_settings(PARAMS / "data.yaml", DataSettings)
        changes = {
            "dataset": case.dataset,
            "max_windows": case.max_windows,
            "window_hours": case.window_hours,
        }
        data = settings.model_copy(
            update=changes if case.dataset == SPARSE else {**changes, "root": self.logs}
        )
        dataset = load_settings(PARAMS / f"datasets/{case.dataset}.yaml", DatasetSettings)
        if dataset.synthetic is not None:
            domains = [
                domain.model_copy(update={"base_rate": case.base_rate_factor * domain.base_rate})
                for domain in dataset.synthetic.domains
            ]
            drawn = {
                **case.changes,
                "seed": STREAM_SEED + self.seed,
                "rows": self.rows,
                "domains": domains,
            }
            dataset = dataset.model_copy(
                update={"synthetic": dataset.synthetic.model_copy(update=drawn)}
            )
        ingest(data, dataset, folder, folder.parent / "oracle")

    def teacher(self, name: str) -> TeacherSettings:
        """params/teacher.yaml, with the ladder's model ``name`` if given; no towers, which would
        need a partition."""
        settings = load_settings(PARAMS / "teacher.yaml", TeacherSettings)
        ladder = load_settings(PARAMS / "teacher_ladder.yaml", TeacherLadderSettings).models
        model = (ladder[name] if name else settings.model).model_copy(update={"towers": False})
        every = self.case.snapshot_every_windows
        return settings.model_copy(
            update={"model": model, "seed": self.seed, "snapshot_every_windows": every}
        )

    def _teach(self, folder: Path, scores: Scores) -> None:
        train_teacher(TrainingJob(self.windows, self.teacher(scores.teacher), self.train(), folder))

    def _score(self, folder: Path, scores: Scores) -> None:
        augment = load_settings(PARAMS / "augment.yaml", AugmentSettings)
        teacher_dir = self.teacher_folder(scores)
        job = ScoringJob(
            self.windows,
            None,
            teacher_dir,
            self.teacher(scores.teacher),
            augment,
            self.train(),
            folder,
        )
        score_part(job, delayed(plans_of(job, Schema.load(self.windows)), scores.lag))
        finish_scoring(job)

    def _write_biased(self, folder: Path, scores: Scores) -> None:
        for window in Schema.load(self.windows).windows:
            log = self.score_log(replace(scores, ratio=1.0), window.name)
            probability = 1.0 / (1.0 + (-pl.col("logit").cast(pl.Float64)).exp())
            self._write_by_hand(
                folder, window, log.select("example_id", probability=probability), scores.ratio
            )

    def _write_truth(self, folder: Path, ratio: float) -> None:
        for window in Schema.load(self.windows).windows:
            truth = pl.read_parquet(self.folder / "oracle" / f"{window.name}.parquet")
            self._write_by_hand(folder, window, truth.select("example_id", "probability"), ratio)

    def _write_by_hand(
        self, folder: Path, window: Window, probabilities: pl.DataFrame, ratio: float
    ) -> None:
        """A window of a score log, of ``ratio`` times ``probabilities``, as if scored at the
        window's start."""
        events = pl.read_parquet(
            self.windows / window.name / "*.parquet", columns=["example_id", "event_time"]
        )
        probability = (ratio * pl.col("probability")).clip(SMALLEST, 1 - SMALLEST)
        records = probabilities.join(events, on="example_id").select(
            "example_id",
            logit=(probability / (1 - probability)).log(),
            snapshot=pl.lit("by hand"),
            high_water_mark=pl.lit(window.start_ms),
            staleness_ms=pl.col("event_time") - window.start_ms,
        )
        records.cast(SCORE_SCHEMA).write_parquet(folder / f"{window.name}.parquet")  # type: ignore[arg-type]


def delayed(plans: list[WindowPlan], lag: int) -> list[WindowPlan]:
    """Each window with the snapshot of the window ``lag`` before it, or the first one there is."""
    snapshots = [plan.snapshot for plan in plans]
    first = next((index for index, snapshot in enumerate(snapshots) if snapshot is not None), 0)
    return [
        plan
        if plan.snapshot is None
        else replace(plan, snapshot=snapshots[max(index - lag, first)])
        for index, plan in enumerate(plans)
    ]
