"""Studies: a whole configuration, its graph of steps, and the runner that does what is left of it."""
