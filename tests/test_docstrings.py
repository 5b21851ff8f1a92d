"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): count
    for file in sorted((ROOT / "iclkit").rglob("*.py"))
    if (count := len(re.findall(r'^ *(?:r?""")?>>> ', file.read_text(encoding="utf-8"), re.MULTILINE)))
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_docstrings_give_what_they_show(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner()
    found = {test.docstring: test for test in doctest.DocTestFinder().find(importlib.import_module(module))}
    for test in found.values():
        runner.run(test)
    assert runner.tries == EXAMPLES[module], "an example stands where doctest does not find it"
    assert not runner.failures, capsys.readouterr().out
