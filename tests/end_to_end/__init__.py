"""Tests of a real twistd process, with clients that share no code with it."""
