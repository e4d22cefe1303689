"""What the pages say: links lead somewhere, configs load, the tables are those of the schema and of the tree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from detseg.config import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "data" / "README.md"])


def name(path):
    return str(path.relative_to(REPOSITORY))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), f"{name(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{name(page)} links to {target}"


def test_every_page_is_linked_from_the_readme():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [page for page in map(name, PAGES) if "/" in page and f"({page})" not in text] == []
    assert len(text.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configs_of_the_pages_load(page, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        if block.startswith("task:"):
            (tmp_path / "config.yaml").write_text(block)
            load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_the_pages_name_files_that_exist(page):
    for file in re.findall(r"(?:tools|configs)/[\w/]+\.(?:py|sh|yaml)", page.read_text(encoding="utf-8")):
        assert (REPOSITORY / file).is_file(), f"{name(page)} names {file}"


def test_the_architecture_table_has_every_folder_in_the_order_of_the_layers():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| in `detseg/` |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    rows = [name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)]
    assert set(rows) >= {path.parent.name for path in REPOSITORY.glob("detseg/*/__init__.py")}
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [name for line in contracts[0]["layers"] for name in re.findall(r"detseg\.(\w+)", line)]
    assert rows == ["__init__", *layers[: layers.index("config") + 1]]


def test_the_key_tables_are_those_of_the_schema():
    tool = [sys.executable, str(REPOSITORY / "tools" / "config_tables.py")]
    assert subprocess.run([*tool, "--check"], check=False).returncode == 0
    text = (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8")
    decay = [line for line in text.splitlines() if line.startswith("| `weight_decay`")]
    assert len(decay) == 2  # adamw's default is another
    assert decay[1].startswith("| `weight_decay` | number >= 0 | `0.004` |")
    assert decay[1].endswith("| `adamw` |")
