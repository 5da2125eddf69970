"""Disaggregated towers: partitioner and tower modules."""
