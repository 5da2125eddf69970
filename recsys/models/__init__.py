"""The rankers, as pure torch modules."""
