"""`response_format`: the answer must be JSON, and fit a schema where one is given. What a request may say, and its bounds.

A schema is compiled into an automaton by the engine, so what a stranger may hand in is bounded here, before any compiler sees it.
Inside the bounds the engine decides what it can follow (`Engine.check_schema`).

Source: OpenAI's API reference, "Create chat completion", `response_format`: text, json_object, json_schema {name, schema}.
`strict: false` asks for a best effort there; here every schema is followed.
"""

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ANY_OBJECT = '{"type":"object"}'
MAX_SCHEMA_CHARS = 2**15
MAX_SCHEMA_DEPTH = 32
"""Objects and lists inside each other. OpenAI's guide allows ten levels of a schema, each of which takes two or three."""


class JsonSchema(BaseModel):
    """A schema by name, as OpenAI's clients send it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    name: str
    definition: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if _depth(self.definition) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"the schema may be nested {MAX_SCHEMA_DEPTH} deep at most")
        if len(self.text) > MAX_SCHEMA_CHARS:
            raise ValueError(f"the schema may have {MAX_SCHEMA_CHARS} characters at most")
        return self

    @property
    def text(self) -> str:
        return json.dumps(self.definition, ensure_ascii=False, separators=(",", ":"))


class ResponseFormat(BaseModel):
    """What form the answer takes."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("give `json_schema` with the type json_schema, and with no other")
        return self

    @property
    def schema_text(self) -> str | None:
        """The schema that the answer must fit, as JSON; None for any text."""
        if self.type == "text":
            return None
        return self.json_schema.text if self.json_schema else ANY_OBJECT


def _depth(value: Any) -> int:
    """Levels of objects and lists, found without recursion."""
    deepest, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        deepest += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest
