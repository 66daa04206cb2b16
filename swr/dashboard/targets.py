"""The messages of actions: what they are about, and what came of them."""

from typing import TypedDict


class Target(TypedDict, total=False):
    """The target of an action. The actions on entries take one of the first six.

    Attributes:
        id: of a `Key`.
        key: its text, as a program writes it.
        tag: a tag.
        url: a path or URL with its query.
        loader: the template of a loader: all that it has stored.
        all: true: everything of the namespace.
        row: the name of a row, for `fail-next` and `hang`.
        seconds: how long to hang, 60 at most.
        queue: the name of a queue, for `retry-dead` and `purge-dead`; with `id`: one letter, without: all.
        soft: true: mark stale instead of removing; for `POST ./invalidate`.
    """

    id: str
    key: str
    tag: str
    url: str
    loader: str
    all: bool
    row: str
    seconds: float
    queue: str
    soft: bool


class Done(TypedDict):
    """An action was carried out.

    Attributes:
        done: a sentence that says what.
    """

    done: str


class Refusal(TypedDict):
    """An action was not carried out.

    Attributes:
        error: a sentence that says why, and what to do.
    """

    error: str
