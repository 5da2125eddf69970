"""``towerflow describe``: what it makes of logs of many shapes, that ingest follows what it wrote,
and what it warns of."""

import gzip
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest

from flows.towerflow import main
from recsys.config import load_settings
from recsys.data.describe import choose, open_log, survey
from recsys.data.ingest import IngestReport, ingest
from recsys.data.schema import Schema
from recsys.data.settings import DatasetSettings, DataSettings, TableSettings
from tasks.checks import check_settings_and_data
from tasks.overrides import apply_overrides
from tests.support.made_logs import DAYS, START_MS, made_impressions, made_log, with_time

PARAMS = Path(__file__).resolve().parents[4] / "params"


def told(table: TableSettings, *keys: str) -> dict[str, Any]:
    """What a YAML says under ``keys``."""
    said = table.model_dump(exclude_defaults=True)
    return {key: value for key, value in said.items() if key in keys}


def csv(frame: pl.DataFrame) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        frame.write_csv(folder / "log.csv")
        return "log.csv"

    return write


def parquet(frame: pl.DataFrame) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        frame.write_parquet(folder / "log.parquet")
        return "log.parquet"

    return write


def tsv(frame: pl.DataFrame) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        frame.write_csv(folder / "log.txt", separator="\t")
        return "log.txt"

    return write


def jsonl(frame: pl.DataFrame) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        frame.write_ndjson(folder / "log.json")
        return "log.json"

    return write


def gzipped(frame: pl.DataFrame, parts: int) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        step = -(-frame.height // parts)
        for part in range(parts):
            text = frame[part * step : (part + 1) * step].write_csv()
            (folder / f"part-{part}.csv.gz").write_bytes(gzip.compress(text.encode()))
        return "part-*.csv.gz"

    return write


@dataclass(frozen=True)
class Shape:
    """A log of some shape, and what its description must say: parts of the YAML, and lines."""

    name: str
    write: Callable[[Path], str]
    says: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    rate: float | None = None
    rows: int = 3_000

    def __str__(self) -> str:
        return self.name


LOG = made_log()
IMPRESSIONS = made_impressions()
CLICK_RATE = float(LOG["clicked"].sum()) / LOG.height
MIND = IMPRESSIONS.select(
    "impression_id",
    pl.col("impression_time").dt.strftime("%m/%d/%Y %I:%M:%S %p").alias("time"),
    "user_id",
    impressions=pl.struct("article_ids_inview", "article_ids_clicked").map_elements(
        lambda row: " ".join(
            f"N{one}-{int(one in row['article_ids_clicked'])}" for one in row["article_ids_inview"]
        ),
        return_dtype=pl.String,
    ),
)
SHAPES = [
    Shape(
        "CSV with a header and ISO times",
        csv(with_time(LOG, "event_time", None)),
        {
            "files": ["log.csv"],
            "file_format": "csv",
            "label": {"column": "clicked"},
            "dense": ["price"],
            "group": "user_id",
        },
        ["event_time: has no time zone: taken as UTC"],
    ),
    Shape(
        "TSV of seconds",
        tsv(LOG.select(timestamp=pl.col("ms") // 1000, clicked="clicked").hstack(LOG[:, 1:-1])),
        {"file_format": "tsv"},
        ["unit s"],
    ),
    Shape(
        "JSON lines with true and false",
        jsonl(LOG.rename({"ms": "ts"}).with_columns(pl.col("clicked") == 1)),
        {"file_format": "jsonl", "label": {"column": "clicked"}},
        ["unit ms"],
    ),
    Shape(
        "Parquet with lists",
        parquet(
            LOG.rename({"ms": "ts"}).with_columns(
                recent=pl.concat_list(pl.col("item_id"), pl.col("item_id").shift(1).fill_null(0))
            )
        ),
        {"file_format": "parquet"},
        ["a list"],
    ),
    Shape(
        "many gz files of microseconds",
        gzipped(LOG.select(ts=pl.col("ms") * 1000).hstack(LOG[:, 1:]), 6),
        {"files": ["part-*.csv.gz"]},
        ["unit us"],
    ),
    Shape(
        "ISO times with offsets",
        csv(with_time(LOG, "time", "%Y-%m-%dT%H:%M:%S%.3f", "+02:00")),
        {"file_format": "csv"},
        ["2024-03-31 22:"],
    ),
    Shape(
        "US dates that could be European ones",
        csv(with_time(LOG, "date", "%m/%d/%Y %H:%M:%S")),
        {},
        ["AMBIGUOUS: '04/01/2024", "%m/%d/%Y %H:%M:%S", "which gives 10 days"],
    ),
    Shape(
        "labels of -1 and 1 under a name that says nothing",
        csv(
            LOG.select(pl.exclude("clicked"), outcome_sign=2 * pl.col("clicked") - 1).rename(
                {"ms": "timestamp"}
            )
        ),
        {"label": {"column": "outcome_sign"}},
    ),
    Shape(
        "yes and no, and lists as text",
        csv(
            LOG.select(
                time="ms",
                user="user_id",
                ad_id="item_id",
                interests=pl.format("{}|{}", pl.col("item_id") % 7, pl.col("user_id") % 5),
                purchased=pl.when(pl.col("clicked") == 1)
                .then(pl.lit("yes"))
                .otherwise(pl.lit("no")),
            )
        ),
        {"label": {"column": "purchased"}},
        ["list, '|'"],
    ),
    Shape(
        "counts of clicks",
        csv(
            LOG.with_columns(clicked=pl.col("clicked") * 3).rename(
                {"ms": "ts", "clicked": "clicks"}
            )
        ),
        {"label": {"column": "clicks", "positive": 1.0}},
    ),
    Shape(
        "impressions as lists",
        parquet(IMPRESSIONS),
        {
            "explode": {
                "shown": "article_ids_inview",
                "clicked": "article_ids_clicked",
                "item": "candidate",
            }
        },
        ["next_read_time: LEAK by name", "impression_id", "the row's own id"],
        rate=float(IMPRESSIONS["article_ids_clicked"].list.len().sum()) / (5 * IMPRESSIONS.height),
        rows=5 * IMPRESSIONS.height,
    ),
    Shape(
        "impressions as text with their labels",
        tsv(MIND),
        {
            "explode": {
                "shown": "impressions",
                "item": "candidate",
                "separator": " ",
                "label_separator": "-",
            }
        },
        ["%m/%d/%Y %I:%M:%S %p"],
        rate=float(IMPRESSIONS["article_ids_clicked"].list.len().sum()) / (5 * IMPRESSIONS.height),
        rows=5 * IMPRESSIONS.height,
    ),
    Shape(
        "clicks only",
        parquet(LOG.drop("clicked", "price").rename({"ms": "click_timestamp"})),
        {
            "sample_negatives": {
                "item": "item_id",
                "session": "user_id",
                "per_click": 4,
                "popularity_hours": 4,
                "seed": 1,
            }
        },
        ["a log with only clicks: negatives are sampled"],
        rate=0.2,
        rows=14_500,
    ),
]


def described(
    folder: Path, pattern: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[TableSettings, str]:
    """The YAML that is written of ``pattern`` in ``folder``, and what is said."""
    output = folder / "described.yaml"
    assert main(["describe", str(folder / pattern), "--output", str(output), *options]) == 0
    table = load_settings(output, DatasetSettings).table
    assert table is not None
    return table, capsys.readouterr().out + output.read_text()


def ingested(folder: Path, table: TableSettings, window_hours: float = 24.0) -> IngestReport:
    settings = DataSettings(root=str(folder), dataset="described", window_hours=window_hours)
    dataset = DatasetSettings(format="table", table=table)
    return ingest(settings, dataset, folder / "windows", folder / "oracle")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_written_of_a_log_is_what_ingest_can_follow(
    shape: Shape, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, text = described(tmp_path, shape.write(tmp_path), capsys)
    assert told(table, *shape.says) == shape.says
    for line in shape.said:
        assert line in text
    report = ingested(tmp_path, table)
    assert report.quarantined == 0
    assert report.rows == pytest.approx(shape.rows, rel=0.05 if table.sample_negatives else 0)
    rate = CLICK_RATE if shape.rate is None else shape.rate
    assert report.base_rate == pytest.approx(rate, abs=0.002)
    assert DAYS <= report.windows <= DAYS + 1
    statistics = [name for name in Schema.load(tmp_path / "windows").dense if "_clicks_" in name]
    assert len(statistics) >= 4, "past-only statistics are on"


def test_the_command_that_is_printed_fits_the_settings_of_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PARAMS, tmp_path / "params")
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    LOG.rename({"ms": "ts"}).write_parquet("logs/log.parquet")
    output = Path("params/datasets/my_log.yaml")
    assert main(["describe", "logs/log.parquet", "--output", str(output)]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[:2] == ["towerflow", "run"]
    apply_overrides(dict(one.split("=", 1) for one in command[2:] if one != "--set"))
    settings = load_settings(Path("params/data.yaml"), DataSettings)
    assert (settings.dataset, settings.root) == ("my_log", str(tmp_path / "logs"))
    ingest(
        settings, load_settings(output, DatasetSettings), Path("data/windows"), Path("data/oracle")
    )
    check_settings_and_data()
    assert Schema.load(Path("data/windows")).domains == ["phone", "desktop", "other"]


def test_what_would_mislead_a_model_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(1)
    clicked = LOG["clicked"].to_numpy()
    log = LOG.rename({"ms": "ts"}).with_columns(
        gain=clicked * random.random(LOG.height),
        play_time_ms=random.integers(0, 999, LOG.height),
        is_like=random.integers(0, 2, LOG.height),
        country=pl.lit("dk"),
        row_id=pl.int_range(pl.len()) * 7,
        returned_at=pl.col("ts") + 60_000,
    )
    log = pl.concat([log, log[:40]])
    log.write_parquet(tmp_path / "log.parquet")
    table, text = described(tmp_path, "log.parquet", capsys)
    for line in (
        "gain: has AUC 1.000 by itself",
        "play_time_ms: LEAK by name, known only after the event",
        "is_like: LEAK by name, outcomes",
        "country: always the same",
        "returned_at: times after the event",
        "row_id: a different value in every row",
        "1 rows are earlier than the previous row",
        "40 rows repeat another in every column",
        "rows have label 1: too few",
    ):
        assert line in text, line
    assert {one.column for one in table.categorical} == {
        "user_id", "item_id", "device", "event_hour",
    }  # fmt: skip
    assert table.dense == ["price"]


def test_the_time_of_a_conversion_becomes_the_time_of_the_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    converted = pl.when(pl.col("clicked") == 1).then(pl.col("ms") + 3_600_000)
    log = LOG.select(
        click_time=pl.from_epoch("ms", time_unit="ms"),
        attributed_time=pl.from_epoch(converted, time_unit="ms"),
        is_attributed="clicked",
        app="item_id",
        ip="user_id",
    )
    log.write_parquet(tmp_path / "log.parquet")
    table, _ = described(tmp_path, "log.parquet", capsys)
    assert table.time is not None and table.time.column == "click_time"
    assert table.label_time is not None and table.label_time.column == "attributed_time"
    ingested(tmp_path, table)
    rows = pl.read_parquet(tmp_path / "windows" / "*" / "part-*.parquet")
    delays = rows.group_by("label").agg((pl.col("label_time") - pl.col("event_time")).unique())
    assert table.attribution_window_s == 3_600  # all conversions come within an hour
    assert dict(delays.rows()) == {0.0: [3_600_000], 1.0: [3_600_000]}


def test_a_count_of_small_numbers_is_dense_and_a_code_is_not(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    log = LOG.rename({"ms": "ts"}).with_columns(
        visits=random.geometric(0.03, LOG.height),
        C17=random.choice(np.arange(60) * 37 + 1_700, LOG.height),
        zip_code=random.integers(1_000, 9_999, LOG.height),
    )
    log.write_parquet(tmp_path / "log.parquet")
    found = choose(survey(open_log([tmp_path / "log.parquet"])))
    assert found.dense == ["price", "visits"]
    assert {"C17", "zip_code"} <= {one.column for one in found.categorical}


def test_the_sample_does_not_depend_on_how_the_rows_are_cut_into_files(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "all.parquet")
    for part in range(3):
        LOG[part * 1_000 : (part + 1) * 1_000].write_parquet(tmp_path / f"{part}.parquet")
    whole = survey(open_log([tmp_path / "all.parquet"]), sample_rows=100)
    parts = survey(open_log([tmp_path / f"{part}.parquet" for part in range(3)]), sample_rows=100)
    assert whole.sample.equals(parts.sample) and whole.sample.height == 100
    assert whole.distinct == parts.distinct and whole.rows == parts.rows == 3_000
    assert whole.sample["ms"].is_sorted()
    assert whole.sample["ms"].median() == pytest.approx(LOG["ms"].median(), abs=1.5 * 86_400_000)


def test_many_distinct_values_are_counted_within_two_per_cent_in_bounded_memory(
    tmp_path: Path,
) -> None:
    pl.DataFrame({"ts": np.arange(60_000), "few": np.arange(60_000) % 500}).write_parquet(
        tmp_path / "log.parquet"
    )
    found = survey(open_log([tmp_path / "log.parquet"]), sample_rows=100).distinct
    assert found["few"] == 500
    assert found["ts"] == pytest.approx(60_000, rel=0.03)


def test_criteo_s_layout_is_told_by_its_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "\t".join(["1", "5", *[""] * 12, "68fd1e64", *["a"] * 25])
    (tmp_path / "train.txt").write_text(f"{line}\n" * 50)
    output = tmp_path / "criteo.yaml"
    assert main(["describe", str(tmp_path / "train.txt"), "--output", str(output)]) == 0
    dataset = load_settings(output, DatasetSettings)
    settings = DataSettings(root=str(tmp_path), dataset="criteo")
    report = ingest(settings, dataset, tmp_path / "windows", tmp_path / "oracle")
    assert (report.rows, report.windows) == (50, 10)
    assert "data.dataset=criteo" in capsys.readouterr().out


HEADERLESS = "\n".join(f"{START_MS},{row},3" for row in range(5))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "is empty"),
        ('[{"ts": 1}]', [], "contains one JSON array; write an object per line"),
        (HEADERLESS, [], "its first line contains values, not column names"),
        ("one\n1\n2\n", [], "contains neither tabs nor commas"),
        ("ts,y\n", [], "holds no rows"),
        ("name,y\na,1\nb,0\n", [], "no column contains event times"),
        ("ts,u\n1711929600,a\n1711929700,b\n", [], "name it: --label COLUMN"),
        ("ts,u\n1711929600,a\n", ["--label", "clic"], "no column 'clic'"),
        ("ts,u\n1711929600,a\n1711929601,b\n", ["--label", "u"], "'u' is not a label"),
        ("ts,u\n1711929600,a\n", ["--time", "u"], "column 'u' does not contain times"),
    ],
)
def test_what_cannot_be_described_is_one_line_and_nothing_is_written(
    content: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "log.csv").write_text(content)
    output = tmp_path / "described.yaml"
    arguments = ["describe", str(tmp_path / "log.csv"), "--output", str(output), *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()


def test_a_file_that_is_there_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv(with_time(LOG, "event_time", None))(tmp_path)
    (tmp_path / "mine.yaml").write_text("mine")
    log, output = str(tmp_path / "log.csv"), str(tmp_path / "mine.yaml")
    assert main(["describe", log, "--output", output]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_without_an_output_the_yaml_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv(with_time(LOG, "event_time", None))(tmp_path)
    assert main(["describe", str(tmp_path / "log.csv")]) == 0
    said = capsys.readouterr().out
    assert "other files" not in said
    assert "format: table\ntable:\n" in said
    assert "Save it as params/datasets/my_log.yaml, then:\ntowerflow run --set" in said
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_columns_of_any_name_are_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["a: b", "#x", "null", "true", "1", "item.id", "", "own:x", "two\nlines", "'q'", "[bold]"]
    log = LOG.rename({"ms": "ts"}).with_columns(
        (pl.col("item_id") % (place + 3)).cast(pl.String).alias(name)
        for place, name in enumerate(odd)
    )
    log.write_parquet(tmp_path / "log.parquet")
    table, text = described(tmp_path, "log.parquet", capsys)
    features = {one.column for one in table.categorical}
    assert set(odd) - features == {"", "own:x"}
    assert "[bold]" in text and "names that start with 'own:' are taken" in text
    assert ingested(tmp_path, table).rows == LOG.height


@pytest.mark.parametrize(
    ("file_format", "quotes", "title"),
    [("csv", "yes", '"two\nlines"'), ("tsv", "no", '"an open quote'), ("csv", "checked", '"a, b"')],
)
def test_quotes_are_read_as_they_are_used(
    file_format: str,
    quotes: str,
    title: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    separator = "\t" if file_format == "tsv" else ","
    lines = [separator.join(["ts", "clicked", "ad_id", "title"])]
    for row in range(200):
        fields = [str(START_MS + row * 3_600_000), str(row % 4 // 3), str(row % 9), title]
        lines.append(separator.join(fields))
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    table, _ = described(tmp_path, "log.txt", capsys)
    assert (table.file_format, table.quotes) == (file_format, quotes)
    assert ingested(tmp_path, table).rows == 200


def test_rows_that_ingest_would_set_aside_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = pl.int_range(pl.len()) % 50 == 0
    log = LOG.rename({"ms": "ts"}).with_columns(
        clicked=pl.when(bad).then(None).otherwise(pl.col("clicked"))
    )
    log.write_csv(tmp_path / "log.csv")
    _, text = described(tmp_path, "log.csv", capsys)
    assert "60 of 3,000 rows have no label; ingest sets them aside" in text
    assert "--set data.quarantine_limit=0.04" in text


def test_what_it_cannot_tell_may_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LOG.rename({"ms": "ts", "clicked": "zz"}).with_columns(
        published_at=pl.col("ts") - 86_400_000
    )
    log.write_parquet(tmp_path / "log.parquet")
    options = ["--label", "zz", "--time", "published_at"]
    table, _ = described(tmp_path, "log.parquet", capsys, *options)
    assert table.label is not None and table.time is not None
    assert (table.label.column, table.time.column) == ("zz", "published_at")


@pytest.mark.parametrize(
    ("days", "hours"), [(0.5, 1.0), (3, 6.0), (10, 24.0), (90, 168.0), (900, 2184.0)]
)
def test_windows_are_long_and_there_are_eight_of_them(
    days: float, hours: float, tmp_path: Path
) -> None:
    scale = days / DAYS
    start = pl.lit(START_MS)
    log = LOG.with_columns(ms=(start + (pl.col("ms") - start) * scale).cast(pl.Int64))
    log.rename({"ms": "ts"}).write_parquet(tmp_path / "log.parquet")
    found = choose(survey(open_log([tmp_path / "log.parquet"])))
    assert found.window_hours == hours


@pytest.mark.parametrize("form", ["%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S"])
def test_dates_of_two_readings_are_read_as_leaves_the_log_in_order(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv(with_time(LOG, "date", form))(tmp_path)
    table, text = described(tmp_path, "log.csv", capsys)
    assert table.time is not None and table.time.format == form
    assert "AMBIGUOUS" in text


def test_columns_that_folders_say_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for hour in (3, 11):
        folder = tmp_path / f"date=2024-01-01/hour={hour}"
        folder.mkdir(parents=True)
        csv(LOG)(folder)
    table, text = described(tmp_path, "date=*/**/*.csv", capsys)
    assert "the files' folders say date, hour:" in text
    # A folder that comes later is found, too. The files' common folder is date=2024-01-01
    assert table.files == ["hour=3/log.csv", "hour=11/log.csv"]
    later = tmp_path / "date=2024-01-02/hour=1"
    later.mkdir(parents=True)
    csv(LOG)(later)
    (tmp_path / "described.yaml").unlink()
    table, _ = described(tmp_path, "date=*/**/*.csv", capsys)
    assert table.files == ["date=*/**/*.csv"]


def test_a_log_behind_a_url_is_described_and_its_yaml_names_the_url(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv(LOG)(tmp_path)
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/day=1/log.csv", (tmp_path / "log.csv").read_bytes())
    output = tmp_path / "described.yaml"
    assert main(["describe", "memory://bucket/**/*.csv", "--output", str(output)]) == 0
    assert "data.root" not in capsys.readouterr().out
    table = load_settings(output, DatasetSettings).table
    assert table is not None and table.files == ["memory://bucket/**/*.csv"]
    assert ingested(tmp_path, table).rows == LOG.height
    store.store.clear()


def test_a_label_that_is_always_1_is_a_log_of_clicks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOG.with_columns(clicked=1).rename({"ms": "ts"}).write_parquet(tmp_path / "log.parquet")
    table, text = described(tmp_path, "log.parquet", capsys)
    assert table.label is None and table.sample_negatives is not None
    assert "always 1: a log with only clicks" in text


def test_sampled_negatives_bring_rates_of_the_item_over_the_hours_that_they_are_drawn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOG.drop("clicked", "price").write_parquet(tmp_path / "log.parquet")
    table, text = described(tmp_path, "log.parquet", capsys)
    assert table.sample_negatives is not None and table.domain is not None
    hours = table.sample_negatives.popularity_hours
    first, *pairs = table.counters
    assert first.by == ["item_id"] and first.hours[0] == hours / 2
    assert pairs[-1].by == ["item_id", table.domain.column]
    assert all(one.examples and one.prior_rate == 0.2 for one in table.counters)
    assert f"data.window_hours={hours:g}" in text


def test_a_root_that_holds_more_than_the_log_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv(with_time(LOG, "event_time", None))(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other.bin").touch()
    assert main(["describe", str(tmp_path / "log.csv")]) == 0
    assert f"{tmp_path} holds 2 other files: DVC hashes all of data.root" in capsys.readouterr().out


def test_files_whose_types_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LOG.write_parquet(tmp_path / "1.parquet")
    LOG.cast({"item_id": pl.String}).write_parquet(tmp_path / "2.parquet")
    assert main(["describe", str(tmp_path / "*.parquet")]) == 2
    error = capsys.readouterr().err
    assert "2.parquet: column 'item_id' holds String, but Int64 in" in error
