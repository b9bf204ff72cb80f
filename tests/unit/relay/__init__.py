"""Tests of chatrelay.relay: what messages do."""
