"""A scored file has a probability per row, in the order of the rows, and is whole or absent."""

from pathlib import Path

import polars as pl
import pytest

from recsys.config import InputError
from recsys.serving import scoring
from recsys.serving.predictor import Predictor
from recsys.serving.scoring import score_file
from tests.support.exports import toy_export


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    toy_export(tmp_path / "export")
    return Predictor.load(tmp_path / "export")


def rows(count: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": range(count),
            "user": [f"u{place % 9}" for place in range(count)],
            "ad": [place % 40 for place in range(count)],
            "tags": [["a"] * (place % 3) for place in range(count)],
        }
    )


def test_each_row_has_its_probability(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 40)  # several parts
    given = rows(100)
    given.write_parquet(tmp_path / "log.parquet")
    target = tmp_path / "scores.parquet"
    assert score_file(predictor, tmp_path / "log.parquet", target, ["id"]) == 100
    found = pl.read_parquet(target)
    assert found.columns == ["id", "probability"] and found["id"].equals(given["id"])
    assert found["probability"].to_list() == pytest.approx(predictor.predict(given), abs=1e-7)


def test_a_wrong_file_leaves_nothing(tmp_path: Path, predictor: Predictor) -> None:
    given = rows(9)
    given.drop("user").write_parquet(tmp_path / "lacks.parquet")
    given.with_columns(price=pl.lit("x")).write_parquet(tmp_path / "text.parquet")
    (tmp_path / "none.parquet").write_bytes(b"no")
    target = tmp_path / "scores.parquet"
    for name, message in {
        "lacks": r"lacks.parquet: column 'user' is missing",
        "text": r"text.parquet: column 'price' holds 'x'; expected numbers",
        "none": r"none.parquet: .*Parquet",
        "absent": r"absent.parquet: .*No such file",
    }.items():
        with pytest.raises(InputError, match=message):
            score_file(predictor, tmp_path / f"{name}.parquet", target, [])
    with pytest.raises(InputError, match="no column 'user' to keep; it has id, ad, tags"):
        score_file(predictor, tmp_path / "lacks.parquet", target, ["user"])
    assert not list(tmp_path.glob("scores*"))
