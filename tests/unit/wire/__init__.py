"""Tests of chatrelay.wire: bytes and values."""
