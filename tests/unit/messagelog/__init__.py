"""Tests of chatrelay.messagelog: every implementation, and SQLite's troubles."""
