"""Reads a config file into a tree that knows where each value was written, with its bases and the --set overrides."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from detseg.errors import UserError
from detseg.fields import shown

_CHOICE_KEYS = ("name", "format")  # the keys that decide which other keys a mapping has

_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
# First character, pattern: YAML 1.2's core schema. 1.1, which PyYAML speaks by itself, reads 1e-4 as text, the class
# name `no` as false, 12:30 as 750 and 010 as 8.
_SCALARS = {
    "tag:yaml.org,2002:null": (["~", "n", "N", ""], re.compile(r"(?:~|null|Null|NULL|)$")),
    "tag:yaml.org,2002:bool": (list("tTfF"), re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")),
    "tag:yaml.org,2002:int": (list("-+0123456789"), re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")),
    "tag:yaml.org,2002:float": (list("-+.0123456789"), _FLOAT),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: "fcn.yaml:3", or "--set seed=1" with the path that this label names already."""

    label: str
    names: tuple | None = None

    def problem(self, path: Sequence[str | int], text: str) -> str:
        """One line about the value at `path`; the path is left out where the label already says it."""
        path = tuple(str(part) for part in path)
        return f"{self.label}: {text}" if path in ((), self.names) else f"{self.label}: {'.'.join(path)}: {text}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the config: a dict of Nodes, a list of Nodes, or a plain scalar."""

    value: Any
    place: Place
    note: str = ""  # what happened to the mapping that explains a key missing from it

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def nearest(self, path: Sequence[str | int]) -> "Node":
        """The node at `path`, or the last one on the way to it."""
        node = self
        for part in path:
            child = node.child(str(part))
            if child is None:
                break
            node = child
        return node

    def child(self, key: str) -> "Node | None":
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and key.isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a config may not use."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of version 1.2, without anchors (use `base`) and without tags."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own way to say which plain scalars mean what

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused(problem="anchors and aliases (&, *) are not allowed here", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise _Refused(problem=f"the tag {event.tag!r} is not allowed here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            value = self.construct_object(node)
        except ValueError as error:  # Python refuses whole numbers of more than 4300 digits
            raise _Refused(problem=str(error), problem_mark=node.start_mark) from error
        if value in (float("inf"), float("-inf")):
            raise _Refused(problem=f"{node.value} is too large for a number", problem_mark=node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back; quotes text that version 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data):
        return True

    def analyze_scalar(self, scalar):
        analysis = super().analyze_scalar(scalar)
        if any(character in "\x85\u2028\u2029" for character in scalar):  # PyYAML writes them bare, reads line ends
            analysis.allow_flow_plain = analysis.allow_block_plain = False
            analysis.allow_single_quoted = analysis.allow_block = False
        return analysis


for _tag, (_first, _pattern) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def to_yaml(value: Any) -> str:
    """YAML text that reads back as `value` (dicts, lists and scalars); the innermost lists and mappings on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def read_tree(
    path: str | os.PathLike,
    overrides: Sequence[str],
    defaults: dict[str, dict],
    take_same_keys: Callable[[str, str], bool],
) -> tuple[Node, list[str]]:
    """The tree of the config at `path`, and the mistakes found that didn't keep it from being read.

    defaults:        {task: the lists and mappings that its configs have even where no file names them}.
    take_same_keys:  says of two names whether mappings of those names have the same keys (see `_merge`).
    Raises UserError where a file can't be read at all or `base` leads nowhere.
    """
    problems: list[str] = []
    tree = _read_with_bases(Path(path), (), problems, take_same_keys)
    of_task = [text for text in overrides if text.partition("=")[0].strip() == "task"]  # decide on the defaults
    for text in of_task:
        tree = _override(tree, text, problems)
    task = tree.child("task")
    if task is not None and isinstance(task.value, str):
        tree = _with_defaults(tree, defaults.get(task.value, {}))
    for text in overrides:
        if text not in of_task:
            tree = _override(tree, text, problems)
    return tree, problems


def _read_with_bases(path: Path, children: tuple[Path, ...], problems: list[str], take_same_keys) -> Node:
    node = _read_file(path, problems)
    base = node.value.pop("base", None)
    if base is None:
        return node
    if not isinstance(base.value, str) or not base.value:
        raise UserError(base.place.problem(("base",), f"got {shown(base.plain())}, expected the path of one YAML file"))
    parent = Path(os.path.normpath(path.parent / base.value))
    children = (*children, path)
    if parent.resolve() in [child.resolve() for child in children]:
        circle = " -> ".join(str(file) for file in (*children, parent))
        raise UserError(base.place.problem(("base",), f"the files inherit from each other in a circle: {circle}"))
    if not parent.is_file():
        raise UserError(
            base.place.problem(("base",), f"there is no file {parent} (the path is relative to the file that names it)")
        )
    return _merge(_read_with_bases(parent, children, problems, take_same_keys), node, take_same_keys)


def _read_file(path: Path, problems: list[str]) -> Node:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such config file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; expected a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8 text; save the file as UTF-8") from None
    try:
        node = _parse(text, Place(str(path)), lambda mark: Place(f"{path}:{mark.line + 1}"), (), problems)
    except (yaml.YAMLError, RecursionError) as error:
        line, reason = _explain(error, text)
        raise UserError(f"{path}{f':{line}' if line else ''}: {reason}") from None
    if node is None:
        raise UserError(f"{path}: the file is empty; expected the keys of a config")
    if not isinstance(node.value, dict):
        raise UserError(f"{path}: got {shown(node.plain())}, expected a mapping of keys to values")
    return node


def _parse(text: str, place: Place, place_at: Callable, path: tuple, problems: list[str]) -> Node | None:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _from_yaml(root, place, place_at, path, loader, problems)
    finally:
        loader.dispose()


def _from_yaml(node: yaml.Node, place: Place, place_at: Callable, path: tuple, loader: _Loader, problems) -> Node:
    if isinstance(node, yaml.ScalarNode):
        return Node(loader.scalar(node), place)
    if isinstance(node, yaml.SequenceNode):
        items = [
            _from_yaml(item, place_at(item.start_mark), place_at, (*path, i), loader, problems)
            for i, item in enumerate(node.value)
        ]
        return Node(items, place)
    mapping, lines = {}, {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _Refused(problem="a key has to be plain text", problem_mark=key_node.start_mark)
        key, here = key_node.value, place_at(key_node.start_mark)  # as written: a class may be called `no` or `1`
        value = _from_yaml(value_node, here, place_at, (*path, key), loader, problems)
        if key in mapping:
            first = f"line {lines[key]}" if here.names is None else "the same value"
            problems.append(here.problem((*path, key), f"the key is written twice; first in {first}"))
            continue
        mapping[key], lines[key] = value, key_node.start_mark.line + 1
    return Node(mapping, place)


def _explain(error: Exception, text: str) -> tuple[int | None, str]:
    """Line (from 1) and one-line reason of what PyYAML couldn't read."""
    if isinstance(error, RecursionError):
        return None, "the values are nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        return line, f"not valid YAML: the character U+{error.character:04X} is not allowed"
    mark = error.problem_mark or error.context_mark
    reason = error.problem if isinstance(error, _Refused) else f"not valid YAML: {error.problem or error.context}"
    if "'\\t'" in reason:
        reason += " (indent with spaces, not with tabs)"
    return mark.line + 1 if mark else None, reason


def _merge(parent: Node, child: Node, take_same_keys: Callable[[str, str], bool]) -> Node:
    """`child` over `parent`: mappings merge key by key; lists and scalars of the child replace the parent's.

    A mapping that the child gives another `name` (or `format`) replaces the parent's whole, since the parent's keys
    were meant for another thing; unless both names take the same keys (fcn32s, fcn16s, fcn8s), then it merges.
    """
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    for key in _CHOICE_KEYS:
        if key in parent.value and key in child.value:
            old, new = parent.value[key].value, child.value[key].value
            if old != new and not take_same_keys(old, new):
                source = parent.value[key].place.label
                note = f"the {key} is no longer {old!r} ({source}), so nothing of that mapping is inherited"
                return replace(child, note=note)
    merged = dict(parent.value)
    for key, node in child.value.items():
        merged[key] = _merge(merged[key], node, take_same_keys) if key in merged else node
    return Node(merged, child.place, parent.note)


def _override(tree: Node, text: str, problems: list[str]) -> Node:
    """`tree` with one override "a.b=c": exactly the value at a.b is replaced, c being YAML."""
    label = f"--set {' '.join(text.split())}"
    place = Place(label)
    dotted, equals, value_text = text.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        problems.append(place.problem((), "expected KEY=VALUE, with dots between nested keys, as in train.epochs=10"))
        return tree
    if path == ("base",):
        problems.append(place.problem((), "the base can be named in a file only"))
        return tree
    place = Place(label, path)
    try:
        value = _parse(value_text, place, lambda mark: place, path, problems)
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(place.problem((), _explain(error, value_text)[1]))
        return tree
    if value is None:
        problems.append(place.problem((), "there is no value after '='; write null for none, '' for empty text"))
        return tree
    try:
        return _with_value(tree, path, (), value)
    except LookupError as error:
        problems.append(place.problem((), error.args[0]))
        return tree


def _with_value(node: Node, path: tuple[str, ...], done: tuple[str, ...], value: Node) -> Node:
    """`node` with `value` at `path` below it; mappings on the way are made where there are none."""
    if not path:
        return value
    key, rest, here = path[0], path[1:], (*done, path[0])
    if isinstance(node.value, list):
        if node.child(key) is None:
            count = len(node.value)
            numbers = f"its items are numbered 0 to {count - 1}" if count else "the list is empty"
            raise LookupError(f"{'.'.join(done)} has no item {key!r}; {numbers}")
        items = list(node.value)
        items[int(key)] = _with_value(items[int(key)], rest, here, value)
        return replace(node, value=items)
    if not isinstance(node.value, dict) and node.value is not None:
        raise LookupError(f"{'.'.join(done)} is {shown(node.value)} and holds no {key!r}")
    mapping = dict(node.value or {})
    mapping[key] = _with_value(mapping.get(key, Node({}, value.place)), rest, here, value)
    return replace(node, value=mapping)


def _with_defaults(node: Node, defaults: dict) -> Node:
    mapping = dict(node.value)
    for key, default in defaults.items():
        present = mapping.get(key)
        if present is None:
            mapping[key] = _from_plain(default, node.place)
        elif isinstance(default, dict) and isinstance(present.value, dict):
            mapping[key] = _with_defaults(present, default)
    return replace(node, value=mapping)


def _from_plain(value: Any, place: Place) -> Node:
    if isinstance(value, dict):
        return Node({key: _from_plain(item, place) for key, item in value.items()}, place)
    if isinstance(value, list):
        return Node([_from_plain(item, place) for item in value], place)
    return Node(value, place)
