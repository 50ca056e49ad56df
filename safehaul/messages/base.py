"""The two bases of every message: recorded ones tolerate new fields, typed ones refuse unknown ones."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """What workflows and activities exchange. Recorded in histories: unknown fields are tolerated."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Request(BaseModel):
    """What a person types (workflow input, signals). Unknown fields are an error that names the field."""

    model_config = ConfigDict(extra="forbid", frozen=True)
