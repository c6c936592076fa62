"""Settings that all tests share."""

from hypothesis import settings

# A busy machine must not fail a test: none of them depends on the time that it takes. And the same examples every
# time, so that a change fails for what it changed; 'pytest --hypothesis-profile=explore' looks for new ones.
settings.register_profile("miriam", settings.default, deadline=None, derandomize=True)
settings.register_profile("explore", settings.default, deadline=None, derandomize=False, print_blob=True)
settings.load_profile("miriam")
