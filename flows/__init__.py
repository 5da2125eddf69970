"""What a person runs: one flow a file."""
