"""A preset of the model section, written out."""

import difflib
from dataclasses import replace

from detseg.config.tree import Node
from detseg.pretrained.catalogue import PRESETS


def with_preset(tree: Node, problems: list[str]) -> Node:
    """`tree` with the keys that model.preset stands for, where there is one; its mistakes are added to `problems`."""
    model = tree.child("model")
    given = model.child("preset") if model is not None and isinstance(model.value, dict) else None
    if given is None or given.value is None:
        return tree
    path = ("model", "preset")
    if not isinstance(given.value, str) or given.value not in PRESETS:
        close = difflib.get_close_matches(str(given.value), PRESETS, n=1)
        instead = f"; did you mean {close[0]!r}?" if close else ""
        problems.append(
            given.place.problem(path, f"got {given.value!r}, expected one of {', '.join(PRESETS)}{instead}")
        )
        return tree
    preset = PRESETS[given.value]
    task = tree.child("task")
    if task is not None and task.value != preset.task:
        problems.append(
            given.place.problem(path, f"{given.value} is for task: {preset.task}; this config's task differs")
        )
        return tree
    children = dict(model.value)
    for key, value in preset.model.items():
        needed = Node(value, given.place)
        own = children.setdefault(key, needed)
        if _listed(own.plain()) != _listed(value):
            text = f"got {own.plain()!r}, but {given.value} has {_listed(value)!r}; leave the key out"
            problems.append(own.place.problem(("model", key), text))
    children.setdefault("weights", Node("coco", given.place))
    return replace(tree, value={**tree.value, "model": replace(model, value=children)})


def _listed(value):
    """With lists in the place of tuples."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
