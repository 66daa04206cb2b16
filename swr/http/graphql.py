"""Tells GraphQL queries, which change nothing, from other content of a POST. Pure: a look at the text, no schema."""

import re
from typing import Any, Final

from swr.http.content import Content

# A block string, one without an end, a string, a comment, a name, or another character that is not blank (GraphQL 2.1).
_TOKEN: Final = re.compile(
    r'"""(?:\\"""|(?!\\?""").)*"""|"""|"(?:[^"\\\n\r]|\\.)*"|#[^\n\r]*|[_A-Za-z][_0-9A-Za-z]*|[^\s,\ufeff]', re.DOTALL
)
# Where some readers end a line and others do not, a comment is not the same for both.
_LINE_ENDS: Final = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_READING: Final = frozenset({"query", "fragment"})
_OPENING: Final = "({["
_CLOSING: Final = {")": "(", "}": "{", "]": "["}
# What JSON of GraphQL over HTTP may hold. Anything else may name another operation than `query` does.
_MEMBERS: Final = frozenset({"query", "operationName", "variables", "extensions"})
# What of its extensions names no operation.
_EXTENSIONS: Final = frozenset({"clientLibrary"})


def is_graphql_query(content: Content) -> bool:
    """Return whether a request is a GraphQL query for certain, so that it changes nothing: for `Rule(safe=...)`.

    The request is JSON, or a batch in a list, of which every document holds queries and fragments alone. A document
    that also holds a mutation is not a query, whatever `operationName` says. Neither is a persisted query without its
    text, nor a request whose URL has a query, because some servers read the document from there.
    """
    if content.query:
        return False
    try:
        value = content.json()
    except ValueError:
        return False
    requests = value if isinstance(value, list) else [value]
    return bool(requests) and all(map(_only_reads, requests))


def _only_reads(request: Any) -> bool:
    if not isinstance(request, dict) or not request.keys() <= _MEMBERS or not isinstance(request.get("query"), str):
        return False
    extensions = request.get("extensions") or {}
    if not isinstance(extensions, dict) or not extensions.keys() <= _EXTENSIONS:
        # A persisted query may be another one than the text.
        return False
    starts = _starts_of_definitions(request["query"])
    return starts is not None and starts != [] and all(start == "{" or start in _READING for start in starts)


def _starts_of_definitions(document: str) -> list[str] | None:
    """Return the first token of each definition; None: the text is not a whole document."""
    if _LINE_ENDS.search(document):
        return None
    starts: list[str] = []
    open_brackets: list[str] = []
    is_within = False
    for match in _TOKEN.finditer(document):
        token = match[0]
        if token[0] == "#":
            continue
        if token in ('"', '"""'):
            # A string without an end.
            return None
        if not is_within:
            starts.append(token)
            is_within = True
        if token in _OPENING:
            open_brackets.append(token)
        elif token in _CLOSING:
            if not open_brackets or open_brackets.pop() != _CLOSING[token]:
                return None
            # A definition ends with its selection, which is in no other bracket.
            is_within = bool(open_brackets) or token != "}"
    return None if is_within or open_brackets else starts
