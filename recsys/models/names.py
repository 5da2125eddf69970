"""Names of tables and of sequence positions, and a check of sequences that needs no PyTorch."""

from recsys.config import InputError
from recsys.data.schema import Schema
from recsys.models.settings import ModelSettings

TABLE_PREFIX = "table_"  # followed by the feature's name


def position_names(name: str, length: int) -> list[str]:
    """Feature names for the positions of a sequence, newest first; without "@", by which TorchRec
    separates tables."""
    return [f"{name}[{position}]" for position in range(length)]


def check_sequences(schema: Schema, model: ModelSettings) -> None:
    """Check that the sequences of ``model`` and their targets are features of ``schema`` and match
    each other.

    Raises:
        InputError: otherwise.
    """
    features = {feature.name: feature for feature in schema.categorical}
    dimension = model.embedding_dimension
    for name, one in model.sequences.items():
        where = model.where(f"sequences.{name}")
        lists = [feature.name for feature in schema.categorical if feature.kind == "list"]
        if name not in lists:
            raise InputError(
                f"{where}: no list feature {name!r}; the data has {', '.join(lists) or 'none'}"
            )
        if one.target not in features or features[one.target].kind == "list":
            single = ", ".join(feature for feature in features if feature not in lists)
            raise InputError(
                f"{where}: target {one.target!r} is not a feature with one id per example; there "
                f"are: {single}"
            )
        if one.attention == "multi_head" and dimension % one.heads:
            raise InputError(
                f"{where}: heads {one.heads} must divide embedding_dimension {dimension}"
            )
        own, asked = features[name].num_embeddings, features[one.target].num_embeddings
        if one.shares_table and own != asked:
            raise InputError(
                f"{where}: shares_table needs as many rows as {one.target} has, {asked}, not {own}"
            )
        taken = [position for position in position_names(name, one.length) if position in features]
        if taken:
            raise InputError(
                f"{where}: the data has a feature {taken[0]!r}, the name of a position; rename it"
            )
