"""A run's config: from a YAML file to a checked `Config` (schema.py), one of those of the tasks, and back to a file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from detseg.config.messages import explain
from detseg.config.presets import with_preset
from detseg.config.schema import Config, DetectionConfig, SegmentationConfig, Truth
from detseg.config.tree import Node, read_tree, to_yaml
from detseg.errors import UserError
from detseg.files import written_whole

__all__ = [
    "Config",
    "DetectionConfig",
    "SegmentationConfig",
    "config_schema",
    "load_config",
    "load_data_config",
    "parse_config",
    "save_config",
]

_BY_TASK = TypeAdapter(Annotated[Config, Field(discriminator="task")])
_TRUTH_BY_TASK = TypeAdapter(Annotated[Truth, Field(discriminator="task")])


def load_config(source: str | os.PathLike | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with its bases and `overrides` applied; `task` says which of Config's.

    source:    the file's path, or the mapping that would stand in it (lists may be tuples, paths pathlib's), checked
               alike and called "config" in messages; it has no base.

    A file may name one parent: `base: other.yaml`, relative to itself. Mappings merge key by key; lists and scalars of
    the child replace the parent's. A mapping that gets another `name` (or data.format) replaces the parent's whole,
    because the parent's keys were meant for another thing; unless the two names take the same keys (fcn32s, fcn16s,
    fcn8s): then it merges.

    overrides: strings "a.b=c" as given to --set, c being YAML. Each replaces exactly the value at a.b, mappings and
               lists too, and later ones win; `loss.0.weight=2` reaches into a list. A key left over that the new value
               of another key doesn't take is an error, so an optimizer is changed in one go:
               "train.optimizer={name: adam, learning_rate: 1e-3}".

    model.preset stands for the keys of one of `detseg.pretrained.catalogue.PRESETS`; a key that says otherwise is an
    error.

    YAML is read safely and as version 1.2 has it (1e-4 is a number, `no` is text), without anchors and tags.
    Raises UserError with one line per mistake: file and line or override, key, what was expected.
    """
    tree, problems = read_tree(source, overrides)
    return _checked(with_preset(tree, problems), problems, _BY_TASK, Config)


def load_data_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Truth:
    """As `load_config`, of a config's task and data sections; the others are not needed and not read."""
    tree, problems = read_tree(path, overrides)
    tree = replace(tree, value={key: node for key, node in tree.value.items() if key in ("task", "data")})
    return _checked(tree, problems, _TRUTH_BY_TASK, Truth)


def _checked(tree: Node, problems: list[str], adapter: TypeAdapter, schema: Any) -> Config | Truth:
    """The config in `tree`; UserError with its mistakes and the `problems` found so far, if there are any."""
    try:
        config = adapter.validate_python(tree.plain())
    except ValidationError as error:
        problems += explain(error, tree, schema)
    if problems:
        raise UserError("\n".join(problems))
    return config


def parse_config(mapping: Mapping[str, Any]) -> Config:
    """The config of a dict with all of its keys, such as `config.model_dump(mode="json")`.

    Raises pydantic's ValidationError, a ValueError, if it isn't one.
    """
    return _BY_TASK.validate_python(mapping)


def save_config(config: Config, path: str | os.PathLike) -> None:
    """Writes every key of `config` as YAML that load_config reads back to an equal Config.

    The file appears by rename, whole or not at all. Raises UserError if it can't be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(to_yaml(config.model_dump(mode="json")), encoding="utf-8")


def config_schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors: keys, types, choices and descriptions; anyOf the tasks.

    No key is required in it, since a base file may hold it; load_config says what is missing.
    """
    schema = _BY_TASK.json_schema()
    base = {"type": "string", "description": "One config file to inherit from, relative to this file."}
    for task in get_args(Config):
        definition = schema["$defs"][task.__name__]
        definition["properties"] = {"base": base, **definition["properties"]}
    schema = json.loads(json.dumps(schema), object_hook=_for_partial_files)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _for_partial_files(schema: dict[str, Any]) -> dict[str, Any]:
    """Without `required`; and with anyOf for oneOf, since more than one choice fits a mapping without its name."""
    return {"anyOf" if key == "oneOf" else key: value for key, value in schema.items() if key != "required"}
