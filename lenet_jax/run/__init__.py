"""Running experiments: from a config to a run folder."""
