"""Data sets of the field: files in the exact format that is published, with made values, ingested
by the YAML of params/datasets."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from recsys.data.encoding import hash_to_rows
from recsys.data.ingest import ingest
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset

PARAMS = Path(__file__).resolve().parents[3] / "params"
ROWS = 12


def criteo_line(row: int) -> str:
    integers = ["" if index == row % 13 else str(index - 1) for index in range(13)]
    categories = ["" if index == row % 26 else f"{index:08x}" for index in range(26)]
    return "\t".join([str(row % 4 // 3), *integers, *categories])


def criteo_kaggle(root: Path) -> None:
    put(root / "criteo/train.txt", "".join(f"{criteo_line(row)}\n" for row in range(ROWS)))


def criteo_1tb(root: Path) -> None:
    for day in range(0, ROWS, 4):
        text = "".join(f"{criteo_line(row)}\n" for row in range(day, day + 4))
        put(root / f"criteo_1tb/day_{day}.gz", gzip.compress(text.encode()))


def criteo_attribution(root: Path) -> None:
    names = (
        "timestamp uid campaign conversion conversion_timestamp conversion_id attribution click "
        "click_pos click_nb cost cpo time_since_last_click cat1 cat2 cat3 cat4 cat5 cat6 cat7 cat8 "
        "cat9"
    )
    lines = ["\t".join(names.split())]
    for row in range(2 * ROWS):
        click, converted = int(row < ROWS), row < ROWS and row % 4 == 3
        outcome = ["1", str(row * 60 + 5_000), "77", "1"] if converted else ["0", "-1", "-1", "0"]
        place = ["0", "1"] if converted else ["-1", "-1"]
        last = "-1" if row % 2 else "900"
        start = [str(row * 60), str(row % 5), "73325", *outcome, str(click), *place]
        categories = [str(category * 1000) for category in range(1, 10)]
        lines.append("\t".join([*start, "1.0e-05", "0.39", last, *categories]))
    text = "\n".join(lines) + "\n"
    path = root / "criteo_attribution/criteo_attribution_dataset.tsv.gz"
    put(path, gzip.compress(text.encode()))


def avazu(root: Path) -> None:
    names = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
        "app_category,device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,"
        "C17,C18,C19,C20,C21"
    )
    lines = [
        f"{10_000_000_000_000_000_000 + row},{row % 4 // 3},141021{row:02d},1005,{row % 3},"
        f"1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,44956a24,1,2,15706,320,"
        f"50,1722,0,35,-1,79"
        for row in range(ROWS)
    ]
    put(root / "avazu/train.gz", gzip.compress("\n".join([names, *lines, ""]).encode()))


def taobao_ad(root: Path) -> None:
    lines = [
        f"{row % 3},{1_494_032_110 + row * 60},{row % 2 + 1},430548_1007,{1 - row % 4 // 3},"
        f"{row % 4 // 3}"
        for row in range(ROWS)
    ]
    put(root / "taobao_ad/raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", *lines)
    ads = ["1,6406,83237,1,95471,170.0", "2,6407,83238,2,NULL,199.0"]
    header = "adgroup_id,cate_id,campaign_id,customer,brand,price"
    put(root / "taobao_ad/ad_feature.csv", header, *ads)
    header = (
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level "
    )
    put(root / "taobao_ad/user_profile.csv", header, "0,0,5,2,5,,3,0,3", "1,5,2,2,2,1,3,1,")


def kuairand_pure(root: Path) -> None:
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
        "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
        "is_profile_enter,is_rand,tab"
    )
    lines = [
        f"{row % 3},{row % 5},20220408,900,{1_649_376_000_000 + row * 60_000},{row % 4 // 3},0,0,0,"
        f"0,0,{row % 2},{row * 10},70100,0,0,0,0,{row % 3}"
        for row in range(ROWS)
    ]
    data = root / "KuaiRand-Pure/data"
    put(data / "log_standard_4_08_to_4_21_pure.csv", header, *lines[:6])
    put(data / "log_standard_4_22_to_5_08_pure.csv", header, *lines[6:])
    header = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
        "server_width,server_height,music_id,music_type,tag"
    )
    videos = [
        f'{video},{video % 2},NORMAL,2022-04-10,Kmovie,0.0,87433.0,720.0,1280.0,91,9.0,"2{video},8"'
        for video in range(4)
    ]
    put(data / "video_features_basic_pure.csv", header, *videos)
    header = (
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
        "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
        "friend_user_num_range,register_days,register_days_range,"
        + ",".join(f"onehot_feat{index}" for index in range(18))
    )
    user = '0,full_active,0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,' + ",".join("1" * 18)
    put(data / "user_features_pure.csv", header, user)


def mind(root: Path) -> None:
    lines = [
        f"{row + 1}\tU{row % 3}\t11/{13 + row // 6}/2019 8:{row:02d}:58 {'AP'[row % 2]}M\t"
        f"{'' if row % 3 == 2 else 'N55189 N42782'}\tN{row}-0 N{row + 1}-{int(row % 3 != 0)}"
        for row in range(ROWS // 2)
    ]
    put(root / "mind/train/behaviors.tsv", *lines[:3])
    put(root / "mind/dev/behaviors.tsv", *lines[3:])


def ali_ccp(root: Path) -> None:
    """Without names; the last row is a conversion without a click."""

    def features(*pairs: tuple[str, str]) -> str:
        return "\x01".join(f"{field}\x02{value}\x031.0" for field, value in pairs)

    lines = [
        f"{row + 1},{row % 4 // 3},{row % 8 // 7},user{row % 3},4,"
        + features(("216", "9"), ("205", f"41{row % 5}"), ("210", "7"), ("210", "8"))
        for row in range(ROWS)
    ]
    put(root / "ali_ccp/sample_skeleton_train.csv", *lines, f"{ROWS + 1},0,1,user0,0,")
    users = [
        f"user{user},3," + features(("101", f"3{user}"), ("110_14", "5"), ("110_14", "6"))
        for user in range(2)
    ]
    put(root / "ali_ccp/common_features_train.csv", *users)


def ebnerd(root: Path) -> None:
    integers = {"device_type": pl.Int8, "gender": pl.Int8, "postcode": pl.Int8, "age": pl.Int8}
    frame = pl.DataFrame(
        {
            "impression_id": range(ROWS // 2),
            "article_id": [None, 7] * (ROWS // 4),
            "impression_time": [datetime(2023, 5, 18, 7, row) for row in range(ROWS // 2)],
            "read_time": [1.0] * (ROWS // 2),
            "scroll_percentage": [None] * (ROWS // 2),
            "device_type": [1, 2, 3] * (ROWS // 6),
            "article_ids_inview": [[row, row + 1] for row in range(ROWS // 2)],
            "article_ids_clicked": [[row + 1] if row % 2 else [] for row in range(ROWS // 2)],
            "user_id": [row % 3 for row in range(ROWS // 2)],
            "is_sso_user": [False] * (ROWS // 2),
            "gender": [None] * (ROWS // 2),
            "postcode": [None] * (ROWS // 2),
            "age": [None] * (ROWS // 2),
            "is_subscriber": [False] * (ROWS // 2),
            "session_id": range(ROWS // 2),
            "next_read_time": [1.0] * (ROWS // 2),
            "next_scroll_percentage": [None] * (ROWS // 2),
        },
        schema_overrides=integers
        | {"article_ids_inview": pl.List(pl.Int32), "article_ids_clicked": pl.List(pl.Int32)},
    )
    for part, rows in (("train", frame[:3]), ("validation", frame[3:])):
        path = root / f"ebnerd_demo/{part}/behaviors.parquet"
        path.parent.mkdir(parents=True)
        rows.write_parquet(path)


def amazon_reviews(root: Path) -> None:
    lines = [
        json.dumps(
            {
                "rating": float(row % 5 + 1),
                "title": 'Such a lovely "scent"',
                "text": "Two\nlines",
                "images": []
                if row % 2
                else [{"small_image_url": "https://x", "attachment": "IMG"}],
                "asin": f"B00YQ6X8E{row % 3}",
                "parent_asin": "B00YQ6X8EO",
                "user_id": f"AGKHLEW2SOWHNMFQIJGBECAF7IN{row % 4}",
                "timestamp": 1_588_687_728_923 + row * 60_000,
                "helpful_vote": row,
                "verified_purchase": True,
            }
        )
        for row in range(ROWS)
    ]
    path = root / "amazon_reviews/All_Beauty.jsonl.gz"
    put(path, gzip.compress("\n".join([*lines, ""]).encode()))


def movielens(root: Path) -> None:
    lines = [
        f"{row % 3},{row % 4 + 1},{row % 5 + 0.5},{1_147_880_044 + row}" for row in range(ROWS)
    ]
    put(root / "ml-25m/ratings.csv", "userId,movieId,rating,timestamp", *lines)


def put(path: Path, *content: str | bytes) -> None:
    """Write bytes, or lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content[0], bytes):
        path.write_bytes(content[0])
    else:
        text = "\n".join(str(line) for line in content)
        path.write_text(text if text.endswith("\n") else text + "\n")


@dataclass(frozen=True)
class Published:
    """A data set, how its files are made, and what ingest must find in them."""

    name: str
    write: Callable[[Path], None]
    clicks: list[int]
    first: str
    domains: list[str]
    rows: int = ROWS

    def __str__(self) -> str:
        return self.name


EVERY_FOURTH = [row % 4 // 3 for row in range(ROWS)]
DATASETS = [
    Published("criteo", criteo_kaggle, EVERY_FOURTH, "2024-01-01T00:00:00", ["all"]),
    Published("criteo_1tb", criteo_1tb, EVERY_FOURTH, "2024-01-01T00:00:00", ["all"]),
    Published("criteo_attribution", criteo_attribution, EVERY_FOURTH, "1970-01-01", ["all"]),
    Published("avazu", avazu, EVERY_FOURTH, "2014-10-21", ["top", "second", "other"]),
    Published(
        "taobao_ad",
        taobao_ad,
        EVERY_FOURTH,
        "2017-05-06T00:55:10",
        ["pid_430548", "pid_430539", "other"],
    ),
    Published(
        "kuairand_pure",
        kuairand_pure,
        EVERY_FOURTH,
        "2022-04-08",
        ["tab_0", "tab_1", "tab_4", "other"],
    ),
    Published("mind", mind, [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1], "2019-11-13T08:00:58", ["all"]),
    Published("ali_ccp", ali_ccp, EVERY_FOURTH, "2024-01-01", ["all"]),
    Published(
        "ebnerd_demo", ebnerd, [0, 0, 0, 1] * 3, "2023-05-18T07:00", ["desktop", "mobile", "other"]
    ),
    Published(
        "amazon_reviews",
        amazon_reviews,
        [int(row % 5 >= 3) for row in range(ROWS)],
        "2020-05-05T14:08:48.923",
        ["all"],
    ),
    Published(
        "movielens",
        movielens,
        [int(row % 5 == 4) for row in range(ROWS)],
        "2006-05-17T15:34:04",
        ["all"],
    ),
]


def ingested(dataset: Published, data_settings: DataSettings, root: Path) -> pl.DataFrame:
    dataset.write(root)
    settings = data_settings.model_copy(update={"root": str(root), "dataset": dataset.name})
    described = load_dataset(settings, PARAMS / "datasets")
    report = ingest(settings, described, root / "windows", root / "oracle")
    assert (report.rows, report.quarantined) == (dataset.rows, 0)
    return pl.read_parquet(root / "windows" / "*" / "part-*.parquet").sort("example_id")


@pytest.mark.parametrize("dataset", DATASETS, ids=str)
def test_files_as_published_are_ingested_by_the_yaml(
    dataset: Published, data_settings: DataSettings, tmp_path: Path
) -> None:
    rows = ingested(dataset, data_settings, tmp_path)
    first = datetime.fromisoformat(dataset.first + ("" if "+" in dataset.first else "+00:00"))
    assert rows["event_time"].min() == round(first.timestamp() * 1000)
    assert sorted(rows["label"].to_list()) == sorted(dataset.clicks)
    assert Schema.load(tmp_path / "windows").domains == dataset.domains
    if dataset.name != "mind":  # whose rows are of mornings and evenings
        assert rows["label"].to_list() == dataset.clicks


def test_every_data_set_of_params_has_such_a_test() -> None:
    generated, others = {"synthetic", "synthetic_sparse"}, {"globo_clicks"}
    named = {path.stem for path in (PARAMS / "datasets").glob("*.yaml")}
    assert named - generated - others == {dataset.name for dataset in DATASETS}


def test_every_data_set_is_on_the_page_of_data_sets() -> None:
    """A line with its rows, base rate, time and licence, and where to get it with its traps."""
    page = (PARAMS.parent / "docs/datasets/README.md").read_text()
    line = r"^\| \[(.+?)\]\(#\S+\) \| `(\w+)` \|(?: [^|]+ \|){4}$"
    named = {yaml: title for title, yaml in re.findall(line, page, re.MULTILINE)}
    assert named.keys() == {dataset.name for dataset in DATASETS}
    for title in named.values():
        section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert "\n- Where: " in section and "\n- Traps: " in section, title


def test_taobao_s_rows_have_their_ad_s_and_user_s_columns(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    dataset = next(one for one in DATASETS if one.name == "taobao_ad")
    rows = ingested(dataset, data_settings, tmp_path)
    size = {one.name: one.num_embeddings for one in Schema.load(tmp_path / "windows").categorical}
    brand = hash_to_rows(pl.Series(["95471", None], dtype=pl.String), size["brand"]).to_list()
    assert rows["brand"].to_list() == brand * (ROWS // 2), "NULL is missing"
    ages = hash_to_rows(pl.Series(["5", "2", None], dtype=pl.String), 100).to_list()
    assert rows["age_level"].to_list() == ages * (ROWS // 3), "user 2 has no profile"
    assert rows["new_user_class_level"].n_unique() == 2


def test_ali_ccp_s_fields_are_columns_and_conversions_have_clicks(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    dataset = next(one for one in DATASETS if one.name == "ali_ccp")
    rows = ingested(dataset, data_settings, tmp_path)
    assert rows["field_205"].n_unique() == 5 and rows["field_216"].n_unique() == 1
    assert rows["field_301"].to_list() == [0] * ROWS  # no row has it
    # The third user has no common features
    assert [value == 0 for value in rows["field_101"]] == [False, False, True] * (ROWS // 3)
    assert rows["label_conversion"].to_list() == [row % 8 // 7 for row in range(ROWS)]
    assert rows["event_time"].is_sorted()


def test_a_conversion_of_criteo_is_known_at_its_own_time(
    data_settings: DataSettings, tmp_path: Path
) -> None:
    dataset = next(one for one in DATASETS if one.name == "criteo_attribution")
    rows = ingested(dataset, data_settings, tmp_path)
    delays = rows.group_by("label").agg((pl.col("label_time") - pl.col("event_time")).unique())
    assert dict(delays.rows()) == {0.0: [0], 1.0: [5_000_000]}
    assert rows["time_since_last_click"].null_count() == ROWS // 2, "-1 is missing"
