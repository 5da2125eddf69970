"""Plans for sharded embedding tables."""
