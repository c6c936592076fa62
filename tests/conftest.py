"""Settings that all tests share."""

import gc

from hypothesis import settings

# A busy machine must not fail a test: none of them depends on the time that it takes. And the same examples every
# time, so that a change fails for what it changed; 'pytest --hypothesis-profile=explore' looks for new ones.
settings.register_profile("miriam", settings.default, deadline=None, derandomize=True)
settings.register_profile("explore", settings.default, deadline=None, derandomize=False, print_blob=True)
settings.load_profile("miriam")

gc.disable()  # while modules are imported, which stay


def pytest_collection_finish() -> None:
    """Spare the collector what was imported, and let it look less often: it took a fifth of the time of all tests."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()
