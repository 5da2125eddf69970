"""Progressive validation: predict a window, then train on it."""
