"""Writes the tables of docs/configs.md from the schema of configs: every key with type, default, meaning and users.

    python tools/config_tables.py            write the tables anew
    python tools/config_tables.py --check    exit 1 where they are not what the schema says (part of `make lint`)

What stands between the two marks in the page is replaced. A key's table is that of its path; where a section has
several forms, chosen by `name`, `format` or the key of a transform, the last column says which of them have the key.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import yaml
from pydantic import TypeAdapter

from detseg.config import Config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configs.md"
BEGIN, END = "<!-- tables: written by tools/config_tables.py -->", "<!-- end of the tables -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{PAGE}: expected the lines {BEGIN} and {END}")
    new = f"{before}{BEGIN}\n\n{tables()}\n\n{end}{after}"
    if options.check and new != text:
        sys.exit(f"{PAGE}: its tables are not what the schema says; run: python tools/config_tables.py")
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")


def tables():
    """All tables as Markdown, one for each path of keys."""
    reader = SchemaReader()
    for config in get_args(Config):
        reader.read_config(TypeAdapter(config).json_schema())
    paths = {}
    for path, table in reader.tables.items():
        paths.setdefault(table.markdown(), []).append(f"`{path}`" if path else "The file")
    return "\n\n".join(f"### {', '.join(titles)}\n\n{body}" for body, titles in paths.items())


class Table:
    """The keys of one path of the config, such as train.optimizer, over all tasks and forms.

    forms:  {(task, form): what the schema says of it}; a form is a value of `name` or `format`, or "" for the only one.
    rows:   {(key, type, default, meaning): set of the (task, form) that have it}.
    """

    def __init__(self):
        self.forms, self.rows = {}, {}

    def add_form(self, form, description):
        self.forms.setdefault(form, description)

    def add_row(self, row, form):
        """Adds a key of a form, behind the other rows of this key."""
        if row not in self.rows:
            same_key = [index for index, other in enumerate(self.rows) if other[0] == row[0]]
            rows = list(self.rows.items())
            rows.insert(same_key[-1] + 1 if same_key else len(rows), (row, set()))
            self.rows = dict(rows)
        self.rows[row].add(form)

    def markdown(self):
        users = {row: self._users(forms) for row, forms in self.rows.items()}
        with_users = set(users.values()) != {"all"}
        head = ["key", "type", "default", "meaning", *(["for"] if with_users else [])]
        lines = [head, ["---"] * len(head)]
        for row, user in users.items():
            lines.append([*map(_cell, row), *([_cell(user)] if with_users else [])])
        return "\n".join([*self._described_forms(), *(f"| {' | '.join(line)} |" for line in lines)])

    def _described_forms(self):
        """What the forms are: a sentence, or a list in which those of one description stand together."""
        by_description = {}
        for form, description in self.forms.items():
            by_description.setdefault(description, set()).add(form)
        if len(by_description) == 1:
            return [*map(_cell, by_description), ""] if any(by_description) else []
        return [*(f"- {self._users(forms)}: {_cell(text)}" for text, forms in by_description.items()), ""]

    def _users(self, forms):
        """A set of forms in few words: all, all but a few, whole tasks, or their names."""
        if forms == set(self.forms):
            return "all"
        names, others = self._names(forms), self._names(set(self.forms) - forms)
        return f"all but {others}" if "task" not in others and len(names) > 2 * len(others) else names

    def _names(self, forms):
        names = []
        for task in dict.fromkeys(task for task, _ in self.forms):
            own = [form for form in self.forms if form[0] == task]
            taken = [form for form in own if form in forms]
            if taken == own:
                names.append(f"task: {task}")
                continue
            for _, name in taken:
                namesakes = {form for form in self.forms if form[1] == name}
                names.append(f"`{name}`" if namesakes <= forms else f"`{name}` ({task})")
        return ", ".join(dict.fromkeys(names))


class SchemaReader:
    """Walks the JSON schemas of the tasks' configs and collects the tables, in the order of the keys."""

    def __init__(self):
        self.tables = {}

    def read_config(self, schema):
        self._definitions = schema["$defs"]
        task = schema["properties"]["task"]["const"]
        self._read_mapping("", schema, [(task, "")])

    def _read_mapping(self, path, schema, forms, chosen_by=None):
        """Adds the keys of a mapping's schema to the table of its path.

        forms:      list of (task, form) that have it.
        chosen_by:  the key that chooses among the forms; they are listed, so that it has no row.
        """
        table = self.tables.setdefault(path, Table())
        for form in forms:
            table.add_form(form, schema.get("description", ""))
        inner = []
        for key, value in schema["properties"].items():
            if key != chosen_by:
                required = key in schema.get("required", ())
                default = "required" if required else _yaml(value.get("default"))
                row = (f"`{key}`", self._type(value), default, self._resolved(value).get("description", ""))
                for form in forms:
                    table.add_row(row, form)
                inner.append((f"{path}.{key}" if path else key, value))
        for inner_path, value in inner:
            self._read_inside(inner_path, value, forms)

    def _read_inside(self, path, schema, forms):
        """Goes down to the mappings that a value may be: itself, one of several, or the items of a list."""
        if "$ref" in schema:
            definition = self._resolved(schema)
            if "properties" in definition:
                self._read_mapping(path, definition, forms)
            return
        if "items" in schema:
            self._read_inside(f"{path}[]", schema["items"], forms)
        members = schema.get("oneOf", schema.get("anyOf", ()))
        key = schema.get("discriminator", {}).get("propertyName")
        for member in members:
            definition = self._resolved(member)
            if key:
                task = forms[0][0]
                names = _constants(definition["properties"][key])
                self._read_mapping(path, definition, [(task, name) for name in names], key)
            elif path.endswith("augmentation[]"):
                self._read_transform(definition, forms[0][0])
            else:
                self._read_inside(path, member, forms)

    def _read_transform(self, definition, task):
        """A transform is a mapping with one key; its own keys, where it has some, are in tables of their own."""
        ((key, value),) = definition["properties"].items()
        path = "augmentation[]"
        table = self.tables.setdefault(path, Table())
        table.add_form((task, ""), "")
        table.add_row((f"`{key}`", self._type(value), "required", value["description"]), (task, ""))
        for form in [value, *value.get("anyOf", ())]:
            if "properties" in form:
                self._read_mapping(f"{path}.{key}", form, [(task, "")])

    def _resolved(self, schema):
        """What a reference stands for, under the description that is written beside it."""
        if "$ref" not in schema:
            return schema
        return self._definitions[schema["$ref"].rpartition("/")[2]] | {k: v for k, v in schema.items() if k != "$ref"}

    def _type(self, schema):
        """A JSON schema in words."""
        schema = self._resolved(schema)
        members = schema.get("oneOf", schema.get("anyOf"))
        if members:
            return " or ".join(dict.fromkeys(map(self._type, members)))
        if "const" in schema or "enum" in schema:
            return ", ".join(f"`{value}`" for value in _constants(schema))
        kind = schema.get("type", "anything")
        if kind == "array":
            return self._array_type(schema)
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"{{name: {self._type(values)}}}" if isinstance(values, dict) else "mapping"
        return {"integer": "whole number", "boolean": "true, false", "string": "text"}.get(kind, kind) + _bounds(schema)

    def _array_type(self, schema):
        if "prefixItems" in schema:
            kinds = list(map(self._type, schema["prefixItems"]))
            return f"list of {len(kinds)}: {kinds[0]}" if len(set(kinds)) == 1 else f"[{', '.join(kinds)}]"
        return f"list of: {self._type(schema['items'])}"


def _constants(schema):
    return [schema["const"]] if "const" in schema else schema["enum"]


def _bounds(schema):
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _number(value):
    return "2^32" if value == 2**32 else f"{value:g}"


def _yaml(value):
    """A default as a config would have it, on one line."""
    rounded = float(f"{value:.4g}") if isinstance(value, float) else value
    text = yaml.safe_dump(rounded, default_flow_style=True, width=10**6, sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
