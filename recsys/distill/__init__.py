"""Teacher snapshots, score log, auxiliary head, students."""
