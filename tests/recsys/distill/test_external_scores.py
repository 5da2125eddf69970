"""Scores of something else than the teacher: what is joined, what is refused, what students see."""

import gzip
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from recsys.config import InputError, parse_settings
from recsys.data.schema import Schema
from recsys.distill.augment_settings import LIGHTGBM, AugmentSettings, ExternalSettings
from recsys.distill.external_scores import log_external_scores
from recsys.distill.score_log import LogFacts, ScoreLog, check_snapshots_of_log
from recsys.distill.scoring import SCORE_SCHEMA, score_windows
from recsys.distill.snapshots import LookAheadError, list_snapshots
from recsys.distill.students import train_students
from recsys.distill.teacher import train_teacher
from recsys.distill.training_job import TrainingJob
from tests.support.files import contents
from tests.support.toy_stream import HOUR, ROWS, STUDENTS, TEACHER, TRAIN, WINDOWS

STEP = HOUR // ROWS  # ms from one example to the next
EXAMPLES = len(WINDOWS) * ROWS


def settings_of(**changes: Any) -> AugmentSettings:
    own = {"teacher": changes.pop("teacher", "external")}
    kept = {key: changes.pop(key) for key in ("max_staleness_hours",) if key in changes}
    external = {
        "root": "given",
        "files": ["*.parquet"],
        "score": "mine",
        "scale": "logit",
        "learnt_until": "until",
    }
    return AugmentSettings.model_validate({**own, **kept, "external": {**external, **changes}})


def table(ids: list[int], scores: list[float], until: list[int] | int = 0) -> pl.DataFrame:
    frame = pl.DataFrame({"example_id": ids, "mine": scores}, schema_overrides={"mine": pl.Float64})
    marks = [until] * len(ids) if isinstance(until, int) else until
    return frame.with_columns(until=pl.Series(marks, dtype=pl.Int64))


def give(folder: Path, **frames: pl.DataFrame) -> None:
    (folder / "given").mkdir(exist_ok=True)
    for name, frame in frames.items():
        frame.write_parquet(folder / "given" / f"{name}.parquet")


def joined(windows_dir: Path, log_dir: Path) -> dict[int, tuple[float, int]]:
    """(score, staleness) of each example that has one, as students read them."""
    log, found = ScoreLog(log_dir), {}
    for window in WINDOWS:
        frame = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        rows = log.join(frame, window).filter(pl.col("score").is_not_null())
        for example, score, staleness in rows.select(
            "example_id", "score", "staleness_ms"
        ).iter_rows():
            found[example] = (score, staleness)
    return found


@dataclass(frozen=True)
class Given:
    """Rows (example id, score, learnt until) of each file, and the files' kinds."""

    files: list[list[tuple[int, float, int]]]
    kinds: list[str]


@st.composite
def files_of_scores(draw: st.DrawFn) -> Given:
    """Ids of the data and others, in any order; nearly always distinct, and never of the future."""
    ids = draw(st.lists(st.integers(-3, EXAMPLES + 3), min_size=1, max_size=30, unique=True))
    if draw(st.integers(0, 9)) == 0:
        ids.append(ids[0])
    rows = []
    ahead = draw(st.sampled_from([None, None, None, ids[0]]))
    for example in ids:
        score = draw(st.sampled_from([-2.5, 1.25, 3.0, math.nan, math.inf]))
        before = -1 if example == ahead else draw(st.sampled_from([0, 1, 5_000]))
        rows.append((example, score, example * STEP - before))
    cut = draw(st.integers(1, len(rows)))
    files = [rows[:cut], *([rows[cut:]] if cut < len(rows) else [])]
    return Given(files, [draw(st.sampled_from(["parquet", "csv", "csv.gz"])) for _ in files])


def write(folder: Path, given: Given) -> None:
    for number, rows, kind in zip(count(), given.files, given.kinds, strict=False):
        path = folder / f"file-{number}.{kind}"
        frame = table([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
        if kind == "parquet":
            frame.write_parquet(path)
        else:
            text = frame.write_csv().encode()
            path.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)


def joined_by_hand(given: Given) -> dict[int, tuple[float, int]] | str:
    """What students should read, or what the message should say."""
    rows = [row for file in given.files for row in file]
    if len({example for example, _, _ in rows}) < len(rows):
        return "has a score already"
    finite = [score for _, score, _ in rows if math.isfinite(score)]
    if finite and all(0 <= score <= 1 for score in finite):
        return "set probability"
    found = {}
    for example, score, until in rows:
        if 0 <= example < EXAMPLES and math.isfinite(score):
            if until > example * STEP:
                return "after it"
            found[example] = (score, example * STEP - until)
    return found if any(0 <= example < EXAMPLES for example, _, _ in rows) else "none of the"


@given(files_of_scores())
@settings(max_examples=60)
def test_join_is_that_of_a_walk_through_all_rows(windows_dir: Path, given: Given) -> None:
    expected = joined_by_hand(given)
    event(expected if isinstance(expected, str) else "joined")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "given").mkdir()
        write(folder / "given", given)
        chosen = settings_of(files=["*"])
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected) as raised:
                log_external_scores(windows_dir, chosen, folder / "log", project_dir=folder)
            assert "\n" not in str(raised.value)
            assert not (folder / "log").exists()
            return
        report = log_external_scores(windows_dir, chosen, folder / "log", project_dir=folder)
        assert joined(windows_dir, folder / "log") == expected
        rows = [row for file in given.files for row in file]
        outside = sorted(row[0] for row in rows if not 0 <= row[0] < EXAMPLES)
        assert (report.rows, report.scored) == (len(rows), len(expected))
        assert (report.unknown, report.named) == (len(outside), outside[:3])
        assert report.not_finite == sum(not math.isfinite(score) for _, score, _ in rows)


# Frames are made in the test: Polars' threads, once started, do not outlive the fork of a rank
REFUSED: dict[str, tuple[dict[str, Any], Callable[[], pl.DataFrame], str]] = {
    "look-ahead": (
        {},
        lambda: table([4, 5], [2.0, 2.0], [4 * STEP, 5 * STEP + 1]),
        r"a\.parquet: row 2: example 5 of time 60000 .* knew labels until 60001, after it",
    ),
    "parts of a millisecond": (
        {},
        lambda: table([4], [2.0]).with_columns(until=pl.lit(0.5)),
        r"a\.parquet: row 1: until 0\.5 is not a time in whole milliseconds",
    ),
    "no time": (
        {},
        lambda: table([4], [2.0]).with_columns(until=pl.lit(None, dtype=pl.Int64)),
        r"row 1: until None is not a time",
    ),
    "NaN for a time": (
        {},
        lambda: table([4], [2.0]).with_columns(until=pl.lit(math.nan)),
        r"row 1: until nan is not a time",
    ),
    "a time that is a date": (
        {},
        lambda: table([4], [2.0]).with_columns(until=pl.lit(0).cast(pl.Datetime("ms"))),
        r"column 'until' holds Datetime.*whole milliseconds",
    ),
    "long ago": (
        {},
        lambda: table([4], [2.0], -1_704_000_000_000),
        r"row 1: until -1704000000000 is more than ten years before.*not seconds",
    ),
    "probabilities as logits": (
        {},
        lambda: table([4, 5], [0.25, 1.0]),
        r"key 'scale': all 2 scores lie between 0 and 1.*set probability",
    ),
    "logits as probabilities": (
        {"scale": "probability"},
        lambda: table([4, 5], [0.25, 1.5]),
        r"a\.parquet: row 2: score 1\.5 is not a probability; .*key 'scale'",
    ),
    "text for a score": (
        {},
        lambda: table([4], [2.0]).with_columns(mine=pl.lit("high")),
        r"row 1: mine 'high' is not a number",
    ),
    "an id twice": ({}, lambda: table([4, 4], [2.0, 2.0]), r"row 2: example 4 has a score already"),
    "an id that is none": (
        {},
        lambda: table([4], [2.0]).with_columns(example_id=pl.lit("user-4")),
        r"row 1: example_id user-4 is not an example_id",
    ),
    "ids of other data": (
        {},
        lambda: table([-5], [2.0]),
        r"key 'key': none of the 1 ids, such as -5, is an example_id",
    ),
    "another column": (
        {"score": "min"},
        lambda: table([4], [2.0]),
        r"no column 'min'; did you mean 'mine'",
    ),
    "another task": (
        {"task": "like"},
        lambda: table([4], [2.0]),
        r"key 'task': no task 'like'; .* click",
    ),
    "no row": ({}, lambda: table([], []), r"a\.parquet and the others hold no row"),
    "another kind of file": (
        {"files": ["notes.txt"]},
        lambda: table([4], [2.0]),
        "neither Parquet nor CSV",
    ),
    "no file": ({"files": ["b.parquet"]}, lambda: table([4], [2.0]), r"b\.parquet: no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_one_line_and_leave_the_log_of_before(
    name: str, windows_dir: Path, tmp_path: Path
) -> None:
    give(tmp_path, a=table([1], [3.0]))
    log_external_scores(windows_dir, settings_of(), tmp_path / "log", project_dir=tmp_path)
    before = contents(tmp_path / "log")
    changes, frame, message = REFUSED[name]
    give(tmp_path, a=frame())
    (tmp_path / "given/notes.txt").write_text("notes")
    with pytest.raises(InputError, match=message) as raised:
        log_external_scores(
            windows_dir, settings_of(**changes), tmp_path / "log", project_dir=tmp_path
        )
    assert "\n" not in str(raised.value)
    assert contents(tmp_path / "log") == before
    assert isinstance(raised.value, LookAheadError) == (name == "look-ahead")


def test_probabilities_become_logits_and_certain_ones_stay_finite(
    windows_dir: Path, tmp_path: Path
) -> None:
    give(tmp_path, a=table([1, 2, 3], [0.75, 0.0, 1.0]))
    chosen = settings_of(scale="probability")
    log_external_scores(windows_dir, chosen, tmp_path / "log", project_dir=tmp_path)
    scores = [score for score, _ in joined(windows_dir, tmp_path / "log").values()]
    assert scores == pytest.approx([math.log(3), -16.118, 16.118], abs=1e-3)


def test_a_score_that_is_too_old_is_left_out(windows_dir: Path, tmp_path: Path) -> None:
    give(tmp_path, a=table([100, 400], [2.0, 2.0]))
    chosen = settings_of(max_staleness_hours=1.0)
    log_external_scores(windows_dir, chosen, tmp_path / "log", project_dir=tmp_path)
    assert joined(windows_dir, tmp_path / "log") == {100: (2.0, 100 * STEP)}


def predictions_of_a_baseline(windows_dir: Path, folder: Path) -> dict[int, float]:
    """Files as those of the baselines, one per window; the logits by example."""
    folder.mkdir(parents=True)
    logits: dict[int, float] = {}
    for window in WINDOWS:
        frame = pl.read_parquet(windows_dir / window.name / "part-00000.parquet").select(
            "example_id",
            "label",
            "event_time",
            logit=(pl.col("example_id") % 7 - 3).cast(pl.Float32),
        )
        frame.write_parquet(folder / f"{window.name}.parquet")
        logits |= dict(frame.select("example_id", "logit").iter_rows())
    return logits


@pytest.fixture(scope="module")
def lightgbm_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score log of the baselines' predictions, by the settings as they stand."""
    folder = tmp_path_factory.mktemp("project")
    predictions_of_a_baseline(windows_dir, folder / "models/baselines/trees/all/predictions")
    chosen = AugmentSettings(teacher="external")
    log_external_scores(windows_dir, chosen, folder / "log", project_dir=folder)
    return folder / "log"


def test_a_baselines_predictions_are_scores_that_know_what_was_before_their_window(
    windows_dir: Path, lightgbm_dir: Path
) -> None:
    found = joined(windows_dir, lightgbm_dir)
    assert found == {
        example: (example % 7 - 3, example % ROWS * STEP) for example in range(ROWS, EXAMPLES)
    }
    facts = json.loads((lightgbm_dir / "log.json").read_text())["external"]
    assert facts["read"] == LIGHTGBM.model_dump()
    assert len(facts["files"]) == len(WINDOWS)
    labels = [example % ROWS * 17 % 20 < 5 for example in range(ROWS, 2 * ROWS)]
    probabilities = [1 / (1 + math.exp(3 - example % 7)) for example in range(ROWS, 2 * ROWS)]
    assert facts["calibration"]["w0"] is None
    assert facts["calibration"]["w1"] == pytest.approx(sum(probabilities) / sum(labels))


def test_a_changed_file_is_another_log(windows_dir: Path, tmp_path: Path) -> None:
    found = []
    for score in (2.0, 2.0, 3.0):
        give(tmp_path, a=table([1], [score]))
        log_external_scores(windows_dir, settings_of(), tmp_path / "log", project_dir=tmp_path)
        found.append(contents(tmp_path / "log"))
    assert found[0] == found[1]
    assert found[0]["log.json"] != found[2]["log.json"]


def trained(windows_dir: Path, scores_dir: Path, folder: Path) -> dict[str, bytes]:
    """Predictions and served weights of the students."""
    folder.mkdir()
    train_students(TrainingJob(windows_dir, STUDENTS, TRAIN, folder, scores_dir=scores_dir))
    return {
        name: content
        for name, content in contents(folder).items()
        if name.endswith((".parquet", ".safetensors"))
    }


def test_students_learn_from_them_as_from_a_log_with_the_same_numbers(
    windows_dir: Path, lightgbm_dir: Path, tmp_path: Path
) -> None:
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    for window in WINDOWS:
        frame = pl.read_parquet(windows_dir / window.name / "part-00000.parquet")
        scores = frame.select(
            "example_id",
            logit=(pl.col("example_id") % 7 - 3),
            snapshot=pl.lit("trees"),
            high_water_mark=pl.lit(window.start_ms),
            staleness_ms=pl.col("event_time") - window.start_ms,
        ).cast(SCORE_SCHEMA)  # type: ignore[arg-type]
        scores = scores.head(0 if window == WINDOWS[0] else ROWS)
        scores.write_parquet(by_hand / f"{window.name}.parquet")
    found = trained(windows_dir, lightgbm_dir, tmp_path / "external")
    assert found == trained(windows_dir, by_hand, tmp_path / "same")
    plain = {name.replace("plain", "distilled"): found[name] for name in found if "/plain/" in name}
    learnt = [name for name in plain if "w0" not in name and "w1" not in name]
    assert learnt
    assert all(found[name] != plain[name] for name in learnt)


@pytest.fixture(scope="module")
def own_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/ and its scores in log/."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("teacher", "log"):
        (folder / name).mkdir()
    train_teacher(TrainingJob(windows_dir, TEACHER, TRAIN, folder / "teacher"))
    score_windows(
        windows_dir, None, folder / "teacher", TEACHER, AugmentSettings(), TRAIN, folder / "log"
    )
    return folder


def test_the_mean_is_of_both_logits_where_both_are_there(
    windows_dir: Path, own_dir: Path, tmp_path: Path
) -> None:
    """In time it is as old as the later of the two."""
    own = joined(windows_dir, own_dir / "log")
    early, both, late = 5, ROWS + 50, ROWS + 60
    give(tmp_path, a=table([early, both, late], [2.0, 4.0, 6.0], [0, 0, (ROWS + 60) * STEP]))
    log_external_scores(
        windows_dir,
        settings_of(teacher="mean"),
        tmp_path / "log",
        ScoreLog(own_dir / "log"),
        tmp_path,
    )
    found = joined(windows_dir, tmp_path / "log")
    assert found[early] == (2.0, early * STEP)
    assert found[both] == (pytest.approx((own[both][0] + 4.0) / 2), own[both][1])
    assert found[late] == (pytest.approx((own[late][0] + 6.0) / 2), 0)
    others = own.keys() - {both, late}
    assert {example: found[example] for example in others} == {e: own[e] for e in others}


def test_a_mean_with_a_withdrawn_snapshot_in_it_is_refused(
    windows_dir: Path, own_dir: Path, tmp_path: Path
) -> None:
    give(tmp_path, a=table([5], [2.0]))
    own = ScoreLog(own_dir / "log")
    log_external_scores(windows_dir, settings_of(teacher="mean"), tmp_path / "log", own, tmp_path)
    log = ScoreLog(tmp_path / "log")
    snapshots = list_snapshots(own_dir / "teacher/snapshots")
    check_snapshots_of_log(log, snapshots, set())
    with pytest.raises(InputError, match=r"scored by snapshot w0, which is withdrawn"):
        check_snapshots_of_log(log, snapshots, {snapshots[0].weights_hash})


def test_external_scores_need_no_teacher(lightgbm_dir: Path) -> None:
    check_snapshots_of_log(ScoreLog(lightgbm_dir), [], {"any"})
    assert isinstance(ScoreLog(lightgbm_dir).facts, LogFacts)


def test_scale_is_required_and_files_lie_under_root() -> None:
    given = {"root": "data/mine", "files": ["a.csv"], "score": "p", "learnt_until": "until"}
    with pytest.raises(InputError, match=r"'external\.scale'"):
        parse_settings(json.dumps({"external": given}), "augment.yaml", AugmentSettings)
    for outside in ("/data/a.csv", "../a.csv"):
        with pytest.raises(ValueError, match="is not under root"):
            ExternalSettings.model_validate({**given, "scale": "logit", "files": [outside]})


def test_scores_of_another_task_teach_it_alone(windows_dir: Path, tmp_path: Path) -> None:
    """Their calibration is by that task's labels where they are known."""
    windows = tmp_path / "windows"
    shutil.copytree(windows_dir, windows)
    replace(Schema.load(windows), tasks=["click", "like"], further_base_rates=[0.5]).save(windows)
    for window in WINDOWS:
        part = windows / window.name / "part-00000.parquet"
        liked = pl.when(pl.col("example_id") != 2).then(pl.col("example_id") == 1)
        pl.read_parquet(part).with_columns(label_like=liked.cast(pl.Float32)).write_parquet(part)
    give(tmp_path, a=table([1, 2], [-2.0, 9.0]))
    chosen = settings_of(task="like")
    report = log_external_scores(windows, chosen, tmp_path / "log", project_dir=tmp_path)
    frame = pl.read_parquet(windows / "w0/part-00000.parquet").head(3)
    found = ScoreLog(tmp_path / "log", ["logit", "logit_like"]).join(frame, WINDOWS[0])
    assert found["score"].to_list() == [None, None, None]
    assert found["score_like"].to_list() == [None, -2.0, 9.0]
    assert report.calibration["w0"] == pytest.approx(1 / (1 + math.exp(2.0)))
