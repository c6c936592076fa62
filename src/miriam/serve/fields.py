"""Fields of HTTP/2, which say what a request and an answer are (HPACK, RFC 7541)."""

from __future__ import annotations

from collections.abc import Mapping

from hpack import Decoder, HPACKError, OversizedHeaderListError

from miriam.serve.frames import BrokenError, Reason

__all__ = ["NO_TABLE", "Table", "fields"]

NO_TABLE = b"\x20"
"""Before the first fields that are sent: what comes needs no table (RFC 7541, 4.2 and 6.3)."""

_KNOWN = 64  # blocks that are remembered


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """A block of fields that changes no table: each in letters (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in pairs)


def _length(text: bytes) -> bytes:
    """A whole number after a bit that says that no Huffman code is used (RFC 7541, 5.1)."""
    left = len(text) - 127
    if left < 0:
        return bytes((len(text),))
    found = bytearray((127,))
    while left >= 128:
        found.append(left % 128 + 128)
        left //= 128
    return bytes((*found, left))


class Table:
    """Decodes the fields of a connection.

    Parameters
    ----------
    most
        Bytes of the fields of a request.

    Attributes
    ----------
    lost
        Whether it is no more what the client thinks: nothing can be decoded.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._decoder = Decoder(max_header_list_size=most)
        self._known: dict[bytes, Mapping[bytes, bytes]] = {}
        self.lost = False

    def decoded(self, block: bytes | None) -> Mapping[bytes, bytes] | None:
        """Fields by name; None if they are too large, or the table is lost.

        A block that only points into the table is known, for as long as that does not change.

        Parameters
        ----------
        block
            None: one that is too large.

        Raises
        ------
        BrokenError
            They are none.
        """
        if self.lost or block is None or len(block) > self._most:
            self.lost = True
            return None
        found = self._known.get(block)
        if found is not None:
            return found
        try:
            found = dict(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            self.lost = True
            return None
        except (HPACKError, IndexError, ValueError) as error:
            raise BrokenError(Reason.COMPRESSION_ERROR, f"the fields cannot be read: {error}") from None
        if not block or min(block) < 0x80 or max(block) == 0xFF or len(self._known) >= _KNOWN:
            self._known.clear()
        else:
            self._known[block] = found
        return found
