"""Where examples come from: every source gives a :class:`recsys.data.sources.base.Source`."""
