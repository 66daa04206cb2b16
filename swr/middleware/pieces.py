"""The pieces of a body, joined: one by one they may take a hundred times its memory. Pure.

An app may send a row at a time, or a character.
"""

from typing import Final

# Pieces are joined up to this many bytes.
LONGEST: Final = 2**14


def joined(before: bytes | bytearray, piece: bytes) -> bytearray | None:
    """Return a piece with the one before it; None if both are long enough to stay apart.

    Parameters:
        before: a `bytearray` grows, and comes back.
    """
    if len(before) + len(piece) > LONGEST:
        return None
    whole = before if isinstance(before, bytearray) else bytearray(before)
    whole += piece
    return whole


def add_piece(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Add a piece to those before it."""
    whole = joined(pieces[-1], piece) if pieces else None
    if whole is None:
        pieces.append(piece)
    else:
        pieces[-1] = whole
