"""Reads a config file into a tree that knows where each value was written, with its bases and the --set overrides."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from detseg.errors import UserError
from detseg.fields import shown
from detseg.segmentation.options import FCNName

# What a config inherits from where its files don't say: the defaults that --set and child files can reach into.
_SCHEDULE = {"train": {"schedule": {"name": "constant"}}}
_DEFAULTS = {"segmentation": {"loss": [{"name": "cross_entropy"}], **_SCHEDULE}, "detection": _SCHEDULE}

_CHOICE_KEYS = ("name", "format")  # the keys that decide which other keys a mapping has
_SAME_KEYS = get_args(FCNName)  # the names with which it has the same

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
        child = self.child(str(path[0])) if path else None
        return self if child is None else child.nearest(path[1:])

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
            if value in (float("inf"), float("-inf")):
                raise ValueError(f"{node.value} is too large for a number")
        except ValueError as error:  # Python refuses whole numbers of more than 4300 digits
            raise _Refused(problem=str(error), problem_mark=node.start_mark) from error
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


def read_tree(source: str | os.PathLike | Mapping, overrides: Sequence[str]) -> tuple[Node, list[str]]:
    """The tree of a config and the mistakes found so far; UserError where a file or a base can't be read at all."""
    problems: list[str] = []
    if isinstance(source, Mapping):
        tree = _from_plain(source, Place("config"))
        if tree.value.pop("base", None) is not None:
            problems.append(tree.place.problem(("base",), "the base can be named in a file only"))
    elif isinstance(source, str | os.PathLike):
        tree = _read_with_bases(Path(source), (), problems)
    else:
        expected = "the path of a YAML file or a mapping of its keys"
        raise UserError(f"config: got {type(source).__name__}, expected {expected}")
    of_task = [text for text in overrides if text.partition("=")[0].strip() == "task"]  # decide on the defaults
    for text in of_task:
        tree = _override(tree, text, problems)
    task = tree.child("task")
    if task is not None:
        tree = _with_defaults(tree, _DEFAULTS.get(str(task.value), {}))
    for text in overrides:
        if text not in of_task:
            tree = _override(tree, text, problems)
    return tree, problems


def _read_with_bases(path: Path, children: tuple[Path, ...], problems: list[str]) -> Node:
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
        text = f"there is no file {parent} (the path is relative to the file that names it)"
        raise UserError(base.place.problem(("base",), text))
    return _merge(_read_with_bases(parent, children, problems), node)


def _read_file(path: Path, problems: list[str]) -> Node:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = _parse(text, Place(str(path)), (), problems)
    except (yaml.YAMLError, RecursionError) as error:
        line, reason = _explain(error, text)
        raise UserError(f"{path}{f':{line}' if line else ''}: {reason}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such config file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; expected a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8 text; save the file as UTF-8") from None
    if node is None:
        raise UserError(f"{path}: the file is empty; expected the keys of a config")
    if not isinstance(node.value, dict):
        raise UserError(f"{path}: got {shown(node.plain())}, expected a mapping of keys to values")
    return node


def _parse(text: str, source: Place, path: tuple, problems: list[str]) -> Node | None:
    """The tree of YAML `text`, the value at `path` of a config; None if there is nothing in it."""
    loader = _Loader(text)

    def place_of(node: yaml.Node) -> Place:
        return source if source.names is not None else Place(f"{source.label}:{node.start_mark.line + 1}")

    def tree(node: yaml.Node, place: Place, path: tuple) -> Node:
        if isinstance(node, yaml.ScalarNode):
            return Node(loader.scalar(node), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([tree(item, place_of(item), (*path, i)) for i, item in enumerate(node.value)], place)
        mapping, lines = {}, {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused(problem="a key has to be plain text", problem_mark=key_node.start_mark)
            key, here = key_node.value, place_of(key_node)  # as written: a class may be called `no` or `1`
            value = tree(value_node, here, (*path, key))
            if key in mapping:
                first = f"line {lines[key]}" if here.names is None else "the same value"
                problems.append(here.problem((*path, key), f"the key is written twice; first in {first}"))
                continue
            mapping[key], lines[key] = value, key_node.start_mark.line + 1
        return Node(mapping, place)

    try:
        root = loader.get_single_node()
        return None if root is None else tree(root, source, path)
    finally:
        loader.dispose()


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


def _merge(parent: Node, child: Node) -> Node:
    """`child` over `parent`, by the rules that `load_config` tells."""
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    for key in _CHOICE_KEYS:
        if key in parent.value and key in child.value:
            old, new = parent.value[key].value, child.value[key].value
            if old != new and not (old in _SAME_KEYS and new in _SAME_KEYS):
                source = parent.value[key].place.label
                note = f"the {key} is no longer {old!r} ({source}), so nothing of that mapping is inherited"
                return replace(child, note=note)
    merged = dict(parent.value)
    for key, node in child.value.items():
        merged[key] = _merge(merged[key], node) if key in merged else node
    return Node(merged, child.place, parent.note)


def _override(tree: Node, text: str, problems: list[str]) -> Node:
    """`tree` with one override "a.b=c": exactly the value at a.b is replaced, c being YAML."""
    label = f"--set {' '.join(text.split())}"
    dotted, equals, value_text = text.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    place = Place(label, path)
    try:
        if not equals or not all(path):
            raise LookupError("expected KEY=VALUE, with dots between nested keys, as in train.epochs=10")
        if path == ("base",):
            raise LookupError("the base can be named in a file only")
        value = _parse(value_text, place, path, problems)
        if value is None:
            raise LookupError("there is no value after '='; write null for none, '' for empty text")
        return _with_value(tree, path, (), value)
    except LookupError as error:
        reason = error.args[0]
    except (yaml.YAMLError, RecursionError) as error:
        reason = _explain(error, value_text)[1]
    problems.append(place.problem((), reason))
    return tree


def _with_value(node: Node, path: tuple[str, ...], done: tuple[str, ...], value: Node) -> Node:
    """`node` with `value` at `path` below it; mappings on the way are made where there are none."""
    if not path:
        return value
    key, child = path[0], node.child(path[0])
    if isinstance(node.value, list) and child is None:
        count = len(node.value)
        numbers = f"its items are numbered 0 to {count - 1}" if count else "the list is empty"
        raise LookupError(f"{'.'.join(done)} has no item {key!r}; {numbers}")
    if not isinstance(node.value, dict | list | None):
        raise LookupError(f"{'.'.join(done)} is {shown(node.value)} and holds no {key!r}")
    children = copy.copy(node.value or {})
    index = int(key) if isinstance(children, list) else key
    children[index] = _with_value(child or Node({}, value.place), path[1:], (*done, key), value)
    return replace(node, value=children)


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
    if isinstance(value, Mapping):
        return Node({str(key): _from_plain(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([_from_plain(item, place) for item in value], place)
    return Node(os.fspath(value) if isinstance(value, os.PathLike) else value, place)
