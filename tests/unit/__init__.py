"""Unit tests: no network but loopback, no process but their own, and a clock that is passed in."""

from hypothesis import HealthCheck, settings

# A machine that has other things to do is slow, and no fault of what is tested.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
