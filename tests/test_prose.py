"""`scripts/prose` finds what is hard to read, and nothing else."""

import pytest

from tests import prose


@pytest.mark.parametrize(
    "sentence",
    [
        "What is stored is served.",
        "Whoever asks is answered.",
        "It waits so many seconds.",
        "Some field, `no-store` for one, forbids it.",
        "An entry stands in for the load.",
        "It is stored, for there is a rule.",
        "It is no function.",
        "A digest stands for a name, and is read anew in place of it.",
        "A decorator goes by the policy.",
        " ".join(["word"] * 31) + ".",
    ],
)
def test_sentence_that_must_be_read_twice_is_found(sentence):
    assert list(prose.judge(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "swr serves the stored entry. What happens next? It waits for one.",
        " ".join(["word"] * 30) + ".",
        "KEYS: what a script gets, for it is no sentence -> reply",
    ],
)
def test_plain_sentence_causes_no_finding(sentence):
    assert not list(prose.judge(sentence))


def test_code_and_headings_of_a_page_are_skipped():
    page = "# What is left\n\n```python\n# What is code\n```\n\nA paragraph\nof two lines.\n\n| a cell | What was |\n"
    assert list(prose.paragraphs_of_page(page)) == [
        (7, "A paragraph of two lines."),
        (10, " a cell "),
        (10, " What was "),
    ]


def test_docstrings_and_comments_of_a_module_are_judged(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""What is here."""\n\n# Whoever reads this\n# reads two lines.\nx = 1\n')
    found = [(finding.line, finding.why) for finding in prose.findings(module)]
    assert found == [(1, "begin with a verb or a noun"), (1, "begin with who acts"), (3, "begin with who acts")]
