"""Tests of chatrelay.relay: logins, messages and deliveries."""
