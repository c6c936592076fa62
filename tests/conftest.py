"""Settings that all tests share."""

import gc
import os

from hypothesis import settings

# A busy machine must not fail a test: none of them depends on the time that it takes. And the same examples every
# time, so that a change fails for what it changed; 'pytest --hypothesis-profile=explore' looks for new ones.
settings.register_profile("miriam", settings.default, deadline=None, derandomize=True)
settings.register_profile("explore", settings.default, deadline=None, derandomize=False, print_blob=True)
settings.load_profile("miriam")

# As `miriam serve` has it. Else what gRPC does around a fork kills now and then the process that was to be begun.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

gc.disable()  # while modules are imported, which stay


def pytest_collection_finish() -> None:
    """Spare the collector what was imported, and let it look less often: it took a fifth of the time of all tests."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()
