"""Random tests: a relay in memory is compared with a model of the promise, and bytes with two parsers."""
