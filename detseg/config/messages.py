"""Turns pydantic's errors into lines that say where the mistake is, what was expected and what to do."""

import ast
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from detseg.config.augmentation import KINDS
from detseg.config.tree import Node
from detseg.fields import FORMS, shown

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that isn't empty",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def explain(error: ValidationError, tree: Node, schema: Any) -> list[str]:
    """One line for each mistake that was found in `tree`. schema: the model that it was checked by, or a union."""
    roots, lines = _models_in(schema), []
    for mistake in error.errors():
        path, owner, models = _follow(mistake, roots)
        more_path, text = _text(mistake, path, owner, models, roots)
        path += more_path
        if not isinstance(tree.nearest(path[:-1]).value, dict | list):  # {flip: sideways}: its field is no key
            path = path[:-1]
        node = tree.nearest(path)
        if mistake["type"] in ("missing", "union_tag_not_found") and node.note:
            text += f" ({node.note})"
        lines.append(node.place.problem(path, text))
    return lines


def _follow(mistake: dict, roots: list[type[BaseModel]]) -> tuple[tuple, type[BaseModel], list[type[BaseModel]]]:
    """Path in the file of pydantic's location; the model whose key it is; the models that its value may be.

    A location also names, after every choice among models or forms, the choice that was taken.
    """
    path: tuple = ()
    owner, models = roots[0], roots
    # The last part of an unknown key's location is the user's word, not the schema's.
    for part in mistake["loc"][:-1] if mistake["type"] == "extra_forbidden" else mistake["loc"]:
        if part in FORMS:
            continue
        if isinstance(part, str) and len(models) > 1:
            models = [member for member in models if part in _names(member)]
            if part in KINDS:  # the one choice that is a key of the file too
                path += (part,)
            continue
        path += (part,)
        if isinstance(part, str) and models:
            owner = models[0]
            models = _models_in(owner.model_fields[part].annotation)
    return path, owner, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _names(model: type[BaseModel]) -> tuple:
    """The values of task, name, format or kind that stand for this model."""
    if hasattr(model, "kind"):
        return (model.kind,)
    keys = [key for key in ("task", "name", "format") if key in model.model_fields]
    return get_args(model.model_fields[keys[0]].annotation) if keys else ()


def _other_task(mistake: dict, path: tuple, roots: list, word: Any, words_of: Callable) -> str | None:
    """The task whose models at `path` know `word` (`words_of` a model), where those of this config's task don't."""
    if len(path) > 1 or not mistake["loc"]:
        return None
    tasks: list = []
    for root in roots:
        section = root.model_fields.get(path[0]) if path else None
        models = [root] if not path else _models_in(section.annotation) if section else []
        if any(word in words_of(model) for model in models):
            tasks += _names(root)
    return tasks[0] if tasks and mistake["loc"][0] not in tasks else None


def _text(mistake: dict, path: tuple, owner: type[BaseModel], models: list, roots: list) -> tuple[tuple, str]:
    """What is wrong and what was expected; before it, the rest of the path if the mistake lies deeper than `path`."""
    kind, value, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        key, section = mistake["loc"][-1], models[0]
        task = _other_task(mistake, path, roots, key, lambda model: model.model_fields)
        advice = f"it is for task: {task}" if task else _instead(key, section.model_fields)
        return (key,), f"unknown key; {section.elsewhere.get(key, advice)}"
    if kind == "missing":
        return (), _missing(owner.model_fields[path[-1]])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        key = ast.literal_eval(context["discriminator"])
        choices = [name for model in models for name in _names(model)]
        if kind == "union_tag_not_found":
            return (key,), f"missing; {_one_of(choices)}"
        task = _other_task(mistake, path, roots, value.get(key), _names)
        hint = f"; {value[key]!r} is for task: {task}" if task else ""
        return (key,), _not_among(value.get(key), choices) + hint
    if kind == "literal_error":
        return (), _not_among(value, [ast.literal_eval(text) for text in re.split(", | or ", context["expected"])])
    if kind == "augmentation":
        if isinstance(value, dict) and len(value) == 1:
            (key,) = value
            return (key,), f"unknown key; {_instead(key, KINDS)}"
        return (), f"got {shown(value)}, expected a mapping with one key, one of {', '.join(KINDS)}"
    if kind == "value_error":
        return (), str(context["error"])
    expected = mistake["msg"] if kind == "form" else _expected(kind, value, context, models)
    return (), f"got {shown(value)}, expected {expected}"


def _expected(kind: str, value: Any, context: dict, models: list) -> str:
    if kind in _BOUNDS:
        (bound,) = context.values()
        return f"{'a number' if isinstance(bound, float) else 'a whole number'} {_BOUNDS[kind]} {bound:.10g}"
    if kind == "string_type" and isinstance(value, int | float):
        return f"text; in quotes if that is what is meant: '{value}'"
    if kind in ("model_type", "model_attributes_type"):
        needed = [key for key, field in models[0].model_fields.items() if field.is_required()] if models else []
        keys = [key for key in needed if all(key in model.model_fields for model in models)]
        return f"a mapping like {{{', '.join(f'{key}: ..' for key in keys)}}}"
    return _TYPES[kind]


def _missing(field: Any) -> str:
    description = field.description[0].lower() + field.description[1:].rstrip(".")
    models = _models_in(field.annotation)
    choices = [] if models else [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f"missing: {description}" + (f"; {_one_of(choices)}" if choices else "")


def _not_among(value: Any, choices: list) -> str:
    close = difflib.get_close_matches(str(value), map(str, choices), n=1)
    return f"got {shown(value)}, {_one_of(choices)}" + (f"; did you mean {close[0]!r}?" if close else "")


def _one_of(choices: Iterable) -> str:
    choices = [str(choice) for choice in choices]
    return f"expected {choices[0]}" if len(choices) == 1 else f"expected one of {', '.join(choices)}"


def _instead(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
