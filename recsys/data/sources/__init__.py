"""Sources of examples: each returns a :class:`recsys.data.sources.base.Source`."""
