"""What goes into a message body and what a consumer function gets out of it.

Sending: bytes go out as they are, str as UTF-8, everything else as JSON (dict, list, numbers, dataclasses,
`msgspec.Struct`, datetime, UUID, Enum, … : what msgspec encodes). Receiving is told by the function's annotations:

| parameter | gets |
|---|---|
| without annotation, or `ReceivedMessage` | the message |
| `bytes` | the body |
| `str` | the body as UTF-8 |
| any other type | the body read as JSON and checked against that type |

A function has one parameter for the message, one for the payload, or one of each in any order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from rocketq.errors import ConfigError, InvalidMessage, RocketQError
from rocketq.message import ReceivedMessage

__all__ = ["PayloadError", "decoder", "encode", "parameters"]


class PayloadError(RocketQError, ValueError):
    """A body is not what the consumer function's annotation says it is."""


def encode(payload: object) -> bytes:
    """The body for `payload`. Raises InvalidMessage when there is no way to write it or it would be empty."""
    if isinstance(payload, bytes):
        body = payload
    elif isinstance(payload, str):
        body = payload.encode()
    elif isinstance(payload, (bytearray, memoryview)):
        body = bytes(payload)
    else:
        try:
            body = msgspec.json.encode(payload)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise InvalidMessage(
                f"a {type(payload).__name__} cannot be sent: {error} (send bytes, str or something that JSON can hold)"
            ) from None
    if not body:
        raise InvalidMessage("the payload is empty: the protocol has no messages without a body")
    return body


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"the body is not UTF-8 text: {error}") from None


def decoder(annotation: Any) -> Callable[[bytes], Any]:
    """The function that turns a body into `annotation`; it raises PayloadError for a body that does not fit.

    Raises ConfigError when msgspec cannot read JSON into that type.
    """
    if annotation is bytes:
        return lambda body: body
    if annotation is str:
        return _text
    try:
        read = msgspec.json.Decoder(annotation).decode
    except TypeError as error:
        raise ConfigError(f"a payload cannot be read as {annotation!r}: {error}") from None
    # msgspec accepts any class and finds out with the first body that it cannot make one.
    if isinstance(msgspec.inspect.type_info(annotation), msgspec.inspect.CustomType):
        raise ConfigError(f"a payload cannot be read as {annotation!r}: JSON has nothing like it")

    def decode(body: bytes) -> Any:
        try:
            return read(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PayloadError(
                f"the body is not a {getattr(annotation, '__name__', annotation)}: {error}"
            ) from None

    return decode


def _payload_getter(annotation: Any) -> Callable[[ReceivedMessage], Any]:
    decode = decoder(annotation)
    return lambda message: decode(message.body)


def parameters(
    function: Callable[..., Any], *, may_be_none: bool = False
) -> Callable[[ReceivedMessage], tuple[Any, ...]]:
    """What turns a message into the positional arguments of `function`, by the table above.

    `may_be_none`: a function without parameters will do too. Raises ConfigError for a signature that the table does
    not cover.
    """
    name = getattr(function, "__qualname__", repr(function))
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ConfigError(
                f"consumer {name}: parameter {parameter.name!r} is keyword-only, nothing can fill it"
            )
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and (
            parameter.default is parameter.empty
        ):
            required.append(parameter)
    target = function if inspect.isroutine(function) else getattr(function, "func", type(function).__call__)
    try:
        hints = get_type_hints(target, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"consumer {name}: {error} in its annotations (define or import it in the module)"
        ) from None
    getters: list[Callable[[ReceivedMessage], Any]] = []
    kinds = []
    for parameter in required:
        annotation = hints.get(parameter.name, ReceivedMessage)
        if annotation is ReceivedMessage:
            kinds.append("message")
            getters.append(lambda message: message)
        else:
            kinds.append("payload")
            getters.append(_payload_getter(annotation))
    if may_be_none and not kinds:
        return lambda message: ()
    if kinds == ["message"]:
        return lambda message: (message,)
    if sorted(kinds) not in (["payload"], ["message", "payload"]):
        raise ConfigError(
            f"consumer {name}({', '.join(p.name for p in required)}) has to take the message, the payload, or one of "
            "each; a parameter without annotation is the message, an annotated one the payload"
        )
    return lambda message: tuple([get(message) for get in getters])
