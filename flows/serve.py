"""Offer the pipeline as the deployment pipeline/served, and run it when somebody asks for it."""

from flows.pipeline import pipeline

if __name__ == "__main__":
    pipeline.serve(name="served")
