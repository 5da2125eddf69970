"""fp16 tables, and tables in files: the same bits as in memory, through kills, full disks and
checkpoints."""

import errno
import mmap
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from recsys.config import InputError
from recsys.models.factory import build_ranker
from recsys.models.ranker import Ranker
from recsys.sharding.plan import table_bytes
from recsys.training import table_memory
from recsys.training.engine import Engine
from recsys.training.launch import PRELOAD, RankKilledError, run_on_ranks
from recsys.training.resume import Checkpoints, Position
from recsys.training.settings import TrainSettings
from recsys.training.table_memory import RowPages
from tests.support.engines import everything
from tests.support.launches import Case, run_cases
from tests.support.sharded import FEATURES, MODEL, SCHEMA, SEED, SIZES, share, train_settings

STEPS = 6
EPSILON = 1e-8
LARGE_ROWS, LARGE_DIMENSION = 800_000, 64  # 205 MB; initial rows are drawn in blocks of 17 MB
WATCH_S = 0.001
HALF_STEP = 2.0**-10  # of values below 1: twice the error of rounding to fp16 once
PLANS = [
    {"sharding": "table_wise", "table_optimizer": "rowwise_adagrad"},
    {"sharding": "row_wise", "table_optimizer": "rowwise_adagrad"},
    {"sharding": "column_wise", "table_optimizer": "adagrad"},
    {"sharding": "planner", "table_optimizer": "sgd"},
    {"sharding": "row_wise", "table_optimizer": "rowwise_adagrad", "table_precision": "fp16"},
    {"table_sharding": {"table_color": "data_parallel"}, "table_optimizer": "adagrad"},
]


def in_files(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**settings, "table_memory": "file", "table_file_dir": folder}


def make_engine(changes: dict[str, Any], seed: int = SEED) -> Engine:
    settings = train_settings(distributed.get_world_size(), **changes)
    return Engine(build_ranker(SCHEMA, MODEL, None, seed, "meta"), settings, seed)


def train_steps(engine: Engine, first: int, last: int) -> None:
    for step in range(first, last):
        batch = share(SIZES[step % len(SIZES)], step, engine.rank, engine.world_size)
        engine.train_step(batch, engine.serving_loss)


def train(plans: list[dict[str, Any]]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A plan: everything that a checkpoint would hold, and the gathered weights."""
    found = []
    for changes in plans:
        engine = make_engine(changes)
        train_steps(engine, 0, STEPS)
        found.append((everything(engine), engine.gather_state()))
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.parametrize("world_size", [1, 2])
def test_tables_in_files_have_the_bits_of_tables_in_memory(world_size: int, tmp_path: Path) -> None:
    plans = {"memory": PLANS, "files": [in_files(plan, tmp_path / "files") for plan in PLANS]}
    results = run_cases(train, {name: (world_size, (tables,)) for name, tables in plans.items()})
    expected, found = results["memory"][0], results["files"][0]
    for (state, weights), (expected_state, expected_weights) in zip(found, expected, strict=True):
        assert_equal(state, expected_state)
        assert_equal(weights, expected_weights)


def mapped_files() -> list[str]:
    """Names in /proc of the files that back what this process has mapped of deleted files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if "(deleted)" in line]


def look_at_memory(changes: dict[str, Any]) -> tuple[int, list[Path], int]:
    engine = make_engine(changes)
    train_steps(engine, 0, 1)
    folder = Path(changes["table_file_dir"])
    backed = [name for name in mapped_files() if name.startswith(str(folder))]
    values = [
        s.tensor
        for t in engine._model.state_dict().values()
        if hasattr(t, "local_shards")
        for s in t.local_shards()
    ]
    bounds = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    inside = [any(int(a, 16) <= v.data_ptr() < int(b, 16) for a, b in bounds) for v in values]
    assert values and all(inside)
    return (
        len(backed),
        list(folder.iterdir()),
        sum(map(len, engine._files._mappings)) if engine._files else 0,
    )


def test_rows_and_their_state_are_in_nameless_files(tmp_path: Path) -> None:
    mapped, names, size = run_on_ranks(
        look_at_memory, (in_files(PLANS[0], tmp_path / "files"),), 1, 1
    )[0]
    rows = sum(feature.num_embeddings for feature in SCHEMA.categorical)
    assert mapped == 4  # rows and moments of the tables that sum, and of those that average
    assert names == []
    assert size == rows * (MODEL.embedding_dimension + 1) * 4


class PeakMemory(threading.Thread):
    """Watches this process's anonymous memory until it is asked for the most that was added to
    it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._first = self._peak = self._now()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(WATCH_S):
            self._peak = max(self._peak, self._now())

    def added(self) -> int:
        self._ended.set()
        self.join()
        return self._peak - self._first

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def watch_memory(changes: dict[str, Any], folder: Path) -> dict[str, int]:
    """Bytes of anonymous memory that each thing adds at most, with two large tables in one
    kernel."""
    large = [replace(f, num_embeddings=LARGE_ROWS) for f in SCHEMA.categorical if f.kind == "id"][
        :2
    ]
    small = [f for f in SCHEMA.categorical if f.name not in {feature.name for feature in large}]
    features = sorted([*large, *small], key=lambda feature: list(FEATURES).index(feature.name))
    schema = replace(SCHEMA, categorical=features)
    model = MODEL.model_copy(update={"embedding_dimension": LARGE_DIMENSION})
    found = {}
    peak = PeakMemory()
    engine = Engine(
        build_ranker(schema, model, None, SEED, "meta"), train_settings(1, **changes), SEED
    )
    found["build"] = peak.added()
    train_steps(engine, 0, 1)
    for name, action in (("save", engine.save), ("load", engine.load)):
        peak = PeakMemory()
        action(folder)
        found[name] = peak.added()
    return found


def test_no_table_is_copied_into_anonymous_memory(tmp_path: Path) -> None:
    changes = in_files(PLANS[0], tmp_path / "files")
    for name, added in run_on_ranks(watch_memory, (changes, tmp_path / "saved"), 1, 1)[0].items():
        assert added < LARGE_ROWS * LARGE_DIMENSION * 4, name


class Kernel:
    """Two tables of 1024 rows of 64 floats, the second read by two features."""

    embedding_specs: ClassVar = [(1024, 64), (1024, 64)]
    feature_table_map: ClassVar = [0, 1, 1]


class Mapping:
    """Writes down what the operating system is asked for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return self.size

    def madvise(self, advice: int, start: int, length: int) -> None:
        self.calls.append((advice, start, length))


def test_a_lookup_asks_for_the_pages_of_its_rows_and_no_others() -> None:
    rows_per_page = mmap.PAGESIZE // (64 * 4)
    first, second, third = [0, 1, rows_per_page], [0], [rows_per_page * 3, 1023]
    indices = torch.tensor([*first, *second, *third])
    offsets = torch.tensor([0, 1, 3, 4, 4, 5, 6])  # bags of two examples, feature by feature
    pages_per_table = 1024 // rows_per_page
    for columns, expected in (
        (64, [0, 1, *(pages_per_table + page for page in (0, 3, pages_per_table - 1))]),
        (1, [0, 1]),
    ):
        asked = Mapping(2 * 1024 * columns * 4)  # rows, then one moment a row
        pages = RowPages(cast(Any, Kernel()), cast(Any, asked), [0, 1024 * columns], 4)
        pages.ask_for(nn.Module(), (), {"indices": indices, "offsets": offsets})
        size = mmap.PAGESIZE
        assert asked.calls == [(mmap.MADV_WILLNEED, page * size, size) for page in expected]


def train_with_checkpoints(
    changes: dict[str, Any], folder: Path, die_in: int | None
) -> dict[str, Tensor]:
    """Train STEPS steps with a checkpoint after every second; die in the middle of step
    ``die_in``."""
    engine = make_engine(changes)
    checkpoints = Checkpoints(folder, "run", keep=2, every_batches=2)
    start = checkpoints.restore(engine)
    for step in range(start.batches, STEPS):
        if step == die_in:
            # Tables are updated, the rest not
            engine._average_gradients = lambda: os.kill(os.getpid(), signal.SIGKILL)
        train_steps(engine, step, step + 1)
        if checkpoints.due(step + 1):
            checkpoints.save(engine, Position(batches=step + 1))
    return everything(engine)


def run_alone(changes: dict[str, Any], folder: Path, die_in: int | None) -> None:
    run_on_ranks(train_with_checkpoints, (changes, folder, die_in), 1, 1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_killed_in_a_step_ends_with_the_bits_of_an_undisturbed_one(
    world_size: int, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    changes = in_files(PLANS[1], files)
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    expected = run_on_ranks(
        train_with_checkpoints, (PLANS[1], tmp_path / "calm", None), world_size, 1
    )[0]
    if world_size == 1:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        process = context.Process(target=run_alone, args=(changes, tmp_path / "killed", 3))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    else:
        with pytest.raises(RankKilledError):
            run_on_ranks(train_with_checkpoints, (changes, tmp_path / "killed", 3), world_size, 1)
    assert list(files.iterdir()) == []
    assert [
        path.name for path in (tmp_path / "killed").iterdir() if "partial" not in path.name
    ] == ["000000-000000002"]
    state = run_on_ranks(
        train_with_checkpoints, (changes, tmp_path / "killed", None), world_size, 1
    )[0]
    assert_equal(state, expected)


def save_and_load(
    first: dict[str, Any], second: dict[str, Any], folder: Path
) -> list[dict[str, Tensor]]:
    engine = make_engine(first)
    train_steps(engine, 0, 2)
    engine.save(folder)
    other = make_engine(second, SEED + 1)
    other.load(folder)
    return [everything(engine), everything(other)]


def test_checkpoints_move_between_files_memory_and_plans(tmp_path: Path) -> None:
    cases: dict[tuple[str, str], Case] = {}
    for precision in ("fp32", "fp16"):
        rows = in_files({**PLANS[1], "table_precision": precision}, tmp_path / "files")
        whole = {**PLANS[0], "table_precision": precision}
        cases[precision, "to memory"] = 2, (rows, whole, tmp_path / f"{precision} of files")
        cases[precision, "to files"] = 2, (whole, rows, tmp_path / f"{precision} of memory")
    for name, ranks in run_cases(save_and_load, cases).items():
        saved, loaded = ranks[0]
        assert saved and loaded.keys() == saved.keys(), name
        assert [key for key, value in saved.items() if not torch.equal(value, loaded[key])] == [], (
            name
        )


def save_both(changes: dict[str, Any], folder: Path) -> None:
    for name, choice in (("memory", changes), ("files", in_files(changes, folder / "scratch"))):
        engine = make_engine(choice)
        train_steps(engine, 0, 2)
        engine.save(folder / name)


def test_checkpoints_from_files_are_the_bytes_of_those_from_memory(tmp_path: Path) -> None:
    run_on_ranks(save_both, (PLANS[0], tmp_path), 1, 1)
    names = sorted(path.name for path in (tmp_path / "memory").iterdir())
    assert "__0_0.distcp" in names
    for name in names:
        assert (tmp_path / "memory" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()


def build(changes: dict[str, Any]) -> None:
    make_engine(changes)


def test_unwritable_folder_and_full_disk_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(
        InputError, match=r"key 'table_file_dir': .*taken: cannot be written \(.*\); name a folder"
    ) as caught:
        run_on_ranks(build, (in_files(PLANS[0], tmp_path / "taken"),), 1, 1)
    assert "\n" not in str(caught.value)

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(table_memory.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for a file of .* GiB \(.* GiB free\)") as caught:
        run_on_ranks(build, (in_files(PLANS[0], tmp_path / "files"),), 1, 1)
    assert "\n" not in str(caught.value)


def test_memory_gb_bounds_what_is_in_memory(tmp_path: Path) -> None:
    small = {"memory_gb": 1e-6}
    for plan in ({"sharding": "table_wise"}, {"sharding": "planner"}):
        with pytest.raises(InputError, match="key 'memory_gb': the tables do not fit"):
            run_on_ranks(build, ({**plan, **small},), 1, 1)
        run_on_ranks(build, (in_files({**plan, **small}, tmp_path / "files"),), 1, 1)
    # Every rank holds these in memory
    with pytest.raises(InputError, match="key 'memory_gb': the tables do not fit"):
        run_on_ranks(
            build, (in_files({"sharding": "data_parallel", **small}, tmp_path / "files"),), 1, 1
        )


def fp16_reference(table_optimizer: str, settings: TrainSettings) -> dict[str, Tensor]:
    """One process and plain PyTorch: float32 arithmetic, rows rounded to fp16 at the start and
    after each step.

    SGD and AdaGrad round the change of a row as well, before they subtract it; row-wise AdaGrad
    does not.
    """
    ranker = build_ranker(SCHEMA, MODEL, None, SEED)
    tables = [p for n, p in ranker.named_parameters() if n.startswith("embeddings.")]
    dense = [p for n, p in ranker.named_parameters() if not n.startswith("embeddings.")]
    start = settings.initial_accumulator / settings.global_batch_size**2
    sums = [torch.full_like(table, start) for table in tables]
    with torch.no_grad():
        for table in tables:
            table.copy_(table.half())
    for step in range(STEPS):
        batch = share(SIZES[step % len(SIZES)], step, 0, 1)
        logit = ranker(batch.dense, batch.sparse)["serving"]
        ranker.zero_grad()
        binary_cross_entropy_with_logits(logit, batch.label).backward()
        with torch.no_grad():
            for parameter in dense:
                assert parameter.grad is not None
                parameter -= settings.dense_learning_rate * parameter.grad
            for table, total in zip(tables, sums, strict=True):
                assert table.grad is not None
                gradient = table.grad
                if table_optimizer != "sgd":
                    square = gradient.square()
                    total += (
                        square.mean(dim=1, keepdim=True)
                        if table_optimizer == "rowwise_adagrad"
                        else square
                    )
                    gradient = gradient / (total.sqrt() + EPSILON)
                change = settings.table_learning_rate * gradient
                table.copy_(
                    (
                        table - (change if table_optimizer == "rowwise_adagrad" else change.half())
                    ).half()
                )
    return ranker.state_dict()


@pytest.mark.parametrize("world_size", [1, 2])
def test_fp16_tables_follow_a_reference_that_rounds_after_each_step(world_size: int) -> None:
    optimizers = {"sgd": "table_wise", "adagrad": "column_wise", "rowwise_adagrad": "row_wise"}
    plans = [
        {"sharding": kind, "table_optimizer": name, "table_precision": "fp16"}
        for name, kind in optimizers.items()
    ]
    for name, (_, weights) in zip(
        optimizers, run_on_ranks(train, (plans,), world_size, 1)[0], strict=True
    ):
        expected = fp16_reference(name, train_settings(1))
        for key, value in expected.items():
            if "embedding_bags" not in key:
                torch.testing.assert_close(weights[key], value, rtol=0, atol=HALF_STEP, msg=key)
                continue
            assert torch.equal(weights[key], weights[key].half().float())
            difference = (weights[key] - value).abs()
            assert difference.max() <= HALF_STEP  # a rounding that falls the other way, a step
            assert (difference == 0).float().mean() > 0.9


def dtypes(changes: dict[str, Any]) -> tuple[set[torch.dtype], set[torch.dtype], torch.dtype]:
    """Of rows, of their optimiser state, and of what a lookup gives out."""
    engine = make_engine(changes)
    train_steps(engine, 0, 1)
    state = engine.state()
    rows = {value.dtype for name, value in state["model"].items() if "embedding_bags" in name}
    moments = {value.dtype for table in state["tables"].values() for value in table.values()}
    model = engine.module
    assert isinstance(model, Ranker)
    return rows, moments, model.embed(share(4, 0, 0, 1).sparse).dtype


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad"])
def test_only_the_rows_of_fp16_tables_are_fp16(optimizer: str) -> None:
    changes = {"sharding": "table_wise", "table_optimizer": optimizer, "table_precision": "fp16"}
    assert run_on_ranks(dtypes, (changes,), 1, 1)[0] == (
        {torch.float16},
        {torch.float32},
        torch.float32,
    )


def initial(changes: dict[str, Any]) -> dict[str, Tensor]:
    return make_engine(changes).gather_state()


def test_fp16_tables_start_at_the_fp32_rows_rounded() -> None:
    expected = run_on_ranks(initial, ({"sharding": "row_wise"},), 2, 1)[0]
    found = run_on_ranks(initial, ({"sharding": "table_wise", "table_precision": "fp16"},), 1, 1)[0]
    for name, value in expected.items():
        assert torch.equal(found[name], value.half().float() if "embedding_bags" in name else value)


@pytest.mark.parametrize(
    ("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 4), ("adagrad", 64)]
)
def test_bytes_of_fp16_tables_are_half_the_rows_and_all_of_the_state(
    optimizer: str, state: int
) -> None:
    config = EmbeddingBagConfig(name="t", embedding_dim=16, num_embeddings=10, feature_names=["f"])
    for precision, row in (("fp32", 64), ("fp16", 32)):
        settings = train_settings(1, table_optimizer=optimizer, table_precision=precision)
        assert table_bytes(config, settings) == 10 * (row + state)


def test_replicated_fp16_tables_are_refused() -> None:
    for changes in (
        {"sharding": "data_parallel"},
        {"table_sharding": {"table_shop": "data_parallel"}},
    ):
        with pytest.raises(ValueError, match="fp16 has no kernel for data_parallel"):
            run_on_ranks(build, ({**changes, "table_precision": "fp16"},), 1, 1)
