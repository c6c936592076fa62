"""Miriam: critical networks keep their latency, the others get the rest of the GPU."""

from typing import TYPE_CHECKING, Any

from miriam.coordinator import Policy, Traffic, View, coordinate
from miriam.device.base import (
    Command,
    Device,
    Event,
    EventKind,
    Geometry,
    Lane,
    Limit,
    Run,
    Serving,
    Span,
    Usage,
    Wake,
)
from miriam.errors import (
    AdmissionError,
    ClosedError,
    CompileError,
    DeviceError,
    InputError,
    MiriamError,
    ModelError,
    PolicyError,
    ProfileError,
    ProgramError,
    PtxError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    TraceError,
    WorkloadError,
)
from miriam.policy.base import Setting
from miriam.profile import Counters, LaunchProfile, ProfileSource, ProgramProfile
from miriam.program import Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Source, Tensor
from miriam.task import Criticality, Request, Task

if TYPE_CHECKING:
    from miriam.runtime import Loaded, Response, Runtime, Spec

__version__ = "0.1.0"

__all__ = [
    "AdmissionError",
    "Buffer",
    "ClosedError",
    "Command",
    "CompileError",
    "Counters",
    "Criticality",
    "Device",
    "DeviceError",
    "Event",
    "EventKind",
    "Geometry",
    "InputError",
    "Kernel",
    "Lane",
    "Launch",
    "LaunchProfile",
    "Limit",
    "Loaded",
    "MiriamError",
    "ModelError",
    "Pointer",
    "Policy",
    "PolicyError",
    "ProfileError",
    "ProfileSource",
    "Program",
    "ProgramError",
    "ProgramProfile",
    "PtxError",
    "QueueFullError",
    "Request",
    "RequestError",
    "RequestTimeoutError",
    "Response",
    "Role",
    "Run",
    "Runtime",
    "Scalar",
    "Serving",
    "Setting",
    "Source",
    "Span",
    "Spec",
    "Task",
    "Tensor",
    "TraceError",
    "Traffic",
    "Usage",
    "View",
    "Wake",
    "WorkloadError",
    "coordinate",
]

_LATE = ("Loaded", "Response", "Runtime", "Spec")  # not everybody who imports this needs them, and they take a while


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import miriam.runtime

        return getattr(miriam.runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
