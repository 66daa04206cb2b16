"""The token that a user's dashboards without `auth=` share. It is in a file that only this user can read."""

import logging
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

log = logging.getLogger("swr")

_NAME: Final = "dashboard-token"
# The token has 128 bits.
_BYTES: Final = 16
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{22,100}")
_LONGEST: Final = 200
_OF_THIS_PROCESS: Final = secrets.token_urlsafe(_BYTES)


def own_token(folder: Path | None = None) -> str:
    """Return the token of this user. The first process that asks creates it.

    So all worker processes have the same token, also after a restart. If a process cannot use the file, it makes a
    token for itself.

    Parameters:
        folder: the folder of the file; None: `$XDG_STATE_HOME/swr` or `~/.local/state/swr`.
    """
    try:
        path = (_folder() if folder is None else folder) / _NAME
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _read(path) or _made(path)
    except (OSError, RuntimeError, ValueError) as error:
        log.warning("the dashboard uses a token of this process alone, because the file cannot be used: %s", error)
        return _OF_THIS_PROCESS


def _folder() -> Path:
    """Return swr's folder for persistent state of the user.

    Raises:
        RuntimeError: this user has no home directory.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "swr"


def _made(path: Path) -> str:
    """Create the file and return its token; if another process created it first, return that process's token.

    Raises:
        OSError, ValueError: the file cannot be created or read.
    """
    draft = path.with_name(f"{_NAME}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_BYTES))
        # The link makes the complete file appear at once, and fails if there is a file already.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return _read(path) or ""


def _read(path: Path) -> str | None:
    """Return the token in the file, or None if there is no file.

    Raises:
        OSError: the file cannot be read.
        ValueError: other users may read or write the file, it is not a regular file, or it contains no token.
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(file, encoding="ascii") as opened:
        found = os.fstat(file)
        is_own = os.name != "posix" or (found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077)
        if not is_own or not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a file that only you can read and write: remove it")
        text = opened.read(_LONGEST).strip()
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{path} contains no token: remove it")
    return text
