"""Tests of chatrelay.app: the service, the commands, and what a system asks of them."""
