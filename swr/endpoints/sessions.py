"""Sessions that note their use; they replace the plain dicts of older versions of Starlette."""

import functools
from typing import Any, Final

_OF_STARLETTE: Final = "starlette.middleware.sessions"
# How code uses a session. Its length says only whether it is empty; session middleware asks that of every session.
_USES: Final = (
    "__contains__", "__delitem__", "__getitem__", "__iter__", "__setitem__", "clear", "copy", "get", "items", "keys",
    "pop", "popitem", "setdefault", "update", "values",
)  # fmt: skip


class NotedSession(dict[str, Any]):
    """A session that notes its use, as Starlette's own sessions do in newer versions.

    Attributes:
        accessed: whether any code has used the session.
    """

    accessed = False


def _noted(name: str) -> Any:
    plain = getattr(dict, name)

    @functools.wraps(plain)
    def use(session: NotedSession, *args: Any, **more: Any) -> Any:
        session.accessed = True
        return plain(session, *args, **more)

    return use


for _name in _USES:
    setattr(NotedSession, _name, _noted(_name))


def noted(session: Any, module: str) -> Any:
    """Return a session that notes its use if Starlette's middleware has set a plain dict; return others as they are.

    Starlette's middleware takes the session from the scope again. Other middleware may keep the dict that it has set.

    Parameters:
        session: a new session.
        module: the module of the code that has set it.
    """
    return NotedSession(session) if type(session) is dict and module == _OF_STARLETTE else session
