"""Prints pip constraints that pin every dependency to the lower bound in pyproject.toml."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["rcnn"]]:
    name, bound = re.fullmatch(r"([\w-]+)(?:>=|==)([\d.]+)(?:,<[\d.]+)?", requirement).groups()
    print(f"{name}=={bound}")
