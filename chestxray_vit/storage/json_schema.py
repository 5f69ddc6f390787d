"""Check what was read from JSON against a JSON Schema, and report every mismatch with its path.

The keywords below are understood, as the JSON Schema standard (2020-12) defines them; any other is an error of the
schema, so that none is passed over in silence. Two rules are stricter than the standard's: 2.0 is not an integer, and
NaN and infinity are not numbers."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple, Union

Key = Union[str, int]
Schema = Mapping[str, Any]

MISSING, UNKNOWN, WRONG = "missing", "unknown", "wrong"  # kinds of mismatches
LONGEST_VALUE = 40  # characters of a value in a message
TYPES: Dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,  # True is an instance of int
    "number": lambda value: type(value) is int or (isinstance(value, float) and math.isfinite(value)),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description", "examples", "$comment"}


class Mismatch(NamedTuple):
    """One place where a content differs from a schema.

    Attributes:
        path: the keys and indices that lead there from the outermost value; of a missing entry, where it belongs.
        kind: MISSING, UNKNOWN (an entry that the schema does not allow) or WRONG.
        found: the value there as `shown` gives it; "nothing" of a missing entry.
        expected: the schema's `title`, else what its keywords ask for; of an unknown entry the known ones.
    """

    path: Tuple[Key, ...]
    kind: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).lstrip(".")
        return f"{where or 'content'}: found {self.found}, expected {self.expected}"


def mismatches(content: Any, schema: Schema) -> List[Mismatch]:
    """Return all places where what was read from JSON differs from a schema; none if it conforms.

    >>> schema = object_of({"num_images": {"type": "integer", "minimum": 0}, "split": {"enum": ["train", "test"]}})
    >>> for mismatch in mismatches({"num_images": -1, "split": "dev"}, schema):
    ...     print(mismatch)
    num_images: found -1, expected a whole number >= 0
    split: found "dev", expected one of "train", "test"

    Raises:
        ValueError: the schema holds a keyword that is not understood.
    """
    return list(_Checker(schema).check(content, schema, ()))


def conforms(content: Any, schema: Schema) -> bool:
    """Return whether what was read from JSON conforms to a schema."""
    return next(_Checker(schema).check(content, schema, ()), None) is None


def object_of(properties: Mapping[str, Schema], closed: bool = False) -> Dict[str, Any]:
    """Return the schema of an object that has all these entries.

    Args:
        properties: the schema of each entry.
        closed: whether other entries are refused.
    """
    result = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {**result, "additionalProperties": False} if closed else result


def list_of(items: Schema) -> Dict[str, Any]:
    """Return the schema of a list whose items all conform to one schema."""
    return {"type": "array", "items": dict(items)}


def shown(value: Any) -> str:
    """Return a value as short JSON; a list or an object only as such."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


class _Checker:
    """The check of one content; `root` is the schema that `$ref` refers to."""

    def __init__(self, root: Schema):
        self.root = root

    def check(self, content: Any, schema: Schema, path: Tuple[Key, ...]) -> Iterator[Mismatch]:
        schema = self.resolved(schema)
        unknown = set(schema) - set(_LIMITS) - ANNOTATIONS - {"properties", "required", "additionalProperties", "items"}
        if unknown:
            raise ValueError(f"keywords of a JSON Schema that are not understood here: {sorted(unknown)}")
        if not all(_LIMITS[keyword](self, content, schema[keyword]) for keyword in schema if keyword in _LIMITS):
            yield Mismatch(path, WRONG, shown(content), _expected(schema))
        elif isinstance(content, dict):
            yield from self.check_entries(content, schema, path)
        elif isinstance(content, list) and "items" in schema:
            for index, item in enumerate(content):
                yield from self.check(item, schema["items"], (*path, index))

    def check_entries(self, content: Dict[str, Any], schema: Schema, path: Tuple[Key, ...]) -> Iterator[Mismatch]:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            if name not in content:
                expected = _expected(self.resolved(properties.get(name, {})))
                yield Mismatch((*path, name), MISSING, "nothing", expected)
        for name, value in content.items():
            if name in properties:
                yield from self.check(value, properties[name], (*path, name))
            elif others is False:
                yield Mismatch((*path, name), UNKNOWN, shown(value), f"only {', '.join(properties)}")
            elif others is not True:
                yield from self.check(value, others, (*path, name))

    def resolved(self, schema: Schema) -> Schema:
        """Return the schema that a `$ref` such as `#/$defs/interval` refers to."""
        while "$ref" in schema:
            target: Any = self.root
            for name in schema["$ref"].split("/")[1:]:
                target = target[name]
            schema = target
        return schema

    def any_of(self, content: Any, schemas: Sequence[Schema]) -> bool:
        return any(next(self.check(content, schema, ()), None) is None for schema in schemas)


def _has_type(content: Any, types: Union[str, Sequence[str]]) -> bool:
    return any(TYPES[name](content) for name in ([types] if isinstance(types, str) else types))


def _equal(content: Any, value: Any) -> bool:
    return content == value and isinstance(content, bool) == isinstance(value, bool)  # True == 1 in Python


# Whether a value keeps to a keyword; a keyword of numbers, texts or lists says nothing of other types.
_LIMITS: Dict[str, Callable[[_Checker, Any, Any], bool]] = {
    "type": lambda _, content, types: _has_type(content, types),
    "enum": lambda _, content, values: any(_equal(content, value) for value in values),
    "const": lambda _, content, value: _equal(content, value),
    "minimum": lambda _, content, bound: not TYPES["number"](content) or content >= bound,
    "maximum": lambda _, content, bound: not TYPES["number"](content) or content <= bound,
    "pattern": lambda _, content, pattern: not isinstance(content, str) or re.search(pattern, content) is not None,
    "minItems": lambda _, content, count: not isinstance(content, list) or len(content) >= count,
    "maxItems": lambda _, content, count: not isinstance(content, list) or len(content) <= count,
    "anyOf": _Checker.any_of,
}


def _expected(schema: Schema) -> str:
    """Return in words what a schema asks of a value."""
    if "title" in schema:
        return schema["title"]
    if "const" in schema:
        return shown(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(shown, schema['enum']))}"
    if "anyOf" in schema:
        return " or ".join(_expected(part) for part in schema["anyOf"])
    types = schema.get("type", [])
    words = " or ".join(WORDS[name] for name in ([types] if isinstance(types, str) else types)) or "a value"
    for keyword, sign in (("minimum", ">="), ("maximum", "<=")):
        if keyword in schema:
            words += f" {'and ' if sign == '<=' and 'minimum' in schema else ''}{sign} {schema[keyword]}"
    if "pattern" in schema:
        words += f" of the form {schema['pattern']}"
    for keyword, most in (("minItems", "at least"), ("maxItems", "at most")):
        words += f" of {most} {schema[keyword]} items" if keyword in schema else ""
    return words
