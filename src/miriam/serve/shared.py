"""Regions of the system's shared memory, in which clients on this machine leave inputs and find outputs.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md

A region is a part of a file in /dev/shm. It is read and written as a file and never mapped: whoever made it may cut it
at any time, and touching a mapping beyond the end of its file ends the process (SIGBUS), however recently somebody
looked at the size. ``pread`` says how much there was, ``pwrite`` that the system has no memory left. They copy as fast
as one from a mapping does, to where the device wants it, and leave Python's lock to others meanwhile. What was read is
the server's own: a client that changes it then changes nothing that has been checked.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.tensors import DATATYPES, Array, element_count, from_binary

__all__ = ["CUDA", "FOLDER", "Place", "Region", "Regions", "Shared", "Slot"]

FOLDER = "/dev/shm"  # where shm_open() has its objects on Linux

CUDA = "there is no shared memory of CUDA with clients: use that of the system, or send tensors in the request"
"""What who asks for it is told."""

_NAME, _SIZE, _OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
_NAME_BYTES, _KEY_BYTES = 256, 255
_MOST = 1 << 63  # what a file may have
# Neither a link to somewhere else nor something that waits for its other end.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_REASONS = {
    errno.ENOENT: "it is not there: create it first",
    errno.ELOOP: "it is a link: only a file itself is taken",
    errno.EACCES: "it is another user's: run the client as the user of the server",
    errno.EPERM: "it is another user's: run the client as the user of the server",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is, or is to be.

    Attributes
    ----------
    region
        Name under which it was registered.
    size, offset
        In it, in bytes.
    """

    region: str
    size: int
    offset: int = 0

    @staticmethod
    def of(parameters: Mapping[str, Any], tensor: str) -> Place | None:
        """The one that parameters of a tensor name, if they name one.

        Raises
        ------
        ServiceError
            They do so by half, or not as the protocol says.
        """
        if not parameters.keys() & {_NAME, _SIZE, _OFFSET}:
            return None
        region, size, offset = parameters.get(_NAME), parameters.get(_SIZE), parameters.get(_OFFSET, 0)
        if type(region) is not str or not region:
            raise _invalid(f"tensor {tensor!r:.80}: {_NAME} is {region!r:.40}: give the name of a registered region")
        for key, value in ((_SIZE, size), (_OFFSET, offset)):
            if type(value) is not int or not 0 <= value < _MOST:
                raise _invalid(f"tensor {tensor!r:.80}: {key} is {value!r:.40}: give a whole number of bytes, from 0")
        return Place(region, size, offset)  # type: ignore[arg-type]

    @property
    def parameters(self) -> dict[str, str | int]:
        """The protocol's words for it."""
        said: dict[str, str | int] = {_NAME: self.region, _SIZE: self.size}
        return said | ({_OFFSET: self.offset} if self.offset else {})


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor that is not in its message."""

    datatype: str
    shape: tuple[int, ...]
    place: Place

    @staticmethod
    def input(name: str, datatype: str, shape: Sequence[int], place: Place, limit: int) -> Shared:
        """One of a request.

        Parameters
        ----------
        limit
            The most elements that it may have.

        Raises
        ------
        ServiceError
            An unknown datatype, an impossible shape, or bytes that are not so many as those say.
        """
        count = element_count(name, datatype, shape, limit)
        if datatype == "BYTES":
            raise ServiceError(Status.UNSUPPORTED, f"tensor {name!r:.80}: send BYTES in the request, not shared")
        if count * DATATYPES[datatype].itemsize != place.size:
            raise _invalid(
                f"tensor {name!r:.80}: {datatype} {list(shape)} takes {count * DATATYPES[datatype].itemsize} bytes, "
                f"{_SIZE} is {place.size}"
            )
        return Shared(datatype, tuple(shape), place)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Region:
    """Part of a file that a client registered. The file is open as long as there is this.

    Attributes
    ----------
    name
        Under which it is registered.
    key
        Name of the file, as the client gave it.
    offset, size
        In the file, in bytes.
    file
        Its descriptor.
    """

    name: str
    key: str
    offset: int
    size: int
    file: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for as long as a request needs it, registered or not."""

    tensor: str
    region: Region
    place: Place

    def input(self, what: Shared) -> Lying | Array:
        """The tensor, as it can be given to a model: left there until the device reads it. In any thread.

        Raises
        ------
        ServiceError
            The file has become shorter, or what is there is no such tensor.
        """
        lying = Lying(self, DATATYPES[what.datatype], what.shape)
        if what.datatype != "BOOL":  # of which not all bytes are one
            return lying
        data = np.empty(what.shape, np.uint8)
        lying.read_into(data)
        return from_binary(self.tensor, what.datatype, what.shape, data, data.size)

    def read_into(self, data: memoryview) -> None:
        """Fill memory from the begin of the place on. In any thread.

        Raises
        ------
        ServiceError
            The file has become shorter.
        """
        at = self._begin
        while data:
            try:
                count = os.preadv(self.region.file, [data], at)
            except OSError as error:
                raise self._failed(error) from error
            if not count:
                raise self._cut()
            data, at = data[count:], at + count

    def check(self, size: int) -> None:
        """Refuse so many bytes if they have no room.

        Raises
        ------
        ServiceError
            They have not.
        """
        if size > self.place.size:
            raise _invalid(f"output {self.tensor!r:.80} has {size} bytes, {_SIZE} is {self.place.size}")

    def write(self, data: memoryview) -> None:
        """Leave the bytes of a tensor there. In any thread.

        Raises
        ------
        ServiceError
            It has no room, or the file has become shorter.
        """
        self.check(len(data))
        try:
            at = self._begin
            if os.fstat(self.region.file).st_size < at + len(data):  # writing would make it longer
                raise self._cut()
            while data:
                count = os.pwrite(self.region.file, data, at)
                data, at = data[count:], at + count
        except OSError as error:  # no memory is left
            raise self._failed(error) from error

    @property
    def _begin(self) -> int:
        return self.region.offset + self.place.offset

    def _cut(self) -> ServiceError:
        return _invalid(
            f"tensor {self.tensor!r:.80}: {FOLDER}/{self.region.key.lstrip('/')} has become shorter than region "
            f"{self.region.name!r:.80} says: unregister it, and register it anew"
        )

    def _failed(self, error: OSError) -> ServiceError:
        return _invalid(f"tensor {self.tensor!r:.80}: region {self.region.name!r:.80}: {error.strerror}")


@dataclass(frozen=True, slots=True)
class Lying:
    """An input in its place (:class:`miriam.device.unread.Unread`)."""

    slot: Slot
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read_into(self, target: Array) -> None:
        """Copy it into an array.

        Raises
        ------
        ServiceError
            The file has become shorter.
        """
        self.slot.read_into(target.reshape(-1).view(np.uint8).data)


class Regions:
    """What clients registered, by name.

    Parameters
    ----------
    limits
        How much they may register; None: there is no shared memory here.

    Attributes
    ----------
    on
        Whether there is.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits
        self._regions: dict[str, Region] = {}
        self.on = limits is not None

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Take a region in.

        Parameters
        ----------
        name, key, offset, size
            See :class:`Region`.

        Raises
        ------
        ServiceError
            The name is taken, the key names no file of this user, the region is not inside of it, or there are too
            many.
        """
        limits = self._checked()
        if not 0 < len(name.encode()) <= _NAME_BYTES:
            raise _invalid(f"a region's name has 1 to {_NAME_BYTES} bytes")
        if name in self._regions:
            raise _invalid(f"a region {name!r:.80} is registered: unregister it first, or take another name")
        if len(self._regions) >= limits.shared_regions:
            raise ServiceError(
                Status.EXHAUSTED,
                f"{limits.shared_regions} regions are registered (limits.shared_regions): unregister some",
            )
        held = sum(region.size for region in self._regions.values())
        if size < 1 or offset < 0 or offset + size >= _MOST:
            raise _invalid(f"region {name!r:.80}: byte_size is {size}, offset is {offset}: give 1 byte or more, from 0")
        if held + size > limits.shared_bytes:
            raise ServiceError(
                Status.EXHAUSTED,
                f"all regions may have {int(limits.shared_bytes)} bytes (limits.shared_bytes), {held} are registered: "
                "unregister some",
            )
        file = _opened(key, offset + size)
        region = Region(name, key, offset, size, file)
        weakref.finalize(region, os.close, file)  # when the last request that uses it is over
        self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; what is under way goes on with it. One that is not there is forgotten already."""
        self._checked()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> Sequence[Region]:
        """All regions, or one of them.

        Raises
        ------
        ServiceError
            It is not there.
        """
        self._checked()
        return [self._found(name)] if name else list(self._regions.values())

    def slot(self, tensor: str, place: Place) -> Slot:
        """Where that is.

        Raises
        ------
        ServiceError
            There is no such region, or not so much of it.
        """
        self._checked()
        region = self._found(place.region)
        if place.offset + place.size > region.size:
            raise _invalid(
                f"tensor {tensor!r:.80}: {_OFFSET} {place.offset} and {_SIZE} {place.size} go beyond region "
                f"{region.name!r:.80}, which has {region.size} bytes"
            )
        return Slot(tensor, region, place)

    def _found(self, name: str) -> Region:
        try:
            return self._regions[name]
        except KeyError:
            raise ServiceError(
                Status.NOT_FOUND, f"no region {name!r:.80} of shared memory is registered: register it first"
            ) from None

    def _checked(self) -> Limits:
        if self._limits is None:
            raise ServiceError(
                Status.UNSUPPORTED,
                "this server has no shared memory with clients: send tensors in the request, not in shared memory, or "
                "set 'shared_memory: true' in its configuration",
            )
        return self._limits


def _opened(key: str, end: int) -> int:
    """A file of this user that has so many bytes."""
    name = key.removeprefix("/")
    said = f"key {key!r:.80}"
    if not 0 < len(name.encode()) <= _KEY_BYTES or name in (".", "..") or "/" in name or "\0" in name:
        raise _invalid(f"{said} is no name in {FOLDER}: give one without a slash but for one at its begin")
    if name.startswith("sem."):
        raise _invalid(f"{said} is that of a semaphore: create memory of another name")
    try:
        file = os.open(f"{FOLDER}/{name}".encode(), _FLAGS)
    except OSError as error:
        why = _REASONS.get(error.errno or 0, error.strerror)
        status = Status.NOT_FOUND if error.errno == errno.ENOENT else Status.INVALID
        raise ServiceError(status, f"{said}: {FOLDER}/{name:.80} cannot be used: {why}") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise _invalid(f"{said}: {FOLDER}/{name:.80} is no regular file")
        if found.st_uid != os.geteuid():
            raise _invalid(f"{said}: {_REASONS[errno.EACCES]}")
        if found.st_size < end:
            raise _invalid(f"{said}: {FOLDER}/{name:.80} has {found.st_size} bytes, offset and byte_size need {end}")
    except BaseException:
        os.close(file)
        raise
    return file


def _invalid(what: str) -> ServiceError:
    return ServiceError(Status.INVALID, what)
