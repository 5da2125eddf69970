"""Several scorers as one: weighted by what came before, and by nothing that came later."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys.baselines.settings import BaselinesSettings, TreesSettings
from recsys.baselines.training import train_baselines
from recsys.config import InputError
from recsys.distill.augment_settings import AugmentSettings, StackSettings
from recsys.distill.online_stream import StreamJob, advance
from recsys.distill.score_log import ScoreLog, check_snapshots_of_log
from recsys.distill.scoring import score_windows
from recsys.distill.snapshots import LookAheadError, list_snapshots
from recsys.distill.stacked_scores import fit_weights, log_stacked_scores
from recsys.evaluation.metrics import normalized_entropy
from recsys.files import file_hash
from tests.support.files import contents
from tests.support.toy_stream import ROWS, STUDENTS, TEACHER, TRAIN, WINDOWS

pytestmark = pytest.mark.ranks  # the fixture teacher_dir trains

AUGMENT = AugmentSettings(batch_size=128)
BASELINES = BaselinesSettings(trees=TreesSettings(trees=5, smallest_leaf=5, smoothing=5.0))


def made(seed: int, rows: int, noise: list[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits [rows, scorers] that are the truth and a scorer's own noise, and labels."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0.0, 1.5, rows)
    labels = (draw.random(rows) < 1 / (1 + np.exp(-truth))).astype(float)
    return np.column_stack([truth + draw.normal(0, one, rows) for one in noise]), labels


def test_of_two_scorers_the_better_one_weighs_more_and_noise_weighs_nothing() -> None:
    logits, labels = made(1, 20_000, [0.2, 1.0])
    noise = np.random.default_rng(2).normal(0, 1.5, (len(labels), 1))
    weights = fit_weights(np.hstack([logits, noise]), labels, np.ones(len(labels)), 50.0)
    assert weights[0] > 4 * weights[1] > 0
    assert weights[2] < 0.03
    apart = normalized_entropy(logits @ weights[:2] + weights[3], labels)
    assert apart < min(normalized_entropy(one, labels) for one in logits.T)


def test_a_scorer_that_is_the_other_way_round_gets_no_weight() -> None:
    logits, labels = made(3, 5_000, [1.0, 1.0])
    logits[:, 1] *= -1.0
    assert fit_weights(logits, labels, np.ones(len(labels)), 1.0)[1] == 0.0


def test_without_a_past_the_weights_are_equal() -> None:
    nothing = np.zeros(0)
    weights = fit_weights(np.zeros((0, 4)), nothing, nothing, 50.0)
    assert weights.tolist() == [0.25, 0.25, 0.25, 0.25, 0.0]


def test_probabilities_that_are_off_by_a_factor_are_put_right() -> None:
    logits, labels = made(4, 20_000, [0.1, 0.1])
    weights = fit_weights(logits + 1.0, labels, np.ones(len(labels)), 50.0)
    found = (logits + 1.0) @ weights[:2] + weights[2]
    assert (1 / (1 + np.exp(-found))).sum() / labels.sum() == pytest.approx(1.0, abs=0.02)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 4), st.floats(0.1, 100.0))
def test_the_weights_are_at_the_least_penalised_loss(
    seed: int, scorers: int, strength: float
) -> None:
    """No step within the bounds, in any direction, is better."""
    logits, labels = made(seed, 200, [1.0] * scorers)
    draw = np.random.default_rng(seed)
    counted = draw.random(len(labels))

    def loss(weights: NDArray[Any]) -> float:
        found = logits @ weights[:-1] + weights[-1]
        prior = np.append(np.full(scorers, 1 / scorers), 0.0)
        summed = counted @ (np.log1p(np.exp(found)) - labels * found)
        return float(summed + strength / 2 * ((weights - prior) ** 2).sum())

    best = fit_weights(logits, labels, counted, strength)
    assert (best[:-1] >= 0).all()
    for _ in range(20):
        other = best + draw.normal(0, 0.05, scorers + 1)
        other[:-1] = np.maximum(other[:-1], 0)
        assert loss(best) <= loss(other) + 1e-6


@pytest.fixture(scope="module")
def baselines_dir(windows_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    train_baselines(windows_dir, BASELINES, folder)
    return folder


@pytest.fixture(scope="module")
def own_dir(windows_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    score_windows(windows_dir, None, teacher_dir, TEACHER, AUGMENT, TRAIN, folder)
    return folder


@pytest.fixture(scope="module")
def stacked_dir(
    windows_dir: Path, own_dir: Path, baselines_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("stacked") / "log"
    log_stacked_scores(windows_dir, AUGMENT, folder, ScoreLog(own_dir), baselines_dir)
    return folder


def scores(windows_dir: Path, log_dir: Path) -> list[pl.DataFrame]:
    """Each window's examples as students read them."""
    log = ScoreLog(log_dir)
    return [
        log.join(pl.read_parquet(windows_dir / window.name / "part-00000.parquet"), window)
        for window in WINDOWS
    ]


def test_each_score_is_the_weighted_sum_that_log_json_tells(
    windows_dir: Path, own_dir: Path, baselines_dir: Path, stacked_dir: Path
) -> None:
    told = json.loads((stacked_dir / "log.json").read_text())["external"]
    assert told["stacked"]["members"] == ["own", "logistic", "trees"]
    found, own = scores(windows_dir, stacked_dir), scores(windows_dir, own_dir)
    assert found[0]["score"].null_count() == ROWS  # nothing was trained before the first window
    for index, window in enumerate(WINDOWS[1:], start=1):
        members = [own[index]["score"].to_numpy()]
        for name in ("logistic", "trees"):
            path = baselines_dir / name / "all/predictions" / f"{window.name}.parquet"
            members.append(pl.read_parquet(path).sort("example_id")["logit"].to_numpy())
        weights = np.array([told["weights"][window.name][domain] for domain in ("a", "b")])
        of_row = weights[found[index]["domain"].to_numpy()]
        expected = (np.column_stack(members) * of_row[:, :3]).sum(axis=1) + of_row[:, 3]
        assert found[index]["score"].to_numpy() == pytest.approx(expected, abs=1e-5)
    equal = [pytest.approx(1 / 3)] * 3 + [0.0]
    assert told["weights"]["w1"]["a"] == equal  # no window before it has scores of all
    assert told["weights"]["w3"]["a"] != equal


def turned(windows_dir: Path, target: Path, index: int) -> Path:
    """The windows with the labels of one turned round."""
    for name, value in contents(windows_dir).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(value)
    part = target / WINDOWS[index].name / "part-00000.parquet"
    frame = pl.read_parquet(part).with_columns(label=1.0 - pl.col("label"))
    frame.write_parquet(part)
    return target


def test_labels_that_were_not_known_yet_weigh_nothing(
    windows_dir: Path, own_dir: Path, baselines_dir: Path, stacked_dir: Path, tmp_path: Path
) -> None:
    """The labels of the third window, turned round, change the scores of the fourth alone."""
    other = turned(windows_dir, tmp_path / "windows", 2)
    log_stacked_scores(other, AUGMENT, tmp_path / "log", ScoreLog(own_dir), baselines_dir)
    before, after = scores(windows_dir, stacked_dir), scores(other, tmp_path / "log")
    for index in range(3):
        assert after[index]["score"].equals(before[index]["score"])
    assert not after[3]["score"].equals(before[3]["score"])


def test_a_late_label_counts_once_it_is_known(
    windows_dir: Path, own_dir: Path, baselines_dir: Path, stacked_dir: Path, tmp_path: Path
) -> None:
    """Labels of the third window that come after the fourth has begun say nothing for it."""
    late = turned(windows_dir, tmp_path / "windows", 2)
    for folder, name in ((windows_dir, "as-they-were"), (late, "turned")):
        part = folder / WINDOWS[2].name / "part-00000.parquet"
        frame = pl.read_parquet(part).with_columns(label_time=pl.lit(WINDOWS[3].start_ms + 1))
        copied = turned(folder, tmp_path / name, 0)
        frame.write_parquet(copied / WINDOWS[2].name / "part-00000.parquet")
        log_stacked_scores(
            copied, AUGMENT, tmp_path / f"{name}-log", ScoreLog(own_dir), baselines_dir
        )
    found = [
        scores(tmp_path / name, tmp_path / f"{name}-log")[3] for name in ("as-they-were", "turned")
    ]
    assert found[0]["score"].equals(found[1]["score"])


def test_where_a_member_has_no_score_the_others_stand_in(
    windows_dir: Path, own_dir: Path, baselines_dir: Path, tmp_path: Path
) -> None:
    """Examples that the own teacher has not scored get the mean of the baselines."""
    half = tmp_path / "own"
    for name, value in contents(own_dir).items():
        (half / name).parent.mkdir(parents=True, exist_ok=True)
        (half / name).write_bytes(value)
    segment = half / "w1/segment-00000.parquet"
    kept = pl.read_parquet(segment).filter(pl.col("example_id") % 2 == 0)
    kept.write_parquet(segment)
    log, facts = ScoreLog(half), ScoreLog(half).window("w1")
    assert facts is not None
    log.finish(replace(facts, segments={segment.name: file_hash(segment)}))
    log_stacked_scores(windows_dir, AUGMENT, tmp_path / "log", ScoreLog(half), baselines_dir)
    found = scores(windows_dir, tmp_path / "log")[1]
    paths = [baselines_dir / name / "all/predictions/w1.parquet" for name in ("trees", "logistic")]
    both = [pl.read_parquet(path).sort("example_id")["logit"].to_numpy() for path in paths]
    lacking = found["example_id"].to_numpy() % 2 == 1
    mean = np.mean(both, axis=0)
    assert found["score"].to_numpy()[lacking] == pytest.approx(mean[lacking], abs=1e-5)
    assert found["score"].to_numpy()[~lacking] != pytest.approx(mean[~lacking], abs=1e-5)


def test_a_withdrawn_snapshot_in_the_stack_is_refused(stacked_dir: Path, teacher_dir: Path) -> None:
    snapshots, log = list_snapshots(teacher_dir / "snapshots"), ScoreLog(stacked_dir)
    check_snapshots_of_log(log, snapshots, set())
    assert log.used() == {"w0": ["w1"], "w1": ["w2"], "w2": ["w3"]}
    with pytest.raises(InputError, match=r"w2 are scored by snapshot w1, which is withdrawn"):
        check_snapshots_of_log(log, snapshots, {snapshots[1].weights_hash})


def test_the_time_that_the_latest_scorer_had_learnt_until_holds(
    windows_dir: Path, stacked_dir: Path
) -> None:
    for window, frame in zip(WINDOWS[1:], scores(windows_dir, stacked_dir)[1:], strict=True):
        assert (frame["event_time"] - frame["staleness_ms"]).unique().to_list() == [window.start_ms]


def test_a_member_that_looked_ahead_is_refused(
    windows_dir: Path, baselines_dir: Path, tmp_path: Path
) -> None:
    given = pl.DataFrame({"example_id": [ROWS], "logit": [2.0], "until": [WINDOWS[3].end_ms]})
    given.write_parquet(tmp_path / "given.parquet")
    chosen = AugmentSettings.model_validate(
        {
            "stack": {"members": ["external", "trees"]},
            "external": {
                "root": ".",
                "files": ["given.parquet"],
                "score": "logit",
                "scale": "logit",
                "learnt_until": "until",
            },
        }
    )
    with pytest.raises(LookAheadError, match=r"given.parquet: row 1: example 300 .* after it"):
        log_stacked_scores(windows_dir, chosen, tmp_path / "log", None, baselines_dir, tmp_path)
    assert not (tmp_path / "log").exists()


def test_a_baseline_that_was_not_trained_is_named(windows_dir: Path, tmp_path: Path) -> None:
    alone = AUGMENT.model_copy(update={"stack": StackSettings(members=["trees"])})
    with pytest.raises(InputError, match=r"trees/all/predictions: no such file"):
        log_stacked_scores(windows_dir, alone, tmp_path / "log", None, tmp_path / "baselines")


def test_a_stream_stacks_what_the_batch_stages_do(
    windows_dir: Path, teacher_dir: Path, stacked_dir: Path, tmp_path: Path
) -> None:
    """Window by window, the log's bytes are those of all windows at once."""
    job = StreamJob(
        windows_dir,
        None,
        TEACHER,
        AUGMENT,
        STUDENTS,
        TRAIN,
        tmp_path / "work",
        BASELINES,
        finished=True,
        windows_at_once=1,
    )
    taken = [advance(job, tmp_path / f"out-{call}").new for call in range(len(WINDOWS))]
    assert taken == [[window.name] for window in WINDOWS]
    last = tmp_path / f"out-{len(WINDOWS) - 1}"
    assert contents(last / "scores") == contents(stacked_dir)
    assert contents(last / "teacher") == contents(teacher_dir)


def test_a_stream_trains_the_baselines_that_it_stacks(windows_dir: Path, tmp_path: Path) -> None:
    job = StreamJob(windows_dir, None, TEACHER, AUGMENT, STUDENTS, TRAIN, tmp_path / "work")
    lacking = replace(job, baselines=BaselinesSettings(run=["logistic"]))
    with pytest.raises(InputError, match=r"key 'stack.members': trees is not among the baselines"):
        advance(lacking, tmp_path / "output")


def test_each_member_is_given_once() -> None:
    with pytest.raises(ValueError, match="'own' appears twice"):
        StackSettings(members=["own", "own"])
