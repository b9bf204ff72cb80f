"""Tests of chatrelay.websocket: real frames from a client in memory."""
