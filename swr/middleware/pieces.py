"""Joins the pieces of a body: many short pieces may take a hundred times the memory of the body. Pure.

An app may send one row at a time, or even one character.
"""

from typing import Final

# The longest piece that joining makes, in bytes.
LONGEST: Final = 2**14


def joined(before: bytes | bytearray, piece: bytes) -> bytearray | None:
    """Return two pieces joined; None if they would be too long together.

    Parameters:
        before: the piece before; if it is a `bytearray`, it grows in place and is returned.
    """
    if len(before) + len(piece) > LONGEST:
        return None
    whole = before if isinstance(before, bytearray) else bytearray(before)
    whole += piece
    return whole


def add_piece(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Append a piece, or join it to the last one."""
    whole = joined(pieces[-1], piece) if pieces else None
    if whole is None:
        pieces.append(piece)
    else:
        pieces[-1] = whole
