"""Tuning: what it reads, what it tries, how it resumes after a kill, what it takes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.distill.student_settings import BudgetSettings, StudentSettings, StudentsSettings
from recsys.distill.tuning import (
    Bench,
    Early,
    Outcome,
    Search,
    TrialResult,
    confirm,
    early_windows,
    paired_difference,
    tunable,
)
from recsys.distill.tuning_report import GOOD_ENOUGH, report
from recsys.distill.tuning_settings import Space, TuneSettings
from recsys.evaluation.settings import EvaluateSettings
from recsys.training.settings import TrainSettings
from tests.support.killing import die_after, kill
from tests.support.toy_stream import STUDENTS, TRAIN, WINDOWS

EVALUATE = EvaluateSettings(first_evaluation_window=3)
RATE, BATCH = "train.table_learning_rate", "train.global_batch_size"
DIMENSION, OVER = "students.model.embedding_dimension", "students.model.over_layers"
RATES = {RATE: {"low": 0.01, "high": 1.0, "log": True}}
TWO_KEYS = RATES | {OVER: {"choices": [[8], [16, 8]]}}
TOO_SLOW = TRAIN.model_copy(update={"table_learning_rate": 1e-6})


def settings_of(space: dict[str, Any], trials: int = 4, **changes: Any) -> TuneSettings:
    values = {"spaces": {"own": space}, "trials": trials, "workers": 1, "seeds": 2, **changes}
    return TuneSettings.model_validate(values)


def early_of(windows_dir: Path, folder: Path, scores_dir: Path | None = None) -> Early:
    return early_windows(windows_dir, scores_dir, EVALUATE, folder / "early")


def searched(
    early: Early,
    folder: Path,
    settings: TuneSettings,
    students: StudentsSettings = STUDENTS,
    train: TrainSettings = TRAIN,
    told: Callable[[TrialResult], None] = lambda trial: None,
) -> tuple[Search, list[TrialResult]]:
    """A search that has spent its budget, and the trials of this call."""
    found: list[TrialResult] = []

    def tell(trial: TrialResult) -> None:
        found.append(trial)
        told(trial)

    folder.mkdir(exist_ok=True)
    present, space = tunable(students, train, settings, ["own"])
    with Bench(early, folder, settings.workers or 1) as bench:
        search = Search(present, space, bench, settings)
        search.run(tell)
        return search, found


def tuned(early: Early, folder: Path, *arguments: Any, **further: Any) -> tuple[Outcome, str]:
    search, _ = searched(early, folder, *arguments, **further)
    outcome = confirm(search)
    return outcome, report(search, outcome)


def test_only_windows_before_the_evaluation_are_in_what_is_read(
    windows_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    early = early_of(windows_dir, tmp_path, scores_dir)
    names = [window.name for window in WINDOWS[:3]]
    assert Schema.load(early.windows_dir).windows == WINDOWS[:3]
    assert sorted(path.name for path in early.windows_dir.iterdir()) == [
        "encoder.json",
        "schema.json",
        *names,
    ]
    assert early.scores_dir is not None
    found = sorted(path.name for path in early.scores_dir.iterdir())
    assert found == [f"{name}.parquet" for name in names]


def test_what_later_windows_hold_changes_not_a_byte(windows_dir: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(windows_dir, tmp_path / "changed"))
    schema = Schema.load(changed)
    (changed / WINDOWS[3].name / "part-00000.parquet").write_text("no Parquet at all")
    later = replace(schema.windows[3], rows=7, max_label_delay_ms=10**9)
    replace(schema, windows=[*schema.windows[:3], later]).save(changed)
    settings = settings_of(TWO_KEYS)
    results = []
    for name, folder in (("a", windows_dir), ("b", changed)):
        (tmp_path / name).mkdir()
        early = early_of(folder, tmp_path / name)
        results.append((early.name, *tuned(early, tmp_path / name, settings, train=TOO_SLOW)))
    assert results[0] == results[1]


def test_a_bad_default_is_found_and_mended(windows_dir: Path, tmp_path: Path) -> None:
    early = early_of(windows_dir, tmp_path)
    students = STUDENTS.model_copy(
        update={"students": [StudentSettings(name=one, domain=one) for one in "ab"]}
    )
    settings = settings_of(TWO_KEYS, trials=6)
    outcome, text = tuned(early, tmp_path / "study", settings, students, TOO_SLOW)
    assert outcome.chosen.keys() == {RATE}
    assert outcome.chosen[RATE] > 0.01
    assert outcome.difference is not None
    assert outcome.difference.high < 0
    assert outcome.after == pytest.approx(outcome.before + outcome.difference.mean)
    row = next(line for line in text.splitlines() if line.startswith(f"| {RATE} | 1e-06 |"))
    assert row.endswith("| yes |")


def test_settings_that_nothing_beats_stay(windows_dir: Path, tmp_path: Path) -> None:
    settings = settings_of({RATE: {"choices": [1e-7, 1e-6]}}, trials=3)
    outcome, text = tuned(early_of(windows_dir, tmp_path), tmp_path / "study", settings)
    assert (outcome.chosen, outcome.keys) == ({}, [])
    assert outcome.difference is not None
    assert outcome.difference.mean > 0
    assert GOOD_ENOUGH in text


def test_the_first_trial_is_the_present_settings_even_outside_of_the_range(
    windows_dir: Path, tmp_path: Path
) -> None:
    early, settings = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS, trials=1)
    _, [first] = searched(early, tmp_path / "study", settings, train=TOO_SLOW)
    assert (first.number, first.state) == (0, "complete")
    assert first.values == {RATE: 1e-6, OVER: [8]}
    assert first.ne == pytest.approx(np.mean(first.curves["one"]))
    assert len(first.curves["one"]) == 2  # windows 1 and 2


def test_one_worker_and_one_seed_try_the_same(windows_dir: Path, tmp_path: Path) -> None:
    early, settings = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS)
    found = [searched(early, tmp_path / name, settings)[1] for name in "ab"]
    assert found[0] == found[1]
    other = settings.model_copy(update={"seed": 2})
    assert searched(early, tmp_path / "c", other)[1] != found[0]


def test_two_workers_find_what_one_does(windows_dir: Path, tmp_path: Path) -> None:
    early = early_of(windows_dir, tmp_path)
    several = settings_of(TWO_KEYS, trials=2, workers=2)
    _, both = searched(early, tmp_path / "two", several)
    _, one = searched(early, tmp_path / "one", settings_of(TWO_KEYS, trials=1))
    assert sorted(trial.number for trial in both) == [0, 1]
    assert one[0] in both


def test_a_killed_search_goes_on_with_the_next_trial(windows_dir: Path, tmp_path: Path) -> None:
    early, settings, folder = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS), tmp_path / "s"

    def interrupt(trial: TrialResult) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(early, folder, settings, told=interrupt)
    search, rest = searched(early, folder, settings)
    assert [trial.number for trial in rest] == [2, 3]
    assert search.counts()["complete"] == 4
    assert searched(early, folder, settings)[1] == []
    assert len({str(trial.params) for trial in search.study.trials}) == 4


def search_until_killed(early: Early, folder: Path, settings: TuneSettings, steps: int) -> None:
    die_after(steps)
    searched(early, folder, settings)


def test_a_trial_that_a_kill_has_cut_off_is_done_again(windows_dir: Path, tmp_path: Path) -> None:
    early, settings, folder = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS), tmp_path / "s"
    steps_of_a_student = 3 * 3  # windows x batches
    kill(search_until_killed, early, folder, settings, steps_of_a_student + 5)
    with (folder / "runs.jsonl").open("a") as file:
        file.write('{"half a li')
    search, rest = searched(early, folder, settings)
    assert [trial.number for trial in rest] == [2, 3, 4]
    first, cut_off, again, *_ = search.study.trials
    assert (first.state.name, cut_off.state.name) == ("COMPLETE", "FAIL")
    assert again.params == cut_off.params


def test_what_was_trained_before_a_kill_is_not_trained_again(
    windows_dir: Path, tmp_path: Path
) -> None:
    early, settings = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS, trials=3)
    search, _ = searched(early, tmp_path / "s", settings)
    first = confirm(search)
    present, space = search.present, search.space
    shutil.rmtree(early.windows_dir / WINDOWS[0].name)  # training would fail
    with Bench(early, tmp_path / "s", 1) as bench:
        assert confirm(Search(present, space, bench, settings)) == first
        assert bench.seconds == []


def test_other_settings_are_another_study(windows_dir: Path, tmp_path: Path) -> None:
    early, settings = early_of(windows_dir, tmp_path), settings_of(TWO_KEYS, trials=1)
    for train in (TRAIN, TOO_SLOW):
        _, found = searched(early, tmp_path / "s", settings, train=train)
        assert [trial.number for trial in found] == [0]
    on_more_ranks = TRAIN.model_copy(update={"world_size": 2})
    assert searched(early, tmp_path / "s", settings, train=on_more_ranks)[1] == []


def test_a_trial_that_a_model_refuses_is_recorded_and_passed_over(
    windows_dir: Path, tmp_path: Path
) -> None:
    settings = settings_of({DIMENSION: {"choices": [4, 5]}}, trials=6)
    search, found = searched(early_of(windows_dir, tmp_path), tmp_path / "s", settings)
    refused = [trial for trial in found if trial.state == "refused"]
    assert refused
    assert {trial.values[DIMENSION] for trial in refused} == {5}
    assert "multiple of 4, got 5" in refused[0].message
    assert search.best() == []
    assert confirm(search).difference is None


def test_a_trial_that_begins_badly_is_not_trained_to_its_end(
    windows_dir: Path, tmp_path: Path
) -> None:
    students = [StudentSettings(name=one, domain=one) for one in "ab"]
    rates = {RATE: {"choices": [0.1, 0.101, 0.102, 0.103, 0.104, 1e-7, 2e-7, 3e-7]}}
    _, found = searched(
        early_of(windows_dir, tmp_path),
        tmp_path / "s",
        settings_of(rates, trials=14),
        STUDENTS.model_copy(update={"students": students}),
    )
    pruned = [trial for trial in found if trial.state == "pruned"]
    assert pruned
    assert all(trial.values[RATE] < 1e-6 for trial in pruned)
    assert {tuple(trial.curves) for trial in pruned} == {("a",)}
    assert {tuple(trial.curves) for trial in found if trial.state == "complete"} == {("a", "b")}


def test_keys_of_distillation_are_measured_on_the_distilled_students(
    windows_dir: Path, scores_dir: Path, tmp_path: Path
) -> None:
    early = early_of(windows_dir, tmp_path, scores_dir)
    settings = settings_of({"students.distillation.mode": {"choices": ["shared"] * 2}}, trials=2)
    search, [first, *_] = searched(early, tmp_path / "s", settings)
    assert search.present.arm == "distilled"
    _, [plain] = searched(early, tmp_path / "s", settings_of(RATES, trials=1))
    assert first.ne != plain.ne


def test_the_rows_that_students_see_are_tuned_and_auto_tries_them_all() -> None:
    present, space = tunable(StudentsSettings(), TrainSettings(), TuneSettings(), ["distillation"])
    rows = "students.distillation.rows"
    seen = {
        choice: {recipe.rows for recipe in present.changed({rows: choice}).runs([1])[0].recipes}
        for choice in space[rows].choices
    }
    fixed = ("own", "scores_elsewhere", "all")
    assert seen == {"auto": set(fixed)} | {one: {one} for one in fixed}


def test_present_settings_that_cannot_be_trained_are_one_line(
    windows_dir: Path, tmp_path: Path
) -> None:
    tiny = StudentSettings(name="one", domain="b", budget=BudgetSettings(parameters=1))
    students = STUDENTS.model_copy(update={"students": [tiny]})
    with pytest.raises(InputError, match=r"current settings cannot be trained: .* budget") as error:
        searched(early_of(windows_dir, tmp_path), tmp_path / "s", settings_of(RATES), students)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.table_lerning_rate": {"choices": [1, 2]}}, "did you mean 'table_learning_rate'"),
        ({"students.model.over_layer": {"choices": [[1], [2]]}}, "did you mean 'over_layers'"),
        ({"data.window_hours": {"choices": [1, 2]}}, "no key of train or students; there are:"),
        ({"train": {"choices": [1, 2]}}, "no key of train or students; did you mean 'train'"),
        ({"students.students.5.name": {"choices": ["a", "b"]}}, "no element '5' in a list of 1"),
        ({"train.device.kind": {"choices": ["a", "b"]}}, "'kind' is a single value"),
        ({"train.dense_clip_norm": {"low": 1, "high": 2}}, "is None now, .* give choices"),
        ({}, "own: no keys to tune"),
    ],
)
def test_a_key_that_cannot_be_tuned_is_one_line(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tunable(STUDENTS, TRAIN, settings_of(space), ["own"])
    assert "TuneSettings: key 'spaces" in str(error.value)


def test_a_space_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"key 'spaces.modle': did you mean 'model'"):
        tunable(STUDENTS, TRAIN, TuneSettings(), ["modle"])


@pytest.mark.parametrize("first", [1, 5])
def test_too_few_early_windows_are_one_line(windows_dir: Path, tmp_path: Path, first: int) -> None:
    settings = EvaluateSettings(first_evaluation_window=first)
    with pytest.raises(InputError, match=r"first_evaluation_window': tuning .* at least 2|have 4"):
        early_windows(windows_dir, None, settings, tmp_path / "early")
    assert not (tmp_path / "early").exists()


@pytest.mark.parametrize(
    "dimension",
    [
        {},
        {"low": 1.0},
        {"choices": [1]},
        {"low": 1.0, "high": 2.0, "choices": [1, 2]},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
    ],
)
def test_a_dimension_is_a_range_or_a_list(dimension: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give low and high|must be below|log needs a low"):
        settings_of({RATE: dimension})


def test_every_key_of_the_default_spaces_is_there() -> None:
    settings = TuneSettings()
    present, space = tunable(StudentsSettings(), TrainSettings(), settings, list(settings.spaces))
    keys: list[Space] = list(settings.spaces.values())
    assert len(space) == sum(len(one) for one in keys)
    assert all(present.value(key) is not None for key in space if "half_life" not in key)


def test_values_go_into_lists_and_into_sections_that_nobody_has_set() -> None:
    settings = settings_of(RATES)
    present, _ = tunable(StudentsSettings(), TrainSettings(), settings, ["own"])
    changed = present.changed(
        {
            "students.students.1.model.over_layers": [4],
            "students.model.cross_layers": 3,
            "train.schedule.warmup_steps": 7,
            "train.dense_optimizer_options.weight_decay": 0.1,
        }
    )
    first, second = (changed.students.model_of(one) for one in changed.students.students)
    assert (first.over_layers, first.cross_layers) == ([64, 32], 3)
    assert (second.over_layers, second.cross_layers) == ([4], 3)
    assert changed.train.schedule.warmup_steps == 7
    assert changed.train.dense_optimizer_options == {"weight_decay": 0.1}


def test_an_interval_is_as_wide_as_the_less_certain_of_seeds_and_windows() -> None:
    first = np.zeros((1, 3, 4))
    of_seeds = np.broadcast_to(np.array([-0.3, -0.2, -0.1])[None, :, None], first.shape)
    found = paired_difference(first, of_seeds, 0.95)
    half = 4.3027 * 0.1 / np.sqrt(3)  # t of 2 degrees of freedom
    assert found.mean == pytest.approx(-0.2)
    assert (found.low, found.high) == pytest.approx((-0.2 - half, -0.2 + half), abs=1e-4)
    of_windows = np.broadcast_to(np.array([-0.4, -0.2, np.nan, -0.0])[None, None, :], first.shape)
    found = paired_difference(first, of_windows, 0.95)
    half = 4.3027 * 0.2 / np.sqrt(3)  # three windows are defined
    assert found.mean == pytest.approx(-0.2)
    assert (found.low, found.high) == pytest.approx((-0.2 - half, -0.2 + half), abs=1e-4)
