"""Rankers as plain torch modules."""
