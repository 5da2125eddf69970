"""The generated stream: reproducible, with the promised base rate and signal."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from recsys.config import InputError
from recsys.data.ingest import IngestReport, ingest
from recsys.data.settings import DatasetSettings, DataSettings, SyntheticSettings
from recsys.data.synthetic import ATTRIBUTE_VALUES, SyntheticStream
from tests.support.files import digests

ORACLE_AUC_BAR = 0.80


def test_same_settings_same_bytes(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    for run in ("one", "two"):
        ingest(data_settings, small_dataset, tmp_path / run / "windows", tmp_path / run / "oracle")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert small_dataset.synthetic is not None
    other = small_dataset.model_copy(
        update={"synthetic": small_dataset.synthetic.model_copy(update={"seed": 1})}
    )
    ingest(data_settings, other, tmp_path / "other" / "windows", tmp_path / "other" / "oracle")
    assert digests(tmp_path / "other") != digests(tmp_path / "one")


def test_base_rate_and_signal(small_stream: tuple[Path, Path, IngestReport]) -> None:
    windows_dir, oracle_dir, report = small_stream
    assert (report.rows, report.windows, report.quarantined) == (20_000, 4, 0)
    assert report.base_rate == pytest.approx(0.4 * 0.22 + 0.25 * 0.25 + 0.35 * 0.18, abs=0.02)
    rows = pl.read_parquet(windows_dir / "*" / "part-*.parquet")
    assert rows["example_id"].to_list() == list(range(20_000))
    truth = rows.join(pl.read_parquet(oracle_dir / "*.parquet"), on="example_id")
    assert roc_auc_score(truth["label"], truth["probability"]) > ORACLE_AUC_BAR
    assert truth["probability"].mean() == pytest.approx(report.base_rate, abs=0.005)


def test_each_domain_has_its_share_of_the_rows_and_its_rate(
    small_stream: tuple[Path, Path, IngestReport],
) -> None:
    rows = pl.read_parquet(small_stream[0] / "*" / "part-*.parquet")
    for index, domain in enumerate(SyntheticSettings().domains):
        of_domain = rows.filter(pl.col("domain") == index)
        assert of_domain.height / rows.height == pytest.approx(domain.share, abs=0.02)
        assert of_domain["label"].mean() == pytest.approx(domain.base_rate, abs=0.03)


# One part of the logit at a time, without drift
NOTHING = {
    "rows": 12_000,
    "windows": 2,
    "drift": 0.0,
    "main_strength": 0.0,
    "within_strength": 0.0,
    "between_strength": 0.0,
    "attribute_strength": 0.0,
    "dense_strength": 0.0,
    "domain_strength": 0.0,
}


def generated(**changes: object) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows of a stream whose strengths are ``changes``, and their logits [N] without the domain's
    intercept."""
    settings = SyntheticSettings.model_validate({**NOTHING, **changes})
    stream = SyntheticStream(settings, window_hours=24.0)
    rows = pl.concat([chunk.frame for chunk in stream.chunks()])
    probability = rows["probability"].to_numpy()
    logit = np.log(probability / (1.0 - probability))
    return rows, logit - stream.intercepts[rows["domain"].to_numpy()]


def test_without_effects_every_row_of_a_domain_has_its_base_rate() -> None:
    rows, logit = generated()
    assert np.abs(logit).max() < 1e-9
    rates = np.array([domain.base_rate for domain in SyntheticSettings().domains])
    assert np.allclose(rows["probability"], rates[rows["domain"].to_numpy()], atol=1e-3)


def test_the_true_logit_is_the_sum_of_its_parts() -> None:
    parts = {
        "main_strength": 0.7,
        "within_strength": 0.6,
        "between_strength": 0.5,
        "attribute_strength": 1.5,
        "dense_strength": 0.4,
        "domain_strength": 0.3,
    }
    _, whole = generated(**parts)
    alone = [generated(**{name: value})[1] for name, value in parts.items()]
    assert min(part.std() for part in alone) > 0.1
    assert np.allclose(whole, np.sum(alone, axis=0), atol=1e-6)


def test_attributes_are_planted_as_interactions_of_features_of_few_values() -> None:
    rows, logit = generated(attribute_strength=1.0)
    stream = SyntheticStream(SyntheticSettings(), 24.0)
    attributes = [n for n, one in stream.features.items() if one.size <= ATTRIBUTE_VALUES]
    assert len(attributes) == 7
    assert 0.5 < logit.std() < 2.0
    # Rows with the same attributes have the same logit, whatever else they have
    grouped = rows.with_columns(logit=pl.Series(logit)).group_by(attributes)
    spread = grouped.agg(pl.len(), spread=pl.col("logit").max() - pl.col("logit").min())
    assert spread["len"].max() > 1 and spread["spread"].max() < 1e-9  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    # and no sum of effects of single attributes is near it
    one_hot = np.concatenate(
        [np.eye(stream.features[name].size)[rows[name].to_numpy()] for name in attributes], axis=1
    )
    fitted = one_hot @ np.linalg.lstsq(one_hot, logit, rcond=None)[0]
    assert np.var(logit - fitted) > 0.4 * np.var(logit)


@pytest.mark.parametrize(("domain_strength", "shared"), [(0.0, True), (0.5, False)])
def test_domains_share_all_structure_but_their_own_effects(
    domain_strength: float, shared: bool
) -> None:
    # Other shares give the same ids to other domains
    domains = [domain.model_dump() for domain in SyntheticSettings().domains]
    shares = [0.1, 0.2, 0.7]
    turned = [{**domain, "share": share} for domain, share in zip(domains, shares, strict=True)]
    strengths = {"main_strength": 0.8, "attribute_strength": 2.0, "dense_strength": 0.5}
    given = {**strengths, "domain_strength": domain_strength}
    (one, first), (other, second) = generated(**given), generated(**given, domains=turned)
    assert one["ad_id"].equals(other["ad_id"]) and not one["domain"].equals(other["domain"])
    assert np.allclose(first, second, atol=1e-6) == shared


def test_delay_missing_values_and_turnover(small_stream: tuple[Path, Path, IngestReport]) -> None:
    rows = pl.read_parquet(small_stream[0] / "*" / "part-*.parquet")
    delay_h = (rows["label_time"] - rows["event_time"]) / 3_600_000
    assert delay_h.min() >= 0 and delay_h.max() <= 24  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    assert 0.05 < rows["dense_7"].null_count() / rows.height < 0.15
    first, last = (
        set(rows[part]["ad_id"].to_list()) for part in (slice(0, 5_000), slice(15_000, 20_000))
    )
    assert last - first and first - last


def test_shares_must_add_up(
    data_settings: DataSettings, small_dataset: DatasetSettings, tmp_path: Path
) -> None:
    assert small_dataset.synthetic is not None
    wrong = small_dataset.synthetic.model_copy(
        update={"domains": small_dataset.synthetic.domains[:2]}
    )
    with pytest.raises(InputError, match="add up to 1"):
        ingest(
            data_settings,
            small_dataset.model_copy(update={"synthetic": wrong}),
            tmp_path / "w",
            tmp_path / "o",
        )
