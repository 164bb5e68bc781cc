"""Looking things up: messages by key and by id, offsets by time, ends of queues (codes 12, 33, 29, 30, 31, 32)."""

from __future__ import annotations

from rocketq.config import BrokerConfig
from rocketq.record import PHYSICAL_OFFSET_AT
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    GetEarliestMsgStoretimeHeader,
    GetEarliestMsgStoretimeResponse,
    GetMaxOffsetHeader,
    GetMaxOffsetResponse,
    GetMinOffsetHeader,
    GetMinOffsetResponse,
    QueryMessageHeader,
    QueryMessageResponse,
    SearchOffsetHeader,
    SearchOffsetResponse,
    ViewMessageHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore


class Query:
    """Answers questions about what is stored."""

    def __init__(self, config: BrokerConfig, store: MessageStore) -> None:
        self._config = config
        self._store = store

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.QUERY_MESSAGE: self._by_key,
            RequestCode.VIEW_MESSAGE_BY_ID: self._by_id,
            RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: self._by_time,
            RequestCode.GET_MAX_OFFSET: self._max_offset,
            RequestCode.GET_MIN_OFFSET: self._min_offset,
            RequestCode.GET_EARLIEST_MSG_STORETIME: self._earliest,
        }

    def _by_key(self, connection: Connection, request: Command) -> Reply:
        header = request.header(QueryMessageHeader)
        count = header.max_num
        if header.unique_key_query:
            count = self._config.default_query_max_num
        # unique ids are indexed like keys; only tags have a key string of their own
        kind = "T" if header.index_type == "T" else "K"
        found = self._store.query(
            header.topic,
            header.key,
            begin=header.begin_timestamp,
            end=header.end_timestamp,
            max_count=count,
            kind=kind,
        )
        ext = QueryMessageResponse(
            index_last_update_timestamp=found.last_update_timestamp,
            index_last_update_phyoffset=found.last_update_physical_offset,
        )
        if not found.buffers:
            remark = "can not find message, maybe time range not correct"
            return encode_response(request, ResponseCode.QUERY_NOT_FOUND, remark, ext)
        records = sorted(found.buffers, key=_place)  # oldest first, as Apache answers
        return encode_response(request, ResponseCode.SUCCESS, header=ext, body=b"".join(records))

    def _by_id(self, connection: Connection, request: Command) -> Reply:
        offset = request.header(ViewMessageHeader).offset
        record = self._store.record_at(offset)
        if record is None:
            remark = f"can not find message by the offset, {offset}"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        return encode_response(request, ResponseCode.SUCCESS, body=bytes(record))

    def _by_time(self, connection: Connection, request: Command) -> Reply:
        header = request.header(SearchOffsetHeader)
        upper = (header.boundary_type or "").upper() == "UPPER"
        offset = self._store.offset_by_time(header.topic, header.queue_id, header.timestamp, upper)
        return encode_response(request, ResponseCode.SUCCESS, header=SearchOffsetResponse(offset=offset))

    def _max_offset(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetMaxOffsetHeader)
        offset = self._store.max_offset(header.topic, header.queue_id)
        return encode_response(request, ResponseCode.SUCCESS, header=GetMaxOffsetResponse(offset=offset))

    def _min_offset(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetMinOffsetHeader)
        offset = self._store.min_offset(header.topic, header.queue_id)
        return encode_response(request, ResponseCode.SUCCESS, "", GetMinOffsetResponse(offset=offset))

    def _earliest(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetEarliestMsgStoretimeHeader)
        timestamp = self._store.earliest_store_time(header.topic, header.queue_id)
        answer = GetEarliestMsgStoretimeResponse(timestamp=timestamp)
        return encode_response(request, ResponseCode.SUCCESS, header=answer)


def _place(record: memoryview) -> bytes:
    """What records sort by: their physical offset, big-endian."""
    return bytes(record[PHYSICAL_OFFSET_AT : PHYSICAL_OFFSET_AT + 8])
