"""What programs may ask: every operation of the API, with a line that asks it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response

from web.pages.frame import encrypted, pages, rules_of, shown

router = pages()

Schema = Mapping[str, Any]
SAMPLES = {"integer": 1, "number": 0.5, "boolean": True, "array": [], "object": {}}


@dataclass(frozen=True)
class Parameter:
    """What may be told beside an address. kind: which values it takes, in words."""

    name: str
    place: str
    required: bool
    kind: str
    about: str


@dataclass(frozen=True)
class Operation:
    """One method of one path; curl: a line for a shell that asks it."""

    part: str
    method: str
    path: str
    summary: str
    more: str
    keyed: bool
    parameters: tuple[Parameter, ...]
    curl: str


@router.get("/docs")
def operations(request: Request) -> Response:
    """Every operation; it is read without a key, like the description that it is made from."""
    scheme = "https" if encrypted(request) else "http"
    found = described(
        request.app.openapi(), f"{scheme}://{request.headers.get('host', '127.0.0.1')}",
        not rules_of(request).loopback,
    )  # fmt: skip
    parts = [(part, list(some)) for part, some in groupby(found, lambda one: one.part)]
    return shown(request, "operations.html", {"parts": parts})


def described(document: Schema, address: str, with_key: bool) -> list[Operation]:
    """The operations of an OpenAPI document, those of one part together, in its order."""
    found = [
        _operation(document, path, method, one, address, with_key)
        for path, methods in document["paths"].items() for method, one in methods.items()
    ]  # fmt: skip
    order = list(dict.fromkeys(one.part for one in found))
    return sorted(found, key=lambda one: order.index(one.part))


def _operation(
    document: Schema, path: str, method: str, one: Schema, address: str, with_key: bool
) -> Operation:
    summary, _, more = one.get("description", one["summary"]).partition("\n")
    given = one.get("parameters", ())
    body = _body(document, one.get("requestBody", {}).get("content", {}))
    words = ["curl", *body]
    if with_key and "security" in one:
        words[1:1] = ["-H", "Authorization: Bearer regraft_…"]
    if method != ("post" if body else "get"):  # which curl takes by itself
        words[1:1] = ["-X", method.upper()]
    words.append(address + _address(path, given))
    return Operation(
        one.get("tags", ["other"])[0], method.upper(), path, summary, " ".join(more.split()),
        "security" in one, tuple(_parameter(each) for each in given),
        " ".join(_quoted(word) for word in words),
    )  # fmt: skip


def _quoted(word: str) -> str:
    return shlex.quote(word) if set(word) & set(" \"'{}[]?&*$<>()|;\\`!…") else word


def _parameter(one: Schema) -> Parameter:
    schema = one["schema"]
    kind = " or ".join(_kinds(schema))
    if "minimum" in schema or "maximum" in schema:
        kind += f", {schema.get('minimum', '…')} to {schema.get('maximum', '…')}"
    if schema.get("default") is not None:
        default = schema["default"]
        kind += f", else {default if isinstance(default, str) else json.dumps(default)}"
    return Parameter(
        one["name"], one["in"], one.get("required", False), kind, one.get("description", "")
    )


def _kinds(schema: Schema) -> Iterator[str]:
    if "enum" in schema:
        yield from (str(value) for value in schema["enum"])
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _kinds(one)
    elif schema.get("type") != "null":
        yield str(schema.get("format", schema.get("type", "text")))


def _address(path: str, given: Any) -> str:
    """The path with a value for whatever it cannot do without."""
    query, number = {}, 0
    for one in given:
        schema, name = one["schema"], one["name"]
        if not one.get("required") or one["in"] not in ("path", "query"):
            continue
        number += schema.get("type") == "integer"
        value = str(number) if schema.get("type") == "integer" else name.upper()
        if one["in"] == "path":
            path = path.replace(f"{{{name}}}", value)
        else:
            query[name] = value
    return path + (f"?{urlencode(query)}" if query else "")


def _body(document: Schema, content: Schema) -> list[str]:
    if "image/jpeg" in content:
        return ["-H", "Content-Type: image/jpeg", "--data-binary", "@picture.jpg"]
    if "application/json" not in content:
        return []
    wanted = content["application/json"]
    sample = wanted.get("example", _sample(document, wanted["schema"]))
    return ["--json", json.dumps(sample, ensure_ascii=False)]


def _sample(document: Schema, schema: Schema) -> Any:
    """A value that a schema allows: its own example, else the least that it demands."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _sample(document, schema["anyOf"][0])
    if "properties" in schema:
        return {
            name: _sample(document, one) for name, one in schema["properties"].items()
            if name in schema.get("required", ()) or "examples" in one
        }  # fmt: skip
    return SAMPLES.get(schema.get("type", ""), "…")
