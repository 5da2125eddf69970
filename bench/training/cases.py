"""What the training benchmark compares: models, contenders, and one measurement as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from recsys.models.settings import ModelSettings

FLOAT_BYTES = 4
SEED = 1
DENSE_LAYERS = [512, 256]
OVER_LAYERS = [1024, 1024, 512, 256]
CROSS_LAYERS, CROSS_RANK = 3, 512
ADAGRAD_RATE, ADAM_RATE = 0.05, 0.001
# Copies of a table that are alive at the peak of a step: weights, dense gradient, optimiser state.
TABLE_COPIES = {"rowwise_adagrad": 1, "adagrad": 3, "adam": 4}


@dataclass(frozen=True)
class Contender:
    """Who trains: ``kind`` on ``ranks`` processes of ``threads`` OpenMP threads each.

    ``wire16``: embeddings cross the ranks as fp16, gradients as bf16.
    """

    kind: Literal["engine", "plain", "sparse", "torchrec", "fuxictr", "deepctr"]
    optimizer: Literal["rowwise_adagrad", "adagrad", "adam"]
    ranks: int = 1
    threads: int = 2
    bf16: bool = False
    wire16: bool = False


CONTENDERS = {
    "engine-1x1-fp32": Contender("engine", "rowwise_adagrad", threads=1),
    "engine-1x2-fp32": Contender("engine", "rowwise_adagrad"),
    "engine-2x1-fp32": Contender("engine", "rowwise_adagrad", ranks=2, threads=1),
    "engine-1x1-bf16": Contender("engine", "rowwise_adagrad", threads=1, bf16=True),
    "engine-1x2-bf16": Contender("engine", "rowwise_adagrad", bf16=True),
    "engine-2x1-bf16": Contender("engine", "rowwise_adagrad", ranks=2, threads=1, bf16=True),
    "engine-2x1-bf16-wire16": Contender(
        "engine", "rowwise_adagrad", ranks=2, threads=1, bf16=True, wire16=True
    ),
    "plain-adagrad": Contender("plain", "adagrad"),
    "plain-adam": Contender("plain", "adam"),
    "sparse-1x1": Contender("sparse", "rowwise_adagrad", threads=1),
    "sparse-1x2": Contender("sparse", "rowwise_adagrad"),
    "torchrec-1x1": Contender("torchrec", "rowwise_adagrad", threads=1),
    "torchrec-1x2": Contender("torchrec", "rowwise_adagrad"),
    "fuxictr-adam": Contender("fuxictr", "adam"),
    "deepctr-adam": Contender("deepctr", "adam"),
}


# Packages in the folder of peers, by kind of contender
PEERS = {"fuxictr": "fuxictr", "deepctr": "deepctr_torch"}


@dataclass(frozen=True)
class Model:
    """What is trained, and the global batch."""

    architecture: Literal["dlrm", "dcn"]
    dimension: int
    batch_size: int
    table_rows: int

    def settings(self) -> ModelSettings:
        """The ranker: MLPerf's layer widths around the asked architecture and dimension."""
        return ModelSettings(
            architecture=self.architecture,
            embedding_dimension=self.dimension,
            dense_layers=DENSE_LAYERS,
            over_layers=OVER_LAYERS,
            cross_layers=CROSS_LAYERS,
            cross_rank=CROSS_RANK,
        )


@dataclass(frozen=True)
class Case:
    """One contender on one model, in a process of its own.

    ``seconds`` of training are aimed at, never fewer than ``least_steps`` steps; ``peers`` is the
    folder that holds the peer's package, empty where there is none.
    """

    contender: str
    model: Model
    windows: str
    seconds: float
    least_steps: int
    sharding: str
    peers: str

    def who(self) -> Contender:
        """The contender itself."""
        return CONTENDERS[self.contender]

    def table_bytes(self, tables: int) -> int:
        """Bytes of the tables, their gradients and optimiser state at the peak of a step."""
        size = tables * self.model.table_rows * self.model.dimension * FLOAT_BYTES
        return size * TABLE_COPIES[self.who().optimizer]

    def to_json(self) -> str:
        """For the worker's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "model": Model(**values["model"])})
