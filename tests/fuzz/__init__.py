"""Random doings: a relay in memory held against a model of the promise, and bytes held against two parsers."""
