"""Tests of chatrelay.messagelog: every implementation, and failures of SQLite and of files."""
