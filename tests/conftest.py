"""Settings that all tests share."""

from hypothesis import settings

# A busy machine must not fail a test: none of them depends on the time that it takes.
settings.register_profile("miriam", settings.default, deadline=None)
settings.load_profile("miriam")
