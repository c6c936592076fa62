"""Models that are loaded, asked and answered: the runtime."""

from miriam.runtime.loaded import Loaded
from miriam.runtime.response import Response
from miriam.runtime.runtime import Runtime
from miriam.runtime.spec import Spec

__all__ = ["Loaded", "Response", "Runtime", "Spec"]
