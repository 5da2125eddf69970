"""Prefect tasks: where Prefect, DVC and MLflow meet the library."""
