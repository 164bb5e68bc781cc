"""Frames and commands: bytes in, commands out, and back. No sockets, no clock.

A frame is ``int32 length | uint8 type | uint24 header length | header | body``; the header is JSON (type 0)
or Apache's binary form (type 1, `RocketMQSerializable`). What a request carries besides its code travels in
``extFields``: kept as it came until somebody asks, then read either whole (:attr:`Command.ext`) or straight
into a typed record (:meth:`Command.header`).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import astuple

from rocketq.errors import HeaderError, ProtocolError
from rocketq.remoting.codes import BINARY, FLAG_ONEWAY, FLAG_RESPONSE, JSON, MAX_FRAME, VERSION, Language

_FRAME = struct.Struct(">iI")
_BINARY_HEAD = struct.Struct(">hBhiii")
_INT = struct.Struct(">i")
_SHORT = struct.Struct(">h")


class Header(msgspec.Struct, kw_only=True, gc=False, omit_defaults=False):
    """Base of the typed records for ``extFields``.

    A field's wire name is its ``msgspec.field(name=…)`` (or its own name), a field without default is one that
    the request cannot do without, and ``None`` means absent.
    """

    def to_ext(self) -> dict[str, str]:
        """The record as ``extFields``: every value a string, absent values left out."""
        ext: dict[str, str] = {}
        for wire, value in zip(self.__struct_encode_fields__, astuple(self)):  # noqa: B905 - equally long by nature
            if value is None:
                continue
            if value is True:
                ext[wire] = "true"
            elif value is False:
                ext[wire] = "false"
            else:
                ext[wire] = str(value)
        return ext


H = TypeVar("H", bound=Header)


def _as_text(value: object) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    return value if isinstance(value, str) else str(value)


def _convert(kind: type[H], ext: dict[str, str]) -> H:
    try:
        return msgspec.convert(ext, kind, strict=False)
    except msgspec.ValidationError as error:
        raise HeaderError(f"{kind.__name__}: {error}") from None


class _JsonHead(msgspec.Struct, gc=False):
    code: int = 0
    opaque: int = 0
    flag: int = 0
    language: Any = None
    version: int = 0
    remark: str | None = None
    extFields: msgspec.Raw = msgspec.Raw()


_decode_head = msgspec.json.Decoder(_JsonHead, strict=False).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_encode_json = msgspec.json.Encoder().encode
_LANGUAGES = {language.value: language.name for language in Language}


class Command:
    """One request or response. ``serialize_type`` tells which header encoding it came in (0 JSON, 1 binary)."""

    __slots__ = (
        "_ext",
        "_raw",
        "body",
        "code",
        "flag",
        "language",
        "opaque",
        "remark",
        "serialize_type",
        "version",
    )

    def __init__(
        self,
        code: int,
        *,
        opaque: int = 0,
        flag: int = 0,
        ext: dict[str, str] | None = None,
        remark: str | None = None,
        body: bytes = b"",
        language: object = "PYTHON",
        version: int = VERSION,
        serialize_type: int = JSON,
    ) -> None:
        self.code = code
        self.opaque = opaque
        self.flag = flag
        self.remark = remark
        self.body = body
        self.language = language
        self.version = version
        self.serialize_type = serialize_type
        self._ext = ext
        self._raw: msgspec.Raw | None = None

    def __repr__(self) -> str:
        kind = "response" if self.is_response else "oneway" if self.is_oneway else "request"
        return f"<Command {kind} code={self.code} opaque={self.opaque} body={len(self.body)} bytes>"

    @property
    def is_response(self) -> bool:
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & FLAG_ONEWAY)

    @property
    def ext(self) -> dict[str, str]:
        """``extFields`` with every value as text; empty when there are none.

        Raises HeaderError when the field is not a JSON object.
        """
        if self._ext is None:
            raw = self._raw
            if not raw or bytes(raw) == b"null":
                return {}
            try:
                fields = _decode_any(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise HeaderError(f"extFields: {error}") from None
            self._ext = {key: _as_text(value) for key, value in fields.items() if value is not None}
        return self._ext

    @property
    def has_ext(self) -> bool:
        """True when the header carried ``extFields``, even empty ones."""
        return self._ext is not None or (bool(self._raw) and bytes(self._raw or b"") != b"null")

    def header(self, kind: type[H]) -> H:
        """``extFields`` as a typed record.

        Raises HeaderError when a field that the record requires is missing or not of its type.
        """
        raw = self._raw
        if raw:
            try:
                return header_decoder(kind).decode(raw)  # type: ignore[no-any-return]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # numbers for text, nulls, "True": what real peers send; the slow way reads them
        return _convert(kind, self.ext)


@functools.cache
def header_decoder(kind: type[Header]) -> msgspec.json.Decoder[Any]:
    """What reads ``extFields`` as such a record. The first call for a kind takes a third of a ms."""
    return msgspec.json.Decoder(kind, strict=False)


class FrameDecoder:
    """Cuts a byte stream into commands.

    After :meth:`feed`, a set :attr:`error` means that the stream is beyond repair: handle the commands that came
    before it, then close the connection.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame
        self.error: ProtocolError | None = None
        self._rest = bytearray()
        self._needed = 4

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished frame that are held."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Command]:
        """All commands that are complete with `data`. Never raises."""
        if self.error is not None:
            return []
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        commands: list[Command] = []
        offset = 0
        end = len(data)
        try:
            while end - offset >= 8:
                length, head = _FRAME.unpack_from(data, offset)
                header_length = head & 0xFFFFFF
                if not 4 <= length <= self.max_frame:
                    raise ProtocolError(f"frame length {length} is not within 4 and {self.max_frame}")
                if header_length > length - 4:
                    raise ProtocolError(f"header length {header_length} exceeds the frame of {length} bytes")
                stop = offset + 4 + length
                if stop > end:
                    break
                start = offset + 8
                offset = stop
                if length == 4 and head == 0:
                    continue  # an empty frame is ignored, as the Java server does
                body = start + header_length
                if head >> 24 == JSON:
                    commands.append(_decode_json(data[start:body], data[body:stop]))
                else:
                    commands.append(decode_command(head >> 24, data[start:body], data[body:stop]))
            if end - offset >= 4:
                (length,) = _INT.unpack_from(data, offset)
                if not 4 <= length <= self.max_frame:
                    raise ProtocolError(f"frame length {length} is not within 4 and {self.max_frame}")
                self._needed = 4 + length if end - offset >= 8 else 8  # a lie about the header is found early
            else:
                self._needed = 4
        except ProtocolError as error:
            self.error = error
            return commands
        if offset < end:
            self._rest += data[offset:]
        return commands


def decode_command(kind: int, header: bytes, body: bytes) -> Command:
    """A command from its header and body; raises ProtocolError for anything that is not one."""
    if kind == JSON:
        return _decode_json(header, body)
    if kind == BINARY:
        return _decode_binary(header, body)
    raise ProtocolError(f"serialize type {kind} is neither 0 (JSON) nor 1 (ROCKETMQ)")


def _decode_json(header: bytes, body: bytes) -> Command:
    try:
        head = _decode_head(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the header is not a remoting command: {error}") from None
    command = Command.__new__(Command)
    command.code = head.code
    command.opaque = head.opaque
    command.flag = head.flag
    command.remark = head.remark
    command.body = body
    command.language = head.language
    command.version = head.version
    command.serialize_type = JSON
    command._ext = None
    command._raw = head.extFields
    return command


def _text(data: bytes, start: int, length: int, what: str) -> str:
    if length < 0 or start + length > len(data):
        raise ProtocolError(f"binary header: {what} of {length} bytes exceeds the header")
    try:
        return data[start : start + length].decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header: {what} is not UTF-8: {error}") from None


def _decode_binary(header: bytes, body: bytes) -> Command:
    try:
        code, language, version, opaque, flag, remark_length = _BINARY_HEAD.unpack_from(header)
        offset = _BINARY_HEAD.size
        remark = None
        if remark_length:
            remark = _text(header, offset, remark_length, "remark")
            offset += remark_length
        (ext_length,) = _INT.unpack_from(header, offset)
        offset += 4
        end = offset + ext_length
        if ext_length < 0 or end > len(header):
            raise ProtocolError(f"binary header: extFields of {ext_length} bytes exceed the header")
        ext = _by_layout(code, header, offset, ext_length) or _binary_ext(code, header, offset, end)
    except struct.error:
        raise ProtocolError(f"binary header of {len(header)} bytes is cut short") from None
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header: a value is not UTF-8: {error}") from None
    return Command(
        code,
        opaque=opaque,
        flag=flag,
        ext=ext if ext_length else None,
        remark=remark,
        body=body,
        language=_LANGUAGES.get(language),
        version=version,
        serialize_type=BINARY,
    )


class _Layout(NamedTuple):
    """Where the entries of one ``extFields`` lay: a client's requests of one kind mostly have the same places.

    `marks` are the bytes before each value: the key with its length, and the value's length.
    """

    unpack: Callable[[bytes, int], tuple[bytes, ...]]
    marks: tuple[bytes, ...]
    names: tuple[str, ...]


#: The first layout seen for each code and length of all entries. Reading by it is three times as fast.
_layouts: dict[tuple[int, int], _Layout] = {}
_MAX_LAYOUTS = 1024
_MAX_LAYOUT_LENGTH = 2048


def _by_layout(code: int, header: bytes, offset: int, ext_length: int) -> dict[str, str] | None:
    """The entries, when they lie where those of an earlier command did."""
    layout = _layouts.get((code, ext_length))
    if layout is None:
        return None
    unpack, marks, names = layout
    pieces = unpack(header, offset)
    if pieces[::2] != marks:
        return None
    return dict(zip(names, map(bytes.decode, pieces[1::2])))  # noqa: B905 - strict costs, and they are as many


def _binary_ext(code: int, header: bytes, offset: int, end: int) -> dict[str, str]:
    """The entries one by one."""
    ext: dict[str, str] = {}
    begin = offset
    marks, form = [], ">"
    while offset < end:
        mark = offset
        (length,) = _SHORT.unpack_from(header, offset)
        key = _text(header, offset + 2, length, "key")
        offset += 2 + length
        (length,) = _INT.unpack_from(header, offset)
        offset += 4
        value = _text(header, offset, length, "value")
        marks.append(header[mark:offset])
        form += f"{offset - mark}s{length}s"
        offset += length
        if length:
            ext[key] = value
    if offset != end:
        raise ProtocolError("binary header: an entry of extFields exceeds them")
    whole = len(ext) == len(marks)  # no name twice, no value empty
    if ext and whole and end - begin <= _MAX_LAYOUT_LENGTH and (code, end - begin) not in _layouts:
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()
        _layouts[code, end - begin] = _Layout(struct.Struct(form).unpack_from, tuple(marks), tuple(ext))
    return ext


def encode(command: Command) -> bytes:
    """The frame of a command, in the header encoding that its ``serialize_type`` names."""
    ext = command.ext if command.has_ext else None
    make = _binary_header if command.serialize_type == BINARY else _json_header
    header = make(
        command.code, command.opaque, command.flag, ext, command.remark, command.language, command.version
    )
    return frame(header, command.body, command.serialize_type)


def frame(header: bytes, body: bytes, serialize_type: int = JSON, following: int = 0) -> bytes:
    """A frame from its encoded header and its body, of which `following` more bytes come behind."""
    size = 4 + len(header) + len(body) + following
    return _FRAME.pack(size, serialize_type << 24 | len(header)) + header + body


def _json_header(
    code: int,
    opaque: int,
    flag: int,
    ext: dict[str, str] | None,
    remark: str | None,
    language: object = "PYTHON",
    version: int = VERSION,
) -> bytes:
    # the order is fastjson's: sorted, absent values left out
    return b'{"code":%d%b,"flag":%d%b,"opaque":%d%b,"serializeTypeCurrentRPC":"JSON","version":%d}' % (
        code,
        b"" if ext is None else b',"extFields":' + _encode_json(ext),
        flag,
        b',"language":"PYTHON"' if language == "PYTHON" else _language_member(language),
        opaque,
        b"" if remark is None else b',"remark":' + _encode_json(remark),
        version,
    )


def _language_member(language: object) -> bytes:
    return b"" if language is None else b',"language":' + _encode_json(language)


def _binary_header(
    code: int,
    opaque: int,
    flag: int,
    ext: dict[str, str] | None,
    remark: str | None,
    language: object = "PYTHON",
    version: int = VERSION,
) -> bytes:
    text = remark.encode() if remark else b""
    packed = b""
    if ext:
        packed = b"".join([_packed_key(key) + _counted(value.encode()) for key, value in ext.items()])
    # a code beyond 16 bits loses its upper half on the wire, in Java as here
    head = _BINARY_HEAD.pack(
        (code + 0x8000 & 0xFFFF) - 0x8000,
        _LANGUAGE_NUMBERS.get(language, Language.OTHER),
        (version + 0x8000 & 0xFFFF) - 0x8000,
        opaque,
        flag,
        len(text),
    )
    return head + text + _INT.pack(len(packed)) + packed


_LANGUAGE_NUMBERS: dict[object, int] = {language.name: language.value for language in Language}


def _counted(raw: bytes) -> bytes:
    return _INT.pack(len(raw)) + raw


@functools.lru_cache(1024)
def _packed_key(key: str) -> bytes:
    raw = key.encode()
    return _SHORT.pack(len(raw)) + raw


def encode_request(
    code: int,
    opaque: int,
    header: Header | dict[str, str] | None = None,
    body: bytes = b"",
    *,
    oneway: bool = False,
    serialize_type: int = JSON,
) -> bytes:
    """The frame of a request. Codes beyond 32767 (the POP family) are always sent with a JSON header."""
    ext = header.to_ext() if isinstance(header, Header) else header
    flag = FLAG_ONEWAY if oneway else 0
    if serialize_type == JSON or code > 0x7FFF:
        return frame(_json_header(code, opaque, flag, ext, None), body)
    return frame(_binary_header(code, opaque, flag, ext, None), body, BINARY)


def encode_response(
    request: Command,
    code: int,
    remark: str | None = None,
    header: Header | dict[str, str] | None = None,
    body: bytes = b"",
    following: int = 0,
) -> bytes:
    """The frame that answers `request`, in the header encoding that the request used.

    `following`: so many more bytes of the body come behind this.
    """
    ext = header.to_ext() if isinstance(header, Header) else header
    make = _binary_header if request.serialize_type == BINARY else _json_header
    head = make(code, request.opaque, FLAG_RESPONSE, ext, remark)
    return frame(head, body, request.serialize_type, following)
