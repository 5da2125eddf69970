"""Canaries: what recsys assumes of PyTorch, TorchRec and FBGEMM beyond what they promise.

One that fails after an upgrade says which assumption broke; docs/upstream.md says what is built on
it and what would replace it.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import comm
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbeddingBag
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    data_parallel,
    table_wise,
)
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.distributed.train_pipeline.train_pipelines import TrainPipelineSparseDist
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys import upstream
from recsys.training.optimizers import set_rates

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS, RATE = 6, 4, 0.5
SMALL = EmbeddingBagConfig(
    name="small", num_embeddings=2 * ROWS, embedding_dim=COLUMNS, feature_names=["second"]
)
LARGE = EmbeddingBagConfig(
    name="large", num_embeddings=ROWS, embedding_dim=COLUMNS, feature_names=["first", "third"]
)
IDS = KeyedJaggedTensor(
    ["first", "third", "second"], torch.tensor([1, 2, 3]), lengths=torch.ones(3, dtype=torch.int64)
)
# As private as those, though their names do not show it, or set by name
RISKY_STRINGS = {"_apply_split", "init_parameters", "preallocated_host_buffer"}
RISKY_NAMES = {"embedding_specs", "feature_table_map", "hash_size_cumsum", "weights_host"}
# Private names of a foreign class that a subclass of ours overrides or reads, by file
SUBCLASSES = {
    "sharding/communication.py": {"_is_fwd"},
    "training/checkpoint_memory.py": {"_slice_file"},
    "training/one_host.py": {"_store"},
    "training/overlap.py": {
        "_backward",
        "_model",
        "_module",
        "_optimizer_step",
        "_pipeline_model",
        "_pipelined_modules",
    },
}


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[distributed.ProcessGroup]:
    """A process group of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    distributed.init_process_group("gloo", store=upstream.HashStore(), rank=0, world_size=1)
    world = distributed.group.WORLD
    assert world is not None
    yield world
    distributed.destroy_process_group()
    comm._INTRA_PG = comm._CROSS_PG = None


def sharded_model(group: distributed.ProcessGroup, replicated: bool) -> DistributedModelParallel:
    """The two tables in TorchRec's own wrapper, with SGD in the backward pass."""
    collection = EmbeddingBagCollection(tables=[LARGE, SMALL], device=torch.device("meta"))
    upstream.apply_optimizer_in_backward(torch.optim.SGD, collection.parameters(), {"lr": RATE})
    sharder = cast(ModuleSharder[nn.Module], EmbeddingBagCollectionSharder())
    placed = data_parallel() if replicated else table_wise(rank=0, compute_kernel="fused")
    plan = construct_module_sharding_plan(
        collection,
        dict.fromkeys(("large", "small"), placed),
        sharder,
        local_size=1,
        world_size=1,
        device_type="cpu",
    )
    return DistributedModelParallel(
        nn.ModuleDict({"bags": collection}),
        env=ShardingEnv.from_process_group(group),
        device=torch.device("cpu"),
        plan=ShardingPlan({"bags": plan}),
        sharders=[sharder],
        init_data_parallel=False,
        init_parameters=False,
    )


def bags(model: DistributedModelParallel) -> ShardedEmbeddingBagCollection:
    found = model.module.get_submodule("bags")
    assert isinstance(found, ShardedEmbeddingBagCollection)
    return found


def kernels(model: DistributedModelParallel) -> list[upstream.TableKernel]:
    found = [module for lookup in bags(model)._lookups for module in lookup.modules()]
    return [module for module in found if isinstance(module, upstream.TableKernel)]


def weights_of(kernel: upstream.TableKernel) -> Tensor:
    assert isinstance(kernel.weights_host, Tensor)
    return kernel.weights_host.detach()


def kernel_of(rows: list[int]) -> upstream.TableKernel:
    return upstream.TableKernel(
        [(count, COLUMNS, EmbeddingLocation.HOST, ComputeDevice.CPU) for count in rows],
        feature_table_map=[0, 0, 1],
    )


def train(model: DistributedModelParallel) -> None:
    bags(model)(IDS).wait().values().sum().backward()


def test_an_optimizer_in_the_backward_pass_is_run_by_the_kernel_at_its_rate(
    group: distributed.ProcessGroup,
) -> None:
    model = sharded_model(group, replicated=False)
    (kernel,) = kernels(model)
    before = weights_of(kernel).clone()
    train(model)
    moved = (before - weights_of(kernel)).view(-1, COLUMNS)
    broken = "torch's _apply_optimizer_in_backward no longer decides what FBGEMM's kernels run"
    assert moved[[1, 2, ROWS + 3]].allclose(torch.tensor(RATE)), broken
    assert moved.count_nonzero() == 3 * COLUMNS, broken


def test_zero_grad_of_the_fused_optimizer_hands_the_kernels_their_rate(
    group: distributed.ProcessGroup,
) -> None:
    model = sharded_model(group, replicated=False)
    (kernel,) = kernels(model)
    before = weights_of(kernel).clone()
    set_rates(cast(torch.optim.Optimizer, model.fused_optimizer), [0.0])
    model.fused_optimizer.zero_grad()
    train(model)
    broken = "TorchRec's zero_grad of the fused optimiser no longer sets the kernels' learning rate"
    assert before.equal(weights_of(kernel)), broken


def test_lookups_of_replicated_tables_are_wrapped_in_ddp_and_can_be_taken_out(
    group: distributed.ProcessGroup,
) -> None:
    collection = bags(sharded_model(group, replicated=True))
    wrapped = [type(lookup) for lookup in collection._lookups]
    assert wrapped == [DistributedDataParallel], "TorchRec's _lookups no longer holds DDP's wrapper"
    upstream.unwrap_replicated_tables(collection)
    outputs = [collection(IDS).wait().values() for _ in range(2)]
    broken = "TorchRec's _lookups no longer holds what the forward pass calls"
    (outputs[0].sum() + outputs[1].sum()).backward()
    assert outputs[0].equal(outputs[1]), broken
    assert not any(isinstance(m, DistributedDataParallel) for m in collection._lookups), broken


def test_a_sharded_collection_knows_the_configuration_of_each_table(
    group: distributed.ProcessGroup,
) -> None:
    found = upstream.table_configs(bags(sharded_model(group, replicated=False)))
    broken = "TorchRec's _table_name_to_config no longer has each table's rows, columns, features"
    assert {
        name: (config.num_embeddings, config.embedding_dim, config.feature_names)
        for name, config in found.items()
    } == {
        config.name: (config.num_embeddings, config.embedding_dim, config.feature_names)
        for config in (LARGE, SMALL)
    }, broken


def test_a_collection_of_whole_tables_only_looks_up_and_names_what_it_found(
    group: distributed.ProcessGroup,
) -> None:
    collection = bags(sharded_model(group, replicated=False))
    expected = collection(IDS).wait()
    assert upstream.LookUpAlone.fits(collection), "TorchRec's plan has no table_wise, or more to do"
    alone = upstream.LookUpAlone(collection)
    alone(IDS)
    found = alone(IDS)
    broken = (
        "TorchRec's _lookups, grouped_configs, _embedding_names or _embedding_dims have changed"
    )
    assert found.keys() == expected.keys(), broken
    assert found.length_per_key() == expected.length_per_key(), broken
    assert found.values().equal(expected.values()), broken
    another_order = KeyedJaggedTensor(
        ["second", "third", "first"],
        torch.tensor([3, 2, 1]),
        lengths=torch.ones(3, dtype=torch.int64),
    )
    assert alone(another_order).values().equal(expected.values()), broken


def test_weights_of_a_sharded_collection_are_sharded_tensors_with_offsets(
    group: distributed.ProcessGroup,
) -> None:
    weight = bags(sharded_model(group, replicated=False)).state_dict()[
        "embedding_bags.large.weight"
    ]
    broken = "TorchRec's state_dict no longer holds torch's ShardedTensor"
    assert isinstance(weight, upstream.ShardedTensor), broken
    (shard,) = weight.local_shards()
    assert (list(shard.metadata.shard_offsets), shard.tensor.shape) == ([0, 0], (ROWS, COLUMNS))
    assert weight.metadata().size == (ROWS, COLUMNS), broken


def test_torchrec_keeps_the_groups_of_hosts_in_two_names(group: distributed.ProcessGroup) -> None:
    made = comm.intra_and_cross_node_pg()
    broken = "TorchRec's comm no longer keeps its groups of hosts in _INTRA_PG and _CROSS_PG"
    assert made == (comm._INTRA_PG, comm._CROSS_PG), broken
    upstream.forget_groups_of_other_hosts(1)
    assert made == (comm._INTRA_PG, comm._CROSS_PG), (
        "torch's _world.pg_map no longer knows the groups that live"
    )
    upstream.forget_groups_of_other_hosts(2)
    assert comm._INTRA_PG is None
    assert comm._CROSS_PG is None
    again = comm.intra_and_cross_node_pg()
    assert again[0] is not None
    assert again[0] is not made[0], broken


def test_a_group_that_was_destroyed_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for _ in range(2):
        distributed.init_process_group("gloo", store=upstream.HashStore(), rank=0, world_size=1)
        upstream.forget_groups_of_other_hosts(1)
        broken = "torch's _world.pg_map still knows the groups of a process group that has ended"
        assert comm._INTRA_PG is None, broken
        comm.intra_and_cross_node_pg()
        distributed.destroy_process_group()
    comm._INTRA_PG = comm._CROSS_PG = None


def test_a_cpu_kernel_has_its_tables_in_one_run_of_host_memory() -> None:
    kernel = kernel_of([ROWS, 2 * ROWS])
    broken = "FBGEMM's weights_host no longer holds all tables of a CPU kernel"
    assert kernel.use_cpu, "FBGEMM's use_cpu no longer says where a kernel runs"
    assert weights_of(kernel).numel() == 3 * ROWS * COLUMNS, broken
    assert upstream.table_shapes(kernel) == [(ROWS, COLUMNS), (2 * ROWS, COLUMNS)], (
        "FBGEMM's embedding_specs no longer begins with rows and columns"
    )
    assert upstream.feature_tables(kernel) == [0, 0, 1], (
        "FBGEMM's feature_table_map no longer has a table per feature"
    )


def test_first_rows_of_the_tables_end_with_the_end_of_the_last() -> None:
    first_rows = kernel_of([ROWS, 2 * ROWS]).hash_size_cumsum
    assert isinstance(first_rows, Tensor)
    assert first_rows.tolist() == [0, 0, ROWS, 3 * ROWS], (
        "FBGEMM's hash_size_cumsum no longer has each feature's first row and the end of the last"
    )


def test_new_kernels_take_the_memory_that_they_are_given(
    group: distributed.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Tensor, list[int]]] = []
    filled: list[nn.Module] = []
    monkeypatch.setattr(BaseBatchedEmbeddingBag, "init_parameters", lambda it: filled.append(it))

    def allocate(
        kernel: upstream.TableKernel, elements: int, dtype: torch.dtype, starts: list[int]
    ) -> Tensor:
        assert upstream.table_shapes(kernel), "FBGEMM's embedding_specs is not set in _apply_split"
        given.append((torch.zeros(elements, dtype=dtype), starts))
        return given[-1][0]

    with upstream.put_new_tables_in(allocate):
        (kernel,) = kernels(sharded_model(group, replicated=False))
    buffer, starts = given[0]
    assert weights_of(kernel).data_ptr() == buffer.data_ptr(), (
        "FBGEMM's _apply_split no longer takes preallocated_host_buffer"
    )
    assert starts == [0, ROWS * COLUMNS], "FBGEMM's split.offsets no longer begin each table"
    broken = "TorchRec's kernels no longer fill new tables by init_parameters"
    assert not filled, broken
    sharded_model(group, replicated=False)
    assert len(filled) == 1, broken
    assert len(given) == 1, "FBGEMM's _apply_split is not what it was before"


def test_a_fake_tensor_says_where_its_bytes_are_in_the_file(tmp_path: Path) -> None:
    path, value = tmp_path / "tensor.pt", torch.arange(7.0)
    torch.save(value, path)
    with path.open("rb") as file, upstream.FakeTensorMode():
        fake = torch.load(file, weights_only=True)
    start = upstream.offset_in_file(fake)
    content = bytearray(path.read_bytes())
    held = torch.frombuffer(content, dtype=torch.float32, count=7, offset=start)
    assert held.equal(value), "torch's _checkpoint_offset no longer is a place in the file"


def test_a_reader_of_checkpoints_cuts_a_tensor_out_of_its_file(
    group: distributed.ProcessGroup, tmp_path: Path
) -> None:
    del group
    save({"first": torch.ones(3), "second": torch.arange(5.0)}, checkpoint_id=tmp_path)
    reader = FileSystemReader(tmp_path)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    found = {}
    for index, info in reader.storage_data.items():
        with (tmp_path / info.relative_path).open("rb") as file:
            cut: Any = reader._slice_file(file, info)
            found[index.fqn] = torch.load(cut, weights_only=True)
    broken = "DCP's _slice_file no longer gives what torch.load reads"
    assert found["second"].equal(torch.arange(5.0)), broken


def test_a_placement_names_a_rank_and_a_shard_takes_another() -> None:
    shard = upstream.ShardMetadata([0, 0], [ROWS, COLUMNS], upstream.RemoteDevice("rank:1/cpu"))
    shard.placement = upstream.RemoteDevice("rank:3/cpu")
    spec = upstream.EnumerableShardingSpec([shard])
    (kept,) = spec.shards
    assert isinstance(kept.placement, upstream.RemoteDevice)
    assert kept.placement.rank() == 3, "torch's _remote_device no longer knows its rank"


def test_a_dispatch_mode_sees_an_all_to_all_with_what_it_sends(
    group: distributed.ProcessGroup,
) -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []

    class Seen(upstream.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "c10d":
                seen.append((func.name(), args))
            return func(*args, **(kwargs or {}))

    sent = torch.arange(3.0)
    with Seen():
        distributed.all_to_all_single(torch.empty(3), sent, [3], [3], group=group)
    ((name, arguments),) = seen
    broken = "torch's alltoall_base_ has other arguments than (output, input, group, splits...)"
    assert name.endswith("alltoall_base_"), broken
    assert arguments[1] is sent, broken
    assert distributed.ProcessGroup.unbox(arguments[2]).size() == 1, broken
    assert arguments[4] == [3], broken


def test_stores_keep_values_apart_by_prefix() -> None:
    store: upstream.Store = upstream.HashStore()
    upstream.PrefixStore("attempt-1", store).set("address", "here")
    assert upstream.PrefixStore("attempt-1", store).get("address") == b"here"
    assert not upstream.PrefixStore("attempt-2", store).check(["address"]), (
        "torch's PrefixStore no longer keeps the keys of attempts apart"
    )


def test_the_static_rendezvous_keeps_its_store_which_knows_its_port() -> None:
    meeting = StaticTCPRendezvous("127.0.0.1", 0, rank=0, world_size=1, run_id="r", timeout=30)
    meeting.next_rendezvous()
    broken = "torch's StaticTCPRendezvous no longer keeps a TCPStore as _store"
    assert isinstance(meeting._store, upstream.TCPStore), broken
    assert meeting._store.port > 0


def test_a_codec_knows_its_direction() -> None:
    directions = [QuantizedCommCodec(SparseType.FP16, is_fwd=way)._is_fwd for way in (True, False)]
    assert directions == [True, False], "FBGEMM's codec no longer keeps its direction as _is_fwd"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_pipeline_model", ["batch", "context", "pipelined_forward"]),
        ("_backward", ["losses"]),
        ("_optimizer_step", []),
    ],
)
def test_torchrecs_pipeline_has_the_steps_that_ours_replaces(
    method: str, parameters: list[str]
) -> None:
    broken = f"TorchRec's TrainPipelineSparseDist.{method} has gone or takes other arguments"
    found = inspect.signature(getattr(TrainPipelineSparseDist, method, lambda: None)).parameters
    assert list(found) == ["self", *parameters], broken
    assert f"self.{method}(" in inspect.getsource(TrainPipelineSparseDist), broken


def test_torchrecs_pipeline_keeps_its_model_and_its_modules(
    group: distributed.ProcessGroup,
) -> None:
    model = sharded_model(group, replicated=False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
    assert pipeline._model is model, "TorchRec's pipeline no longer keeps its model as _model"
    assert pipeline._pipelined_modules == [], (
        "TorchRec's pipeline no longer keeps what it runs ahead as _pipelined_modules"
    )


def test_a_pipelined_forward_keeps_its_module() -> None:
    source = inspect.getsource(PipelinedForward.__mro__[1].__init__)
    assert "self._module = module" in source, "TorchRec's PipelinedForward has no _module"


def private_uses(path: Path) -> tuple[set[str], set[str]]:
    """Private names that a file takes from others: those of any object or module but itself, and
    those of ``self`` that no class in it defines."""
    foreign, own_read, own_defined = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            foreign |= {part for part in parts if is_private(part)}
        elif isinstance(node, ast.Attribute) and node.attr in RISKY_NAMES:
            foreign.add(node.attr)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                foreign.add(node.attr)
            elif isinstance(node.ctx, ast.Store):
                own_defined.add(node.attr)
            else:
                own_read.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            own_defined.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own_defined.add(node.target.id)
        elif isinstance(node, ast.Constant) and node.value in RISKY_STRINGS:
            foreign.add(str(node.value))
    # Another object of a class defined here is no stranger; os._exit is Python's.
    return foreign - own_defined - {"_exit"}, own_read - own_defined


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def test_private_names_are_used_in_one_file_and_listed() -> None:
    listed = (ROOT / "docs" / "upstream.md").read_text()
    for path in sorted((ROOT / "recsys").rglob("*.py")):
        name = path.relative_to(ROOT / "recsys").as_posix()
        foreign, inherited = private_uses(path)
        if name == "upstream.py":
            missing = {use for use in foreign if use not in listed}
            assert not missing, f"docs/upstream.md does not list {sorted(missing)}"
            continue
        assert not foreign, f"recsys/{name} uses {sorted(foreign)}; go through recsys/upstream.py"
        allowed = SUBCLASSES.get(name, set())
        assert inherited <= allowed, f"recsys/{name} inherits {sorted(inherited - allowed)}"
        missing = {use for use in allowed if use not in listed}
        assert not missing, f"docs/upstream.md does not list {sorted(missing)}"
