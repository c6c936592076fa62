"""Miriam: critical networks keep their latency, the others get the rest of the GPU."""

from miriam.coordinator import Policy, Traffic, View, coordinate
from miriam.device.base import Command, Device, Event, EventKind, Geometry, Lane, Limit, Run, Span, Usage, Wake
from miriam.errors import (
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

__version__ = "0.1.0"

__all__ = [
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
    "Role",
    "Run",
    "Scalar",
    "Setting",
    "Source",
    "Span",
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
