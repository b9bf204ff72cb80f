"""Tests of chatrelay.limits, with values and times that the test gives."""
