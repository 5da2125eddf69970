"""Export, predictor and server."""
