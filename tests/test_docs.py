"""The examples of docs/python.md run as they stand there, and keep their promise to be short."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
LONGEST = 20  # lines


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0][:30])
def test_examples_are_short(example):
    assert len([line for line in example.splitlines() if line.strip()]) <= LONGEST


def test_examples_run_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "examples"}
    for number, example in enumerate(EXAMPLES, 1):
        exec(compile(example, f"{PAGE.name}, example {number}", "exec"), names)
    assert (tmp_path / "drawn.png").is_file()
    assert names["one"].classes[0] == "background"
