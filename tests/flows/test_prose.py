"""The lint of the prose finds what it is to find, where it is to look, and nothing in code."""

import sys

import pages
import pytest

sys.path.insert(0, str(pages.PROJECT / "tests" / "prose"))
import check

PAGE = """# A page

That is no-
body's, and nobody
knows `nobody`.

```python
nobody = "nobody"
```
"""
MODULE = '''"""Give what nobody wants to see."""

nobody = f"nobody {1} left"  # till then


def is_it():
    """Is it there, or not?"""
    return "a page a task"
'''
CORE = """/* nothing of it
 * shall stay */
int nobody = '"'; // nobody
char *text = "leads nowhere";
"""


@pytest.fixture
def found(room, monkeypatch):
    """Write a file and return (line, words) of each finding."""
    monkeypatch.setattr(check, "PROJECT", room)

    def find(name, text):
        path = room / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return [(int(line.split(":")[1]), line.split("'")[1]) for line in check.findings(path)]

    return find


def test_a_page_is_looked_at_without_its_code(found):
    assert found("page.md", PAGE) == [(4, "nobody")]


def test_docstrings_comments_and_messages_of_python_are_looked_at(found):
    everything = [(1, "Give"), (1, "nobody"), (1, "wants to"), (1, "wants to see"), (3, "nobody"), (3, "till"), (7, "Is it there, or not?"),
                  (8, "a page a task")]  # fmt: skip
    assert found("src/module.py", MODULE) == everything
    assert found("tests/module.py", MODULE) == [each for each in everything if each[1] != "a page a task" and each != (3, "nobody")]


def test_comments_and_messages_of_c_are_looked_at(found):
    assert found("ext/core.c", CORE) == [(1, "nothing of it"), (2, "shall"), (3, "nobody"), (4, "leads nowhere")]


def test_each_phrase_has_better_words():
    assert all(rule.better.strip() and rule.pattern.pattern for rule in (*check.TEXT, *check.DOCSTRING))
    assert len(check.TEXT) >= 15
