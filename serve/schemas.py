"""JSON schemas of requests and answers, which /openapi.json shows and by which requests are checked."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema

from stablesam_jax.errors import InputError, shown

Schema = dict[str, Any]

FARTHEST = 1_000_000  # pixels; a coordinate beyond any picture is refused before arithmetic
SHOWN = 60  # characters of a value in a message


def record(required: Schema, optional: Schema | None = None, *, more: bool = False) -> Schema:
    """An object.

    Args:
        required: name -> schema of each field that must be given.
        optional: of those that may be.
        more: whether other fields may be given, which are ignored.
    """
    fields = required | (optional or {})
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": more}


def array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def number(low: float, high: float, about: str = "") -> Schema:
    """A number in a range."""
    return {"type": "number", "minimum": low, "maximum": high} | ({"description": about} if about else {})


def integer(low: int, high: int, about: str = "") -> Schema:
    """An integer in a range."""
    return {"type": "integer", "minimum": low, "maximum": high} | ({"description": about} if about else {})


def text(about: str = "", most: int | None = None) -> Schema:
    """A string."""
    described: Schema = {"type": "string"} | ({"description": about} if about else {})
    return described | ({} if most is None else {"maxLength": most})


COORDINATE = number(-FARTHEST, FARTHEST)
POINT = array(COORDINATE, 2, 2)
BOX = array(COORDINATE, 4, 4) | {"description": "x0, y0, x1, y1 in pixels of the picture"}
SHARE = number(0, 1)
ANY = record({}, more=True)
ERROR = record({"error": text("what is wrong, where, and what to do")})


def checker(schema: Schema) -> Callable[[bytes], Any]:
    """The function that parses the body of a request and checks it.

    It raises InputError where the body is not JSON, or not as the schema says.
    """
    validator = _Validator(schema)

    def check(body: bytes) -> Any:
        try:
            given = json.loads(body, parse_constant=_no_constant, parse_float=_plain)
        except (ValueError, RecursionError):
            raise InputError("the request is not JSON; send a JSON body in UTF-8.") from None
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(given))
        except RecursionError:
            raise InputError("the request is nested too deeply.") from None
        if error is not None:
            raise InputError(_message(error))
        return given

    return check


def _items(validator: Any, items: Schema, given: Any, schema: Schema) -> Iterator[jsonschema.ValidationError]:
    """Checks the items of a list that is not too long: millions of others would take minutes."""
    if isinstance(given, list) and len(given) <= schema.get("maxItems", len(given)):
        yield from jsonschema.Draft202012Validator.VALIDATORS["items"](validator, items, given, schema)


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"items": _items})


def _plain(literal: str) -> int | float:
    """A number; a whole one as an integer, since some programs write all numbers with a point."""
    value = float(literal)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _message(error: jsonschema.ValidationError) -> str:
    """One short line; the library's own repeats the value, which may be a picture."""
    place = functools.reduce(
        lambda path, part: f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}", error.absolute_path, ""
    )
    where = (place.removeprefix(".") or "the request")[:SHOWN]
    given = json.dumps(error.instance, default=str)
    given = given if len(given) <= SHOWN else f"{given[:SHOWN]}..."
    match error.validator:
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            reason = f"lacks {missing[0]}"
        case "additionalProperties":
            extra = sorted(set(error.instance) - set(error.schema.get("properties", {})))
            known = ", ".join(error.schema.get("properties", {}))
            reason = f"has {extra[0][:SHOWN]}, which is unknown; choose from {known}"
        case "type":
            reason = f"is {given}; expected {error.validator_value}"
        case "enum":
            reason = f"is {given}; expected one of {', '.join(map(str, error.validator_value))}"
        case "minItems" | "maxItems":
            bound = "at least" if error.validator == "minItems" else "at most"
            reason = f"has {len(error.instance)} items; expected {bound} {error.validator_value}"
        case "minimum" | "maximum":
            bound = "at least" if error.validator == "minimum" else "at most"
            reason = f"is {given}; expected {bound} {error.validator_value}"
        case _:
            reason = f"is {given}, which /openapi.json does not allow ({error.validator})"
    return shown(f"{where} {reason}.")
