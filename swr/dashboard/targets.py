"""The messages of actions: their targets and results."""

from typing import TypedDict


class Target(TypedDict, total=False):
    """The target of an action. An action on entries takes exactly one of the first six fields.

    Attributes:
        id: the id of a `Key`.
        key: the text of a key.
        tag: a tag, for all entries with this tag.
        url: a path or URL with its query, for its responses.
        loader: the key template of a loader, for all its entries.
        all: true, for all entries of the namespace.
        row: the name of a row, for `fail-next` and `hang`.
        seconds: how long to hang, at most 60.
        queue: the name of a queue, for `retry-dead` and `purge-dead`: with `id` or `key` one dead letter, otherwise
            all.
        soft: whether to mark entries stale instead of removing them, for `POST ./invalidate`.
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
    """The answer if an action was carried out.

    Attributes:
        done: a sentence that says what was done.
    """

    done: str


class Refusal(TypedDict):
    """The answer if an action was not carried out.

    Attributes:
        error: the reason, and what to do.
    """

    error: str
