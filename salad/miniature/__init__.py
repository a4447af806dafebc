"""The embedded default: makes on the spot, from a seed, the kinds of files that a real study loads."""
