"""Every arm is trained, evaluated and exported alike; what it adds to a student is not served."""

import copy
import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from safetensors.torch import load_file

from recsys.config import InputError, load_settings
from recsys.data.loader import WindowReader
from recsys.data.schema import Schema
from recsys.distill.distillation_settings import AdapterSettings, DistillationSettings, overlaid
from recsys.distill.score_log import ScoreLog
from recsys.distill.student_checks import check_students
from recsys.distill.student_settings import StudentSettings, StudentsSettings
from recsys.distill.students import train_students
from recsys.distill.training_job import TrainingJob
from recsys.evaluation.report import evaluate
from recsys.evaluation.settings import EvaluateSettings
from recsys.serving.predictor import Predictor
from tests.support.files import contents
from tests.support.killing import kill
from tests.support.student_runs import run, run_and_die
from tests.support.toy_stream import MODEL, ROWS, TRAIN, WINDOWS

PARAMS = Path(__file__).parents[3] / "params"
PEER = MODEL.model_copy(update={"embedding_dimension": 8, "over_layers": [16, 8]})
ARMS = {
    "plain": DistillationSettings(mode="none"),
    "shared": DistillationSettings(mode="shared"),
    "affine": DistillationSettings(mode="affine"),
    "distilled": DistillationSettings(),
    "tower": DistillationSettings(hard_label_weight=1.0),
    "extra": DistillationSettings(mode="auxiliary_adapter"),
    "replace": DistillationSettings(
        mode="auxiliary_adapter", adapter=AdapterSettings(kind="replace", update="after")
    ),
    "peer": DistillationSettings(mode="co_distillation", peer_model=PEER),
    "weightless": DistillationSettings(loss_weight=0.0, adapter=AdapterSettings(loss_weight=0.0)),
}
SETTINGS = StudentsSettings(
    model=MODEL,
    table_learning_rate=None,
    seeds=[1],
    students=[StudentSettings(name="one", domain="b")],
    distillation=DistillationSettings(
        mode="auxiliary", head_layers=[8], gradient_scale=5.0, gate_windows=None
    ),
    arms=ARMS,
)
SIX_LINES = """\
  - name: shop
    domain: b
    model: {over_layers: [16]}
    budget: {parameters: 1000, training_flops: 5000}
    distillation: {mode: auxiliary_adapter, gradient_scale: 2.0,
                   staleness_half_life_hours: 24, adapter: {kind: replace}}
"""


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "plain"])
def test_an_arm_is_served_by_the_plain_student(
    arm: str, students_dir: Path, windows_dir: Path
) -> None:
    """The same description, weights of the same names and shapes, as large a network."""
    folders = [students_dir / "one" / name / "export" for name in ("plain", arm)]
    assert len({(folder / "model.json").read_bytes() for folder in folders}) == 1
    weights = [load_file(folder / "weights.safetensors") for folder in folders]
    shapes = [{name: value.shape for name, value in one.items()} for one in weights]
    assert shapes[0] == shapes[1]
    assert len({(folder / "network.onnx").stat().st_size for folder in folders}) == 1
    frame = pl.read_parquet(windows_dir / "w3" / "part-00000.parquet").filter(pl.col("domain") == 1)
    differs = (
        Predictor.load(folders[0]).predict(frame) != Predictor.load(folders[1]).predict(frame)
    ).any()
    assert differs == (arm != "weightless")


def test_a_distillation_of_no_weight_exports_the_plain_students_bytes(students_dir: Path) -> None:
    plain, weightless = (
        contents(students_dir / "one" / arm / "export") for arm in ("plain", "weightless")
    )
    told = {name for name in plain if plain[name] != weightless[name]}
    assert told == {"card.json", "sums.json"}  # which arm it is


def test_every_arm_starts_alike_and_its_diagnostics_are_in_its_metrics(students_dir: Path) -> None:
    first = {
        arm: (students_dir / "one" / arm / "seed-1/predictions/w0.parquet").read_bytes()
        for arm in ARMS
    }
    assert len(set(first.values())) == 1
    for arm in ARMS:
        windows = json.loads((students_dir / "one" / arm / "seed-1/metrics.json").read_text())[
            "windows"
        ]
        keys = set(windows[-1])
        assert {"ne", "auc"} <= keys
        assert ("gradient_ratio" in keys) == (arm != "plain")
        assert ("missing_scores" in keys) == (arm not in ("plain", "peer"))
    windows = json.loads((students_dir / "one/distilled/seed-1/metrics.json").read_text())[
        "windows"
    ]
    assert windows[0]["missing_scores"] == 1.0  # of the first window there are no scores
    assert 0 < windows[1]["missing_scores"] < 1
    assert windows[3]["missing_scores"] == 0.0
    assert windows[0]["gradient_ratio"] == 0.0
    assert windows[3]["gradient_ratio"] > 0


def test_evaluation_compares_every_arm_with_plain(
    students_dir: Path,
    windows_dir: Path,
    tmp_path: Path,
) -> None:
    teacher = tmp_path / "teacher" / "predictions"
    teacher.mkdir(parents=True)
    for window in WINDOWS:
        path = students_dir / "one/plain/seed-1/predictions" / f"{window.name}.parquet"
        (teacher / path.name).write_bytes(path.read_bytes())
    settings = EvaluateSettings(first_evaluation_window=1, bootstrap_samples=10)
    report = evaluate(
        windows_dir, tmp_path, tmp_path / "teacher", students_dir, settings, tmp_path / "report"
    )
    compared = {row.arm for row in report.metrics}
    assert compared == set(ARMS) - {"plain"}
    weightless = [row.comparison for row in report.metrics if row.arm == "weightless"]
    assert all(one.difference == 0.0 for one in weightless if one.metric != "gauc")
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    ne = values["students"]["one"]["ne"]
    assert all(isinstance(ne[arm], float) for arm in ARMS)
    assert ne["shared"] - ne["plain"] == pytest.approx(
        values["comparisons"]["one"]["shared"]["ne"]["difference"]
    )
    table = (tmp_path / "report" / "table.md").read_text()
    assert "| one: extra | NE |" in table


KILLED = SETTINGS.model_copy(
    update={
        "arms": {name: ARMS[name] for name in ("plain", "extra", "replace")},
        "checkpoint_every_batches": 2,
    }
)


def test_killed_students_with_an_adapter_end_with_the_same_bytes(
    windows_dir: Path,
    scores_dir: Path,
    students_dir: Path,
    tmp_path: Path,
) -> None:
    for steps in (14, 3, 8):
        kill(run_and_die, windows_dir, scores_dir, KILLED, steps, tmp_path)
    run(windows_dir, scores_dir, KILLED, tmp_path)
    written = contents(tmp_path / "output")
    undisturbed = contents(students_dir)
    assert len(written) == 37
    assert all(undisturbed[name] == value for name, value in written.items())


def test_a_student_is_added_in_six_lines(
    tmp_path: Path, windows_dir: Path, scores_dir: Path
) -> None:
    text = (PARAMS / "students.yaml").read_text().replace("students:\n", "students:\n" + SIX_LINES)
    values = yaml.safe_load(text)
    # The other domains are not in these data
    values["students"], values["seeds"] = (values["students"][:1], [1])
    (tmp_path / "students.yaml").write_text(yaml.safe_dump(values))
    settings = load_settings(tmp_path / "students.yaml", StudentsSettings)
    student = settings.students[0]
    assert settings.model_of(student).over_layers == [16]
    assert settings.model_of(student).embedding_dimension == settings.model.embedding_dimension
    spec = settings.distillation_of(student, "distilled")
    assert (spec.mode, spec.gradient_scale, spec.adapter.kind) == (
        "auxiliary_adapter",
        2.0,
        "replace",
    )
    assert spec.head_layers == settings.distillation.head_layers
    assert settings.distillation_of(student, "plain").mode == "none"
    with pytest.raises(
        InputError,
        match=(
            r"students.yaml: key 'students.0.budget.parameters': "
            r"the model of 'shop' has [\d,]+, more"
        ),
    ):
        check_students(Schema.load(windows_dir), settings)
    cheap = copy.deepcopy(values)
    cheap["students"][0]["budget"] = {"parameters": 10_000, "training_flops": 20_000}
    (tmp_path / "students.yaml").write_text(yaml.safe_dump(cheap))
    settings = load_settings(tmp_path / "students.yaml", StudentsSettings)
    train_students(TrainingJob(windows_dir, settings, TRAIN, tmp_path, scores_dir=scores_dir))
    assert (tmp_path / "shop" / "size.json").is_file()


def test_arms_must_hold_plain_and_a_peer_its_model() -> None:
    values = SETTINGS.model_dump(exclude_unset=True)
    with pytest.raises(ValueError, match="arms must hold 'plain' with mode none"):
        StudentsSettings.model_validate(values | {"arms": {"distilled": {}}})
    with pytest.raises(ValueError, match="co_distillation needs peer_model"):
        StudentsSettings.model_validate(
            values | {"arms": values["arms"] | {"peer": {"mode": "co_distillation"}}}
        )


def test_overlaid_takes_set_keys_only() -> None:
    base = DistillationSettings(
        gradient_scale=3.0, adapter=AdapterSettings(kind="replace", learning_rate=0.5)
    )
    change = DistillationSettings(loss_weight=2.0, adapter=AdapterSettings(update="after"))
    found = overlaid(base, None, change)
    assert (found.gradient_scale, found.loss_weight) == (3.0, 2.0)
    assert found.adapter == AdapterSettings(kind="replace", learning_rate=0.5, update="after")


def test_students_that_share_examples_keep_their_own_labels(
    windows_dir: Path,
    scores_dir: Path,
    tmp_path: Path,
) -> None:
    """One score log, two data sets with the same examples and other labels."""
    Schema.load(windows_dir).save(tmp_path)
    for window in WINDOWS:
        (tmp_path / window.name).mkdir()
        frame = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        frame.with_columns(label=1.0 - pl.col("label")).write_parquet(
            tmp_path / window.name / "part-00000.parquet"
        )
    mine, other = (
        list(WindowReader(folder).label_batches(WINDOWS[2], ROWS, 0, 1, 1, ScoreLog(scores_dir)))
        for folder in (windows_dir, tmp_path)
    )
    for first, second in zip(mine, other, strict=True):
        assert first.example_id.equal(second.example_id)
        assert first.score.equal(second.score)
        assert first.score.isfinite().all()
        assert first.label.equal(1.0 - second.label)
