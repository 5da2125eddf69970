"""Embedding tables in weights.safetensors, mapped into memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.config import InputError
from recsys.files import damaged
from recsys.serving.export_format import REMEDY, SCALES, TABLES

DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "I64": np.int64}
HEADER_BYTES = 8


class Tables:
    """All tables of a model, concatenated: R rows of N values.

    They are memory-mapped: only pages that are looked up take memory, and processes share it. What
    :meth:`put` writes stays in this process.
    """

    def __init__(self, values: NDArray[Any], scales: NDArray[Any] | None) -> None:
        self.values, self.scales = values, scales
        self.dimension = values.shape[1]

    @classmethod
    def map(cls, path: Path) -> "Tables":
        """The tables in a weights.safetensors file.

        Raises:
            InputError: it is not a safetensors file.
        """
        values = read_array(path, TABLES)
        if values is None:
            raise InputError(f"{path}: holds no tables; rebuild it with {REMEDY}")
        return cls(values, read_array(path, SCALES))

    def look_up(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of any shape [...] -> their embeddings [..., N] float32."""
        found = self.values.take(rows, axis=0)
        if self.scales is not None:
            return np.multiply(found, self.scales.take(rows)[..., None], dtype=np.float32)
        return found.astype(np.float32, copy=False)

    def put(
        self, rows: NDArray[np.int64], values: NDArray[Any], scales: NDArray[np.float32] | None
    ) -> None:
        """Change ``rows`` [K] to the stored ``values`` [K, N] and, for int8, ``scales`` [K], in
        this process."""
        self.values[rows] = values
        if self.scales is not None:
            assert scales is not None, "rows of int8 have scales"
            self.scales[rows] = scales

    def own(self, rows: NDArray[np.int64]) -> None:
        """Copy the pages of ``rows`` into this process, so that :meth:`put` does not wait for that;
        concurrent readers see the same values."""
        self.values[rows] = self.values[rows]
        if self.scales is not None:
            self.scales[rows] = self.scales[rows]

    def takes(
        self, rows: NDArray[np.int64], values: NDArray[Any], scales: NDArray[np.float32] | None
    ) -> bool:
        """Whether these can be :meth:`put`: same type and width, and all rows exist."""
        return (
            values.dtype == self.values.dtype
            and values.shape == (len(rows), self.dimension)
            and (scales is None) == (self.scales is None)
            and (scales is None or len(scales) == len(rows))
            and (len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self.values)))
        )


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """A memory-mapped tensor of a safetensors file; None if the file does not have it.

    Raises:
        InputError: it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(HEADER_BYTES), "little")
            header = json.loads(file.read(length))
        return _mapped(path, header[name], HEADER_BYTES + length) if name in header else None
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise damaged(path, REMEDY, error) from error


def _mapped(path: Path, described: dict[str, object], start: int) -> NDArray[Any]:
    dtype, shape = DTYPES[str(described["dtype"])], tuple(described["shape"])  # type: ignore[arg-type]
    first, last = described["data_offsets"]  # type: ignore[misc]
    if first == last:
        return np.zeros(shape, dtype)
    mapped = np.memmap(path, dtype, mode="c", offset=start + first, shape=shape)
    return mapped.view(np.ndarray)  # look-ups are faster on a plain array
