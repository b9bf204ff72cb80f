"""Tests of chatrelay.auth: whose session it is, and whether it still is."""
