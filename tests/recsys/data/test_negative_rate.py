"""Logs whose negatives were down-sampled."""

from pathlib import Path
from typing import Any

import pytest

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, TableSettings
from tests.support.raw_logs import LOG, SECTION, run


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(None, []), (0.1, [0.1] * 3), ({"desk": 0.5, "other": 0.2}, [1.0, 0.5, 0.2])],
)
def test_the_schema_says_the_rate_of_each_domain(
    data_settings: DataSettings, tmp_path: Path, rate: Any, expected: list[float]
) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    run(data_settings, tmp_path, "table", SECTION | {"negative_rate": rate})
    schema = Schema.load(tmp_path / "windows")
    assert (schema.domains, schema.negative_rates) == (["phone", "desk", "other"], expected)


def test_a_rate_of_no_domain_is_refused(data_settings: DataSettings, tmp_path: Path) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    with pytest.raises(InputError, match="'tv' is not a domain; domains: phone, desk, other"):
        run(data_settings, tmp_path, "table", SECTION | {"negative_rate": {"tv": 0.5}})


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"buy": "price"}},
        {
            "label": None,
            "sample_negatives": {
                "item": "device",
                "session": "user",
                "per_click": 1,
                "popularity_hours": 1,
                "seed": 0,
            },
        },
    ],
)
def test_what_no_rate_corrects_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="negative_rate is for a log with one task"):
        TableSettings.model_validate(SECTION | change | {"negative_rate": 0.1})
