"""Tests of chatrelay.limits: values, and time handed in."""
