"""YAML files that are checked by a model of what they may say: each error with the file, the line and the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from miriam.errors import MiriamError

__all__ = ["Document", "Loc"]

Loc = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was read, which knows where its keys are written.

    Attributes
    ----------
    data
        What it says.
    """

    path: Path
    data: dict[str, Any]
    _tree: yaml.Node | None

    @staticmethod
    def read(path: Path, error: type[MiriamError]) -> Document:
        """Read a file.

        Raises
        ------
        MiriamError
            An ``error``: it cannot be read, is no YAML, or writes a key twice.
        """
        try:
            text = path.read_text("utf-8")
            tree = yaml.compose(text, yaml.SafeLoader)
            twice = list(_duplicates(tree, ()))
            data = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as why:
            raise error(f"cannot read {path}: {getattr(why, 'strerror', None) or why}") from why
        except yaml.MarkedYAMLError as why:
            mark = why.problem_mark or why.context_mark
            line = "" if mark is None else f":{mark.line + 1}"
            raise error(f"{path}{line}: this is no YAML: {why.problem or why.context}") from why
        except (yaml.YAMLError, RecursionError, ValueError) as why:
            raise error(f"{path}: this is no YAML: {str(why) or type(why).__name__}") from why
        if not isinstance(data, dict):
            raise error(f"{path}:1: write keys and values, such as 'models:'")
        document = Document(path, data, tree)
        if twice:
            raise error(document.told(twice))
        return document

    def checked(self, model: type[Checked], error: type[MiriamError]) -> Checked:
        """The same as ``model``.

        Raises
        ------
        MiriamError
            An ``error``: it says something that the model does not allow.
        """
        try:
            return model.model_validate(self.data)
        except ValidationError as why:
            raise error(self.told(_problem(model, found) for found in why.errors())) from why

    def told(self, problems: Iterable[tuple[Loc, str]]) -> str:
        """A line for each problem: ``load.yaml:12: models.detector.poisson: ...``."""
        return "\n".join(
            f"{self.path}{_line(self._tree, loc)}: {'.'.join(map(str, loc))}{': ' if loc else ''}{what}"
            for loc, what in problems
        )


def _problem(model: type[BaseModel], found: Mapping[str, Any]) -> tuple[Loc, str]:
    loc: Loc = found["loc"]
    if found["type"] == "extra_forbidden":
        known = _fields(model, loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), known, 1)
        return loc, "unknown key; " + (f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}")
    if found["type"] == "missing":
        return loc, "is missing"
    return loc, str(found["msg"]).removeprefix("Value error, ")


def _fields(model: Any, loc: Loc) -> list[str]:
    """The keys that there are at a place."""
    for key in loc:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(key)].annotation
            if isinstance(model, UnionType):  # a section, or None
                model = get_args(model)[0]
        else:  # a mapping or a list of sections
            model = get_args(model)[-1]
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _line(node: yaml.Node | None, loc: Loc) -> str:
    """Where a key is written, as far as the file has it."""
    line: int | None = None
    for key in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in reversed(node.value) if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key], node.value[key])
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return "" if line is None else f":{line + 1}"


def _duplicates(node: yaml.Node | None, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if len(loc) > _DEEPEST or not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            yield (*loc, name), "is written twice"
        seen.add(name)
        yield from _duplicates(value, (*loc, name))
