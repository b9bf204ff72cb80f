"""Tests of chatrelay.config: options and their sources."""
