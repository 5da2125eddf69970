"""A published model arrives at a running server by its changed rows, or whole where one is missing,
and no request sees a mix of two."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from recsys.serving import publication
from recsys.serving.predictor import Predictor
from recsys.serving.publication import delta_folder, full_folder, publish, read_delta
from recsys.serving.server import Models, publication_source
from recsys.serving.settings import Precision, ServeSettings
from tests.support.exports import ENCODER, ROW, toy_export

ROWS = [ROW | {"user": f"u{place}", "ad": place, "tags": ["a", place]} for place in range(60)]
LEARNT = [{}, {3: 0.5, 7: -0.2}, {3: 0.1, 19: 0.4}, {0: 0.3}]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, and what it has become three times."""
    root = tmp_path_factory.mktemp("exports")
    for place, learnt in enumerate(LEARNT):
        toy_export(root / str(place), learnt=learnt)
    return [root / str(place) for place in range(len(LEARNT))]


def models(folder: Path) -> Models:
    return Models(publication_source(folder), ServeSettings(), CollectorRegistry())


def served(one: Models) -> np.ndarray:
    return one.current.predictor.predict(ROWS)


def test_a_delta_holds_the_rows_that_changed(tmp_path: Path, exports: list[Path]) -> None:
    folder = tmp_path / "feed"
    assert publish(exports[0], folder).rows is None
    second = publish(exports[1], folder)
    assert (second.version, second.rows) == (2, 6)  # rows 3 and 7 of three tables
    assert publish(exports[1], folder) == second  # nothing new
    delta = read_delta(delta_folder(folder, 2))
    assert delta.rows.tolist() == [3, 7, 53, 57, 93, 97]
    assert delta.model == second.model != delta.base
    assert {path.name for path in folder.iterdir()} == {"current.json", "full-2", "delta-2"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_followed_model_is_the_whole_one(tmp_path: Path, precision: Precision) -> None:
    folder = tmp_path / "feed"
    for place, learnt in enumerate(LEARNT):
        toy_export(tmp_path / str(place), learnt=learnt, precision=precision)
    publish(tmp_path / "0", folder)
    one = models(folder)
    first = one.current.predictor
    for place in (1, 2, 3):  # two of them arrive at once
        publish(tmp_path / str(place), folder)
        if place != 1:
            one.look()
    now, whole = one.current.predictor, Predictor.load(tmp_path / "3")
    assert now.tables is first.tables and one.current.version.startswith("feed/4@")
    np.testing.assert_array_equal(now.tables.values, whole.tables.values)
    np.testing.assert_array_equal(served(one), whole.predict(ROWS))
    assert (served(one) != Predictor.load(tmp_path / "0").predict(ROWS)).any()


def test_a_new_encoder_comes_along(tmp_path: Path, exports: list[Path]) -> None:
    folder = tmp_path / "feed"
    stripped = replace(ENCODER, null_values=[*ENCODER.null_values, "u1"])
    toy_export(tmp_path / "other", encoder=stripped, learnt=LEARNT[1])
    publish(exports[0], folder)
    one = models(folder)
    publish(tmp_path / "other", folder)
    one.look()
    assert one.current.number == 2 and one.current.predictor.tables.dimension == 4
    np.testing.assert_array_equal(served(one), Predictor.load(tmp_path / "other").predict(ROWS))


@pytest.mark.parametrize("fault", ["gap", "damaged", "another base", "pruned", "too much"])
def test_without_a_whole_chain_the_whole_model_is_taken(
    tmp_path: Path, exports: list[Path], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "feed"
    publish(exports[0], folder)
    one = models(folder)
    first = one.current.predictor
    if fault == "pruned":
        monkeypatch.setattr(publication, "KEPT_DELTAS", 1)
    if fault == "too much":
        monkeypatch.setattr(publication, "LARGEST_SHARE", 0.0)
    for place in (1, 2):
        publish(exports[place], folder)
    delta = delta_folder(folder, 2)
    if fault == "gap":
        shutil.rmtree(delta)
    if fault == "damaged":
        content = bytearray((delta / "rows.safetensors").read_bytes())
        content[-1] ^= 1
        (delta / "rows.safetensors").write_bytes(content)
    if fault == "another base":
        facts = json.loads((delta / "delta.json").read_text())
        (delta / "delta.json").write_text(json.dumps(facts | {"base": "other"}))
        publication.write_sums(delta)
    one.look()
    assert one.current.number == 3 and one.current.predictor.tables is not first.tables
    np.testing.assert_array_equal(served(one), Predictor.load(exports[2]).predict(ROWS))
    np.testing.assert_array_equal(first.predict(ROWS), Predictor.load(exports[0]).predict(ROWS))


def test_a_stopped_publication_is_repeated(tmp_path: Path, exports: list[Path]) -> None:
    folder = tmp_path / "feed"
    publish(exports[0], folder)
    before = (folder / "current.json").read_bytes()
    publish(exports[1], folder)
    (folder / "current.json").write_bytes(before)  # killed before this one was written
    (folder / "delta-2.partial").mkdir()
    full_folder(folder, 2).rename(full_folder(folder, 1))
    shutil.copy(exports[0] / "weights.safetensors", folder / "copy")
    (folder / "copy").replace(full_folder(folder, 1) / "weights.safetensors")
    assert publish(exports[1], folder).rows == 6
    assert not (folder / "delta-2.partial").exists()


def test_no_prediction_sees_a_mix(tmp_path: Path, exports: list[Path]) -> None:
    folder = tmp_path / "feed"
    publish(exports[0], folder)
    one, done = models(folder), threading.Event()
    answers: list[tuple[str, bytes]] = []

    def ask() -> None:
        while not done.is_set():
            with one.reading() as model:
                found = model.predictor.predict(ROWS * 30)  # takes a while
            answers.append((model.version, found.tobytes()))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for place in range(1, 9):
            publish(exports[place % 2], folder)
            one.look()
            seen = len(answers)
            while len(answers) < seen + 3:
                done.wait(0.001)
    finally:
        done.set()
        for thread in asking:
            thread.join()
    expected = [Predictor.load(exports[place]).predict(ROWS * 30).tobytes() for place in (0, 1)]
    assert {found for _, found in answers} == set(expected)
    assert len({version for version, _ in answers}) == 9
    assert len(set(answers)) == 9  # one answer per version
