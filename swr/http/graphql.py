"""A test for GraphQL queries among POST requests; queries change nothing. Pure: it reads the text and no schema."""

import re
from typing import Any, Final

from swr.http.content import Content

# A block string, one without an end, a string, a comment, a name, or another character that is not blank (GraphQL 2.1).
_TOKEN: Final = re.compile(
    r'"""(?:\\"""|(?!\\?""").)*"""|"""|"(?:[^"\\\n\r]|\\.)*"|#[^\n\r]*|[_A-Za-z][_0-9A-Za-z]*|[^\s,\ufeff]', re.DOTALL
)
# Some parsers end a line at these characters and others do not, so they disagree about the end of a comment.
_LINE_ENDS: Final = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_READING: Final = frozenset({"query", "fragment"})
_OPENING: Final = "({["
_CLOSING: Final = {")": "(", "}": "{", "]": "["}
# The members of a request of GraphQL over HTTP. Any other member may name another operation than `query`.
_MEMBERS: Final = frozenset({"query", "operationName", "variables", "extensions"})
# The members of `extensions` that name no operation.
_EXTENSIONS: Final = frozenset({"clientLibrary"})


def is_graphql_query(content: Content) -> bool:
    """Return whether a request is certainly a GraphQL query, and so changes nothing. Give it to `Rule(safe=...)`.

    The request must be JSON, or a JSON list as a batch, in which every document has only queries and fragments. A
    document with a mutation does not count, whatever `operationName` says. Neither does a persisted query without its
    text, nor a request whose URL has a query string, because some servers read the document from there.
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
        # The server may run a persisted query instead of the text.
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
            # A definition ends with its outermost selection set.
            is_within = bool(open_brackets) or token != "}"
    return None if is_within or open_brackets else starts
