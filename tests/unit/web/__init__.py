"""Tests of chatrelay.web: HTTP beside the WebSocket."""
