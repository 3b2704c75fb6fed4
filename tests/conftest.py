"""Settings of all tests."""

from hypothesis import settings

# How long an example takes depends on what else the machine does; speed is what benchmarks are for.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
