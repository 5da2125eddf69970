"""Checkpoints without a second copy of a table in memory: written from where it lies, read from
where it lies."""

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
    """Hands out part of a buffer (a table of a kernel) as a buffer of its own, which DCP would
    clone."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """What is written for ``write_item``; the same bytes."""
        if (
            isinstance(object, Tensor)
            and object.is_contiguous()
            and object.dtype in (torch.float32, torch.float16)
        ):
            return torch.from_numpy(object.detach().cpu().numpy())
        return super().transform_object(write_item, object)


class MappedReader(FileSystemReader):
    """Reads tensors through a mapping of their file, where DCP would load each whole into memory
    first."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what ``plan`` names."""
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
        """What ``item`` is part of, as it lies in its file."""
        info = self.storage_data[item.storage_index]
        path = Path(self.path) / info.relative_path
        with path.open("rb") as file, FakeTensorMode():
            fake = torch.load(
                cast(Any, self._slice_file(file, info)), map_location="cpu", weights_only=True
            )
        if fake.numel() == 0:
            return torch.empty(fake.shape, dtype=fake.dtype)
        with path.open("rb") as file:
            # Torch warns of memory that it may not write
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapping.madvise(mmap.MADV_SEQUENTIAL)
        start = info.offset + offset_in_file(fake)
        return torch.frombuffer(mapping, dtype=fake.dtype, count=fake.numel(), offset=start).view(
            fake.shape
        )
