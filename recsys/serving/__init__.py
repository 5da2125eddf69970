"""Export and predictor."""
