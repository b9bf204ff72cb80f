"""Tests of chatrelay.auth: logins, re-checks, and requests to the session page."""
