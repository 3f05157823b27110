"""Strict configuration: a tree of typed classes, filled from defaults, then a YAML file, then KEY=VALUE arguments."""

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from finetune.errors import Exit, UserError, nearest

ALIASES = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
MAX_YAML_BYTES = 1_000_000
MAX_YAML_DEPTH = 50
PLAIN_TAGS = {"map", "seq", "str", "timestamp", "int", "float", "bool", "null", "merge", "value"}
BOUNDS = {  # pydantic's kinds of error
    "greater_than": "must be above {}",
    "greater_than_equal": "must be {} or more",
    "less_than": "must be below {}",
    "less_than_equal": "must be {} or less",
}
T = TypeVar("T")
Seed = typing.Annotated[int, Field(ge=0, lt=2**32)]  # what every library's generator takes


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
def configclass(cls: type[T]) -> type[T]:
    """Make a class a node of the configuration tree: keyword-only fields, checked types, unknown names refused."""
    settings = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return typing.cast("type[T]", pydantic_dataclass(kw_only=True, config=settings)(cls))


def field(default: Any, help: str) -> Any:
    """Declare a setting with its default (a callable makes a new one each time) and one line of meaning."""
    if callable(default):
        return Field(default_factory=default, description=help)
    return Field(default=default, description=help)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of a configuration tree."""

    path: str
    annotation: Any
    default: Any
    help: str

    @property
    def type_name(self) -> str:
        """Return the type as a person would write it, e.g. `int | None` or `truncate|error|window`."""
        return _type_name(self.annotation)


def settings(config_class: type) -> list[Setting]:
    """List every leaf of a configuration class, depth first, with dotted paths."""
    return list(_walk(config_class, config_class(), ""))


def load(config_class: type[T], overrides: list[str], file: Path | None = None) -> tuple[T, list[str]]:
    """Build a configuration from its defaults, then `file` (YAML 1.2), then `KEY=VALUE` overrides.

    Returns the configuration and notes for the person (short names that were spelt out).
    Raises UserError (exit 2) with the nearest name for an unknown key, and with the line for a fault in the file.
    """
    leaves = {setting.path: setting for setting in settings(config_class)}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    notes: list[str] = []
    if file is not None:
        for path, (value, line) in read_yaml(file, known=set(leaves)).items():
            if path == "recipe":  # says which configuration class the file belongs to
                continue
            name = resolve_name(path, leaves, notes, f"{file}:{line}: ")
            values[name], origin[name] = value, f"{file}:{line}"
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(Exit.USAGE, f"{override!r} is not KEY=VALUE; write for example {key or 'seed'}=1")
        name = resolve_name(key, leaves, notes, "")
        values[name], origin[name] = _parse_value(text, leaves[name], override), override
    return build(config_class, values, origin), notes


def build(config_class: type[T], values: dict[str, Any], origin: dict[str, str]) -> T:
    """Validate dotted values into a configuration; `origin` says for each where it was given."""
    tree = to_tree(config_class())  # a recipe may give a part other defaults than the part's own
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    try:
        return TypeAdapter(config_class).validate_python(tree)
    except ValidationError as error:
        known = {setting.path for setting in settings(config_class)}
        path = _error_path(error.errors()[0]["loc"], known)
        where = origin.get(path, path)
        wanted = next((s.type_name for s in settings(config_class) if s.path == path), "another value")
        value = values.get(path)
        reason = _reason([part for part in error.errors() if _error_path(part["loc"], known) == path], wanted)
        hint = f'; put it in quotes: "{value}"' if _is_unquoted_text(value, wanted) else ""
        hint = f"; give {path}=[{value}]" if wanted.startswith("[") and isinstance(value, str | int | float) else hint
        raise UserError(Exit.USAGE, f"{where}: {path} cannot be {value!r}: {reason}{hint}") from None


def resolve_name(key: str, leaves: dict[str, Setting], notes: list[str], where: str) -> str:
    """Return the dotted path of a setting named in full, by its last part, or by a short alias."""
    if key in leaves:
        return key
    *parents, leaf = key.split(".")
    spelt_out = ALIASES.get(leaf, leaf)
    candidates = [path for path in leaves if path == spelt_out or path.endswith("." + spelt_out)]
    if parents:
        candidates = [path for path in candidates if path == ".".join([*parents, spelt_out])]
    if len(candidates) == 1:
        if leaf in ALIASES:
            notes.append(f"{leaf} is short for {spelt_out}")
        return candidates[0]
    raise UserError(Exit.USAGE, f"{where}unknown setting {key}{_suggestion(key, leaves)}")


def to_tree(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dicts of plain values, every field resolved."""
    return typing.cast(dict[str, Any], TypeAdapter(type(config)).dump_python(config, mode="json"))


def refuse_for_model(checkpoint: str, part: str, given: Any, read: Collection[str] = ()) -> None:
    """Refuse settings of a part, `network` or `vocabulary`, of which a checkpoint has its own: raises UserError (2).

    `checkpoint` is the setting that names it, e.g. `model=NAME`; `read` are the names of those read all the same.
    """
    usual = to_tree(type(given)())
    for name, value in to_tree(given).items():
        if name not in read and value != usual[name]:
            what = f"{part}.{name}={value} is for random weights: {checkpoint} has a {part} of its own"
            raise UserError(Exit.USAGE, f"{what}; leave out one of the two")


def unescaped(text: str) -> str:
    """Return a text of the command line or of a setting with its \\n, \\t and \\\\ as line end, tab and backslash."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)


def to_yaml(tree: dict[str, Any]) -> str:
    """Write nested plain values as YAML 1.2 that `load` reads back to the same values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = "\\x85" not in repr(tree)  # ruamel writes this one raw, and reads it back as a space
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_schema(config_class: type) -> dict[str, Any]:
    """Return the JSON Schema of a configuration class, so that editors complete its YAML."""
    schema = TypeAdapter(config_class).json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["recipe"] = {"type": "string", "description": "Recipe that the file belongs to."}
    return schema


def read_yaml(file: Path, known: set[str] | None = None) -> dict[str, tuple[Any, int]]:
    """Read a YAML 1.2 mapping as dotted path -> (value, line).

    Duplicate keys, tags, aliases and deep nesting are refused (UserError, exit 2).
    A nested mapping is opened only where `known` has settings below it (all of them where `known` is None).
    """
    node = _compose(file)
    if node is None or (isinstance(node, ScalarNode) and node.value == ""):  # nothing, or only a `---`
        return {}
    if not isinstance(node, MappingNode):
        raise UserError(Exit.USAGE, f"{file}:1: expected `key: value` lines")
    found: dict[str, tuple[Any, int]] = {}
    _refuse_extras(file, node)
    _collect(file, node, "", known, found)
    return found


def yaml_value(file: Path, key: str) -> str | None:
    """Return one top-level value of a YAML file as text, or None where the file does not have it."""
    value = read_yaml(file).get(key)
    return None if value is None else str(value[0])


def _compose(file: Path) -> Node | None:
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise UserError(Exit.NO_INPUT, f"{file}: no such file") from None
    except OSError as error:
        raise UserError(Exit.NO_INPUT, f"{file}: {error.strerror}") from None
    if len(raw) > MAX_YAML_BYTES:
        raise UserError(Exit.USAGE, f"{file}: {len(raw):,} bytes is too large for a configuration")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(Exit.USAGE, f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        return typing.cast("Node | None", _safe_yaml().compose(io.StringIO(text)))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "not YAML"
        line = mark.line + 1 if mark is not None else 1
        raise UserError(Exit.USAGE, f"{file}:{line}: {reason}") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(Exit.USAGE, f"{file}:1: {reason}") from None


def _safe_yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _collect(
    file: Path, node: MappingNode, prefix: str, known: set[str] | None, found: dict[str, tuple[Any, int]]
) -> None:
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise UserError(Exit.USAGE, f"{file}:{line}: a key must be a name")
        path = f"{prefix}{key_node.value}"
        if any(seen == path or seen.startswith(f"{path}.") for seen in found):
            raise UserError(Exit.USAGE, f"{file}:{line}: {path} is given twice")
        opens = known is None or any(name.startswith(f"{path}.") for name in known)
        if isinstance(value_node, MappingNode) and opens:
            if prefix.count(".") > MAX_YAML_DEPTH:
                raise UserError(Exit.USAGE, f"{file}:{line}: nested too deeply")
            _refuse_extras(file, value_node)
            _collect(file, value_node, f"{path}.", known, found)
        else:
            found[path] = (_plain(file, value_node, 0), line)


def _plain(file: Path, node: Node, depth: int) -> Any:
    _refuse_extras(file, node)
    if depth > MAX_YAML_DEPTH:
        raise UserError(Exit.USAGE, f"{file}:{node.start_mark.line + 1}: nested too deeply")
    if isinstance(node, SequenceNode):
        return [_plain(file, item, depth + 1) for item in node.value]
    if isinstance(node, MappingNode):
        return {str(key.value): _plain(file, value, depth + 1) for key, value in node.value}
    return _scalar(file, node)


def _refuse_extras(file: Path, node: Node) -> None:
    """Refuse anchors, which can make a small file endless, and tags, which name types of a program."""
    where = f"{file}:{node.start_mark.line + 1}"
    if node.anchor is not None:
        raise UserError(Exit.USAGE, f"{where}: anchors and aliases are not accepted; write the value out")
    if str(node.tag).removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise UserError(Exit.USAGE, f"{where}: tag {node.tag} is not accepted; write a plain value")


def _scalar(file: Path, node: Node) -> Any:
    kind = str(node.tag).rsplit(":", 1)[-1]
    if kind in {"str", "timestamp"}:  # a date stays the text that was written
        return node.value
    if kind == "null":
        return None
    if kind in {"int", "float", "bool"}:
        with contextlib.suppress(Exception):  # ruamel's constructors raise anything, e.g. for `!!int x`
            return _safe_yaml().load(node.value)
    raise UserError(Exit.USAGE, f"{file}:{node.start_mark.line + 1}: {node.value} is not accepted; put it in quotes")


def _parse_value(text: str, setting: Setting, override: str) -> Any:
    kinds = set(_leaf_types(setting.annotation))
    if text in {"null", "none", "None"} and type(None) in kinds:
        return None
    if str in kinds and not (text.startswith("[") and _takes_list(setting.annotation)):
        return text
    if len(text) > MAX_YAML_BYTES or text.count("[") > MAX_YAML_DEPTH:
        raise UserError(Exit.USAGE, f"{setting.path}: the value is too large")
    try:
        yaml = YAML(typ="base" if str in kinds else "safe", pure=True)  # base: every scalar stays text
        return yaml.load(text)
    except Exception:  # ruamel's constructors raise whatever a malformed scalar makes them raise
        raise UserError(Exit.USAGE, f"{override}: {text!r} is not a YAML value; expected {setting.type_name}") from None


def _walk(config_class: type, defaults: Any, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    for item in dataclasses.fields(config_class):
        annotation, default = hints[item.name], getattr(defaults, item.name)
        if dataclasses.is_dataclass(annotation):
            yield from _walk(typing.cast(type, annotation), default, f"{prefix}{item.name}.")
            continue
        help = item.default.description if isinstance(item.default, FieldInfo) else None
        yield Setting(f"{prefix}{item.name}", annotation, default, help or "")


def _leaf_types(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType, list, tuple, typing.Annotated}:
        for argument in typing.get_args(annotation):
            yield from _leaf_types(argument)
    else:
        yield annotation


def _takes_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is list or any(map(_takes_list, typing.get_args(annotation)))


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin in {list, tuple}:
        return f"[{', '.join(_type_name(argument) for argument in arguments)}]"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _error_path(location: tuple[int | str, ...], known: set[str]) -> str:
    path = ""
    for part in location:  # pydantic appends the branch of a union; stop at the setting's own name
        longer = f"{path}.{part}" if path else str(part)
        if path in known or not any(name == longer or name.startswith(f"{longer}.") for name in known):
            break
        path = longer
    return path or ".".join(str(part) for part in location)


def _reason(errors: list[Any], wanted: str) -> str:
    """Return what is wrong with a setting: where the type fits, the bound it is beyond; a union has several errors."""
    for error in errors:
        if error["type"] == "value_error":
            return str(error["msg"].removeprefix("Value error, "))
        if error["type"] in BOUNDS:
            (bound,) = error["ctx"].values()
            return BOUNDS[error["type"]].format(f"{bound:g}" if isinstance(bound, float) else bound)
    return f"expected {wanted}"


def _is_unquoted_text(value: Any, wanted: str) -> bool:
    return isinstance(value, int | float | bool) and "str" in wanted.split(" | ")


def _suggestion(key: str, leaves: dict[str, Setting]) -> str:
    names = {path.rsplit(".", 1)[-1]: path for path in leaves} | {path: path for path in leaves}
    close = nearest(key, names)
    if close:
        return f"; did you mean {close}?"
    sections = sorted(path for path in leaves if path.startswith(f"{key}."))
    return f"; it is a group: {', '.join(sections[:4])} ..." if sections else ""
