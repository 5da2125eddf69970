"""Checkpoints without a second copy of a table in memory: tables are written and read in place."""

import mmap
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    WriteItem,
)
from torch.futures import Future

from recsys.upstream import FakeTensorMode, offset_in_file


class InPlacePlanner(DefaultSavePlanner):
    """Writes a part of a buffer (one table of a kernel) directly, where DCP would clone it."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """The object to write for ``write_item``; the bytes stay the same."""
        if (
            isinstance(object, Tensor)
            and object.is_contiguous()
            and object.dtype in (torch.float32, torch.float16)
        ):
            return torch.from_numpy(object.detach().cpu().numpy())
        return super().transform_object(write_item, object)


class MappedReader(FileSystemReader):
    """Reads tensors through a memory map of their file, where DCP would first load each one
    whole."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors named in ``plan``."""
        tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        for item in tensors:
            target = planner.resolve_tensor(item).detach()
            part = self._tensor(item)
            for dimension, start in enumerate(item.storage_offsets):
                part = part.narrow(dimension, start, item.lengths[dimension])
            target.copy_(part)
            planner.commit_tensor(item, target)
        rest = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        return super().read_data(LoadPlan(rest, plan.storage_data, plan.planner_data), planner)

    def _tensor(self, item: ReadItem) -> Tensor:
        """The tensor that contains ``item``, mapped from its file."""
        info = self.storage_data[item.storage_index]
        path = Path(self.path) / info.relative_path
        with path.open("rb") as file, FakeTensorMode():
            fake = torch.load(
                cast(Any, self._slice_file(file, info)), map_location="cpu", weights_only=True
            )
        if fake.numel() == 0:
            return torch.empty(fake.shape, dtype=fake.dtype)
        with path.open("rb") as file:
            # Torch warns about memory that it may not write
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapping.madvise(mmap.MADV_SEQUENTIAL)
        start = info.offset + offset_in_file(fake)
        return torch.frombuffer(mapping, dtype=fake.dtype, count=fake.numel(), offset=start).view(
            fake.shape
        )
