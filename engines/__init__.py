"""Engines: a network, its weights and a back end that runs it. Knows nothing of files or video."""
