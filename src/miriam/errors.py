"""Errors, each with the way out in its message.

::

    MiriamError
    ├── ProgramError    a program file or a program is broken
    ├── CompileError    a model could not be turned into a program
    ├── PtxError        a PTX text cannot be read, or not be edited so
    ├── ProfileError    a measurement is missing or cannot be taken
    ├── DeviceError     a device is unknown, missing or was used wrongly
    ├── PolicyError     a policy is unknown or asked for something impossible
    ├── WorkloadError   a workload or its options are unusable
    ├── AdmissionError  a task's deadline cannot be shown to hold
    ├── TraceError      a trace cannot be had or read, or does not hold what was asked for
    └── RequestError    a request could not be answered
        ├── InputError          what was given is not what the model takes
        ├── QueueFullError      as many wait already as may
        ├── RequestTimeoutError it waited longer than it may
        ├── ModelError          the model raised; its exception is the cause
        └── ClosedError         the task, or the whole runtime, is closed
"""

from __future__ import annotations

__all__ = [
    "AdmissionError",
    "ClosedError",
    "CompileError",
    "DeviceError",
    "InputError",
    "MiriamError",
    "ModelError",
    "PolicyError",
    "ProfileError",
    "ProgramError",
    "PtxError",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "TraceError",
    "WorkloadError",
]


class MiriamError(Exception):
    """Base of everything that Miriam raises on purpose."""


class ProgramError(MiriamError):
    """A program file or a program is broken."""


class CompileError(MiriamError):
    """A model could not be turned into a program."""


class PtxError(MiriamError):
    """A PTX text cannot be read, or not be edited so.

    Attributes
    ----------
    line
        The line of the text where it went wrong, counted from 1.
    """

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class ProfileError(MiriamError):
    """A measurement is missing or cannot be taken."""


class DeviceError(MiriamError):
    """A device is unknown, missing or was used wrongly."""


class PolicyError(MiriamError):
    """A policy is unknown or asked for something impossible."""


class WorkloadError(MiriamError):
    """A workload or its options are unusable."""


class TraceError(MiriamError):
    """A trace cannot be had or read, or does not hold what was asked for."""


class AdmissionError(MiriamError):
    """With the tasks that are there, a deadline cannot be shown to hold.

    Attributes
    ----------
    task
        Whose deadline it is.
    response_us
        How long a request of it may take, as far as can be shown; infinite where there is no bound.
    deadline_us
        How long it may take.
    """

    def __init__(self, message: str, task: str, response_us: float, deadline_us: float) -> None:
        super().__init__(message)
        self.task = task
        self.response_us = response_us
        self.deadline_us = deadline_us


class RequestError(MiriamError):
    """A request could not be answered."""


class InputError(RequestError):
    """What was given is not what the model takes."""


class QueueFullError(RequestError):
    """As many requests wait already as may."""


class RequestTimeoutError(RequestError):
    """A request waited longer than it may."""


class ModelError(RequestError):
    """The model raised an exception, which is the cause of this one."""


class ClosedError(RequestError):
    """The task, or the whole runtime, is closed."""
