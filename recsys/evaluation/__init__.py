"""Metrics, comparison and figures."""
