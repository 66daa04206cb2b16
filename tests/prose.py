"""Finds sentences that are hard to read: `python -m tests.prose` prints where they are and ends with 1 if there are any.

It reads the docstrings, comments, errors and log lines of `swr/`, and the pages of the documentation. It finds sentences
of more than 30 words, phrases that a reader must translate, and docstrings whose first line begins with neither a verb
nor a noun.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LONGEST = 30
# Each phrase, with advice for a better sentence.
PHRASES = {
    r"^What (is|was|has|keeps|lies|are|were|can|may|the|a|an|it|they|this|reads|costs)\b(?![^?]*\?)": "begin with who acts",
    r"^Whoever\b": "begin with who acts",
    r"^Nobody\b": "say who does what",
    r"\b[Ss]o many\b": "say the number or its name",
    r"\bas ever\b": "leave it out",
    r"(?<!Nothing )(?<!here )\bis no (?!longer\b|more\b|other\b|such\b|one\b)(?=\w+)": "is not a",
    r"\b[Ii]n place of\b": "instead of",
    r"\banew\b": "again",
    r"\ball the same\b[,.;:]": "anyway",
    r"\bamid\b": "during",
    r"\bstands? for\b": "represents",
    r"\bgo(?:es)? by\b(?! way)": "uses",
    r"\bpass(?:es|ed)? the cache by\b": "bypasses",
    r"\bis told of\b": "say who tells whom",
    r"\bstands? in for\b": "is a fallback for",
    r"\bbehind the reader's back\b": "in the background",
    r", [\w` ]*(?<!wait)(?<!waits)(?<!waited)(?<!waiting)(?<!asks) for one(?=[,.;)])": "for example",
    r", for (it|they|he|she|there|nobody|what) (is|are|has|have|was|were|can|may|does|do)\b": "because",
}
# The first word of a docstring that begins with neither a verb nor a noun.
_BAD_FIRST = re.compile(r"^(That|What|Whether|Who|Whoever|How|Where|When|If|It|This)\b")
_LOGGING = {"debug", "info", "warning", "error", "exception"}
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z`\"'(\[*]|swr\b)")
_WORD = re.compile(r"[A-Za-z0-9][\w'./:-]*")


class Finding(NamedTuple):
    """One sentence that is hard to read."""

    path: Path
    line: int
    why: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.why}: {self.sentence}"


def sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph, without its code."""
    plain = re.sub(r"`[^`]*`", "`x`", text)
    plain = re.sub(r"\]\([^)]*\)", "]", plain)
    return [sentence.strip() for sentence in _SENTENCE.split(" ".join(plain.split())) if sentence.strip()]


def judge(text: str) -> Iterator[tuple[str, str]]:
    """Yield why a sentence of `text` is hard to read, and the sentence."""
    # Lists of keys, arguments and replies of a script, and trees, are not sentences.
    if " -> " in text or "├" in text:
        return
    for sentence in sentences(text):
        words = len(_WORD.findall(sentence))
        if words > LONGEST:
            yield f"{words} words", sentence
        for phrase, better in PHRASES.items():
            if re.search(phrase, sentence):
                yield better, sentence


def paragraphs_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs, list items and cells of a Markdown page, with their lines."""
    fenced, begun, held = False, 0, []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        stripped = line.strip()
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
            stripped = ""
        elif fenced or (line.startswith("    ") and not held):
            continue
        if stripped.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", stripped.strip("|")):
                yield number, cell
            continue
        if stripped.startswith("#"):
            stripped = ""
        item = re.match(r"(?:[-*] |\d+\. |> )", stripped)
        if (not stripped or item) and held:
            yield begun, " ".join(held)
            held = []
        if stripped:
            if not held:
                begun = number
            held.append(stripped[item.end() :] if item else stripped)


def _text_of(node: ast.expr) -> str:
    """Return the text of a string, with "x" for each filled-in value; "" if `node` is not a string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts_of_module(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield the prose of a module: the line, the text, and whether the text is a docstring."""
    source = path.read_text()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, docstring, True
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from ((node.lineno, text, False) for text in map(_text_of, node.exc.args) if text)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOGGING:
            yield from ((node.lineno, text, False) for text in map(_text_of, node.args[:1]) if text)
        elif isinstance(node, ast.keyword) and node.arg == "help":
            yield node.value.lineno, _text_of(node.value), False
    with path.open("rb") as file:
        held: list[str] = []
        begun = last = 0
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT or token.string.startswith("#!"):
                continue
            if held and token.start[0] != last + 1:
                yield begun, " ".join(held), False
                held = []
            begun = begun if held else token.start[0]
            held.append(token.string.lstrip("# ").partition("noqa")[0] + ("." if "noqa" in token.string else ""))
            last = token.start[0]
        if held:
            yield begun, " ".join(held), False


def findings(path: Path) -> Iterator[Finding]:
    """Yield the sentences of a module or a page that are hard to read."""
    if path.suffix == ".md":
        for line, text in paragraphs_of_page(path.read_text()):
            yield from (Finding(path, line, why, sentence) for why, sentence in judge(text))
        return
    for line, text, is_docstring in texts_of_module(path):
        if is_docstring and _BAD_FIRST.match(text):
            yield Finding(path, line, "begin with a verb or a noun", text.splitlines()[0])
        for part in re.split(r"\n\s*\n|\n(?=\s*\w[\w, ]*: )|\n(?=\s*[-|] )", text):
            yield from (Finding(path, line, why, sentence) for why, sentence in judge(part))


def main() -> int:
    """Print the findings in all modules and pages; return 1 if there are any."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [finding for path in [*sorted((ROOT / "swr").rglob("*.py")), *pages] for finding in findings(path)]
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
