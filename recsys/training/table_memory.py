"""Where this rank keeps tables and their optimiser state, and the precision of their rows."""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType

from recsys.config import InputError
from recsys.sharding.plan import bag_collections
from recsys.training.settings import TrainSettings
from recsys.units import BYTES_PER_GIB
from recsys.upstream import TableKernel, feature_tables, put_new_tables_in, table_shapes

PRECISIONS = {"fp32": (DataType.FP32, torch.float32), "fp16": (DataType.FP16, torch.float16)}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def set_table_precision(model: nn.Module, settings: TrainSettings) -> None:
    """Give the tables of a meta model the precision ``table_precision``.

    FBGEMM computes, outputs and keeps optimiser state in float32. An updated row is rounded to
    nearest, and so is the update itself, except with row-wise AdaGrad. An update below half of a
    row's last bit is lost: FBGEMM's stochastic rounding, which would keep it on average, silently
    does nothing on the CPU.

    Raises:
        InputError: a table is data_parallel and fp16, which has no kernel.
    """
    data_type, dtype = PRECISIONS[settings.table_precision]
    kinds = {settings.sharding, *settings.table_sharding.values()}
    if settings.table_precision == "fp16" and "data_parallel" in kinds:
        raise InputError(
            f"{settings.where('table_precision')}: fp16 has no kernel for data_parallel tables; "
            "use fp32, or split them another way in sharding and table_sharding"
        )
    for module in bag_collections(model).values():
        for config in module.embedding_bag_configs():
            config.data_type = data_type
        module.to(dtype)


class TableFiles:
    """Memory-mapped files with this rank's tables and their optimiser state, one per kernel and
    kind of state.

    They are unnamed, so they disappear with the process, however it ends: a killed run can only
    resume from its last checkpoint. Their space is reserved at creation, so that a full disk is an
    error then, not a SIGBUS in the middle of a step. The kernel's page cache keeps hot pages in
    memory; it reads single pages (MADV_RANDOM), since the neighbours of a row are not looked up
    next.

    Args:
        folder: a folder on the disk to use.
        where: where the user finds its name.

    Raises:
        InputError: the folder cannot be created or written.
    """

    def __init__(self, folder: Path, where: str = "table_file_dir") -> None:
        self.folder = folder
        self._where = where
        self._mappings: list[mmap.mmap] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise self._refusal(error) from error

    def zeros(self, count: int, dtype: torch.dtype) -> Tensor:
        """[count] zeros in a new file.

        Raises:
            InputError: the disk has no room for it.
        """
        mapping = self._new(count * dtype.itemsize)
        mapping.madvise(mmap.MADV_RANDOM)
        self._mappings.append(mapping)
        return torch.frombuffer(mapping, dtype=dtype)

    def copy(self, value: Tensor) -> Tensor:
        """A float32 copy in a file that lives as long as the tensor.

        Raises:
            InputError: the disk has no room for it.
        """
        mapping = self._new(value.numel() * torch.float32.itemsize)
        return torch.frombuffer(mapping, dtype=torch.float32).view(value.shape).copy_(value)

    def flush(self) -> None:
        """Write every changed page to disk, so that its memory can be reclaimed at once."""
        for mapping in self._mappings:
            mapping.flush()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Read ahead while whole tables are read or written from first to last."""
        self._advise(mmap.MADV_SEQUENTIAL)
        try:
            yield
        finally:
            self._advise(mmap.MADV_RANDOM)

    @contextmanager
    def hold_new_tables(self) -> Iterator[None]:
        """Make FBGEMM put tables created in this context, and their state, into files, filled with
        zeros."""

        def in_file(
            kernel: TableKernel, elements: int, dtype: torch.dtype, starts: list[int]
        ) -> Tensor:
            buffer = self.zeros(elements, dtype)
            pages = RowPages(kernel, self._mappings[-1], starts, dtype.itemsize)
            kernel.register_forward_pre_hook(pages.ask_for, with_kwargs=True)
            return buffer

        with put_new_tables_in(in_file):
            yield

    def _new(self, size: int) -> mmap.mmap:
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise self._refusal(error, size) from error

    def _advise(self, advice: int) -> None:
        for mapping in self._mappings:
            mapping.madvise(advice)

    def _refusal(self, error: OSError, size: int = 0) -> InputError:
        what = f"{self._where}: {self.folder}"
        if error.errno in FULL:
            free = shutil.disk_usage(self.folder).free / BYTES_PER_GIB
            return InputError(
                f"{what}: no room for a file of {size / BYTES_PER_GIB:.2f} GiB ({free:.2f} GiB "
                f"free); "
                "free some, name a folder on another disk, or shrink the tables"
            )
        return InputError(f"{what}: cannot be written ({error.strerror}); name a folder that can")


class RowPages:
    """Finds the pages of a file that contain the rows of a look-up.

    Args:
        module: the kernel whose tables, or table state, are in the file.
        mapping: the memory map of the file.
        starts: the start of each table in the file, in elements.
        element_bytes: size of an element.
    """

    def __init__(
        self,
        module: TableKernel,
        mapping: mmap.mmap,
        starts: list[int],
        element_bytes: int,
    ) -> None:
        tables = table_shapes(module)
        rowwise = len(mapping) == sum(rows for rows, _ in tables) * element_bytes
        self._mapping = mapping
        self._starts = [start * element_bytes for start in starts]
        self._row_bytes = [(1 if rowwise else columns) * element_bytes for _, columns in tables]
        self._tables = feature_tables(module)

    def ask_for(self, _module: nn.Module, _: Any, lookup: dict[str, Tensor]) -> None:
        """Start reading all pages of a look-up at once, before the kernel faults on one after the
        other."""
        for page in self.of(lookup["indices"], lookup["offsets"]).tolist():
            self._mapping.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)

    def of(self, indices: Tensor, offsets: Tensor) -> np.ndarray:
        """The distinct pages [P] int64, in order, for ids [N] in bags given by ``offsets`` [F * B +
        1]."""
        bounds = offsets[:: (offsets.numel() - 1) // len(self._tables)].tolist()
        pages = []
        for table, start, stop in zip(self._tables, bounds, bounds[1:], strict=False):
            first = self._starts[table] + indices[start:stop].numpy() * self._row_bytes[table]
            pages += [first // mmap.PAGESIZE, (first + self._row_bytes[table] - 1) // mmap.PAGESIZE]
        return np.unique(np.concatenate(pages))
