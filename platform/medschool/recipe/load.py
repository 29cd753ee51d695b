"""From a YAML file to a checked Recipe, with errors that name file, line, key, problem and remedy.

YAML here is data only, read by the YAML 1.2 core rules. Plain PyYAML follows 1.1, where `15:4:1` is the number 54241, `3e-5` is
text, `no` is False and the second of two equal keys silently wins; each of those is closed below. Anchors, aliases and tags
are refused: nothing in a recipe stands for anything but itself.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.composer import ComposerError

from medschool.errors import RecipeError
from medschool.recipe.schema import Recipe

Path_ = tuple[str | int, ...]
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What reading YAML raises: syntax, bytes that are no UTF-8 or a number of too many digits, nesting too deep."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, no merge keys, no repeated keys, no anchors, aliases or tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor or getattr(event, "tag", None):
            raise ComposerError(None, None, "anchors, aliases and tags are not used in recipes", event.start_mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|false", [*"tf"]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*", [*"-+0123456789"]),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Decimal only: YAML 1.1 would read `010` as octal."""
    return int(node.value.replace("_", ""))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides of the form `section.field=value`, value in YAML.

    Raises RecipeError (file:line, key, problem, remedy) for anything that is not a valid recipe.
    """
    file = Path(path)
    if not file.is_file():
        nearby = (
            difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.yaml")], 1) if file.parent.is_dir() else []
        )
        raise RecipeError("no such file", f"did you mean {file.parent / nearby[0]}?" if nearby else "check the path", str(path))
    lines: dict[Path_, str] = {}
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), _Loader)
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError("holds no keys", "start from recipes/quickstart.yaml", str(path))
        data = _plain(node, (), lines, str(path))
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"not readable as YAML ({getattr(error, 'problem', None) or error})", "correct the syntax", where
        ) from error
    for override in overrides:
        _apply(data, override, lines)
    return checked(data, lines, str(path))


def checked(data: dict[str, Any], lines: dict[Path_, str], where: str) -> Recipe:
    """The recipe of plain values; RecipeError at the line of the key that is wrong, or at `where`."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, lines, where) from error


def _plain(node: yaml.Node, path: Path_, lines: dict[Path_, str], file: str) -> Any:
    """Plain Python values of a node, noting the place of every key."""
    lines.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, index), lines, file) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    data: dict[str, Any] = {}
    for key_node, child in node.value:
        key = str(key_node.value)
        where = f"{file}:{key_node.start_mark.line + 1}"
        if key in data:
            raise RecipeError(f"{dotted((*path, key))}: given twice", "keep one; YAML would silently take the last", where)
        lines[(*path, key)] = where
        data[key] = _plain(child, (*path, key), lines, file)
    return data


def _scalar(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _apply(data: dict[str, Any], override: str, lines: dict[Path_, str]) -> None:
    """Put one `a.b=value` into `data`."""
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError("not of the form section.field=value", "write for example --set pretrain.batch_rows=20", where)
    try:
        node = yaml.compose(text, _Loader)
        value = None if node is None else _plain(node, tuple(key.split(".")), {}, where)
    except UNREADABLE as error:
        raise RecipeError(
            f"the value is not readable as YAML ({getattr(error, 'problem', None) or error})", "quote it", where
        ) from error
    put(data, key, value, where)
    changed = tuple(key.split("."))
    for stale in [path for path in lines if path[: len(changed)] == changed]:
        del lines[stale]
    lines[changed] = where


def put(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put a value under a dotted key; RecipeError at `where` when something on the way is no section."""
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise RecipeError(f"{key}: its parent is not a section", "name a key of the recipe", where)
    place[last] = value


def _explain(error: ValidationError, lines: dict[Path_, str], file: str) -> RecipeError:
    """The first problem, at its line, a misspelt key before the one that is then missing; further ones are counted."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = tuple(part for part in first["loc"] if part != "[key]")
    problem, remedy = _words(first, path)
    if not path:  # a check across sections names its key itself: `gate.control: 'x' is not one of ...`
        key, _, problem = problem.partition(": ")
        path = tuple(key.split("."))
    known = next((path[:size] for size in range(len(path), -1, -1) if path[:size] in lines), ())
    where = lines.get(known, file)
    more = error.error_count() - 1
    return RecipeError(
        f"{dotted(path)}: {problem}" if path else problem, remedy + (f" ({more} more after this one)" if more else ""), where
    )


def _words(error: Any, path: Path_) -> tuple[str, str]:
    """Problem and remedy of one pydantic error."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        fields = _fields_at(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), fields, 1)
        return "unknown key", f"did you mean `{close[0]}`?" if close else f"known keys here: {', '.join(fields)}"
    if kind == "missing":
        return "is missing", "there is no default for what defines the run: add it"
    if kind == "value_error":
        return str(context.get("error", error["msg"])), "correct the recipe"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}", "give a value of that kind"


def _fields_at(path: Path_) -> list[str]:
    """Names of the fields of the section at `path`."""
    model: Any = Recipe
    for part in path:
        fields = getattr(model, "model_fields", {})
        annotation = fields[part].annotation if part in fields else model
        model = _section_in(annotation) or model
    return list(getattr(model, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The Section class inside an annotation such as dict[str, Source], or None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None


def dotted(path: Path_) -> str:
    """`("a", 0, "b")` as `a[0].b`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
