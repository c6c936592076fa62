"""Miriam: critical networks keep their latency, the others get the rest of the GPU."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from miriam.runtime import Loaded, Response, Runtime, Spec
    from miriam.task import Criticality, Request, Task

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

# Whoever imports this needs few of them, and all together take a tenth of a second.
_LATE = {
    "coordinator": "Policy Traffic View coordinate",
    "device.base": "Command Device Event EventKind Geometry Lane Limit Run Serving Span Usage Wake",
    "errors": (
        "AdmissionError ClosedError CompileError DeviceError InputError MiriamError ModelError PolicyError "
        "ProfileError ProgramError PtxError QueueFullError RequestError RequestTimeoutError TraceError WorkloadError"
    ),
    "policy.base": "Setting",
    "profile": "Counters LaunchProfile ProfileSource ProgramProfile",
    "program": "Buffer Kernel Launch Pointer Program Role Scalar Source Tensor",
    "task": "Criticality Request Task",
    "runtime": "Loaded Response Runtime Spec",
}
_MODULE = {name: module for module, names in _LATE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"miriam.{_MODULE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
