"""Copies of stored messages: how a message that waited, failed or was prepared comes to its next place."""

from __future__ import annotations

from rocketq import properties as props
from rocketq.record import Record
from rocketq.store.store import Appended, MessageStore


def append_copy(
    store: MessageStore,
    record: Record,
    topic: str,
    queue_id: int,
    text: str,
    properties: dict[str, str],
    *,
    sys_flag: int | None = None,
    store_host: bytes | None = None,
    born_host: bytes | None = None,
    reconsume_times: int | None = None,
    prepared_transaction_offset: int = 0,
    deliver_time: int | None = None,
) -> Appended:
    """Append `record` again under another topic; what is not given stays as it was.

    `text` is the property string to store, `properties` what it says: Apache keeps the text of some copies as it was
    and acts by what is in it. Raises StoreFull, InvalidMessage.
    """
    return store.append(
        topic,
        queue_id,
        record.body,
        text,
        tag=properties.get(props.TAGS),
        unique_id=properties.get(props.UNIQ_KEY),
        keys=properties.get(props.KEYS),
        flag=record.flag,
        sys_flag=record.sys_flag if sys_flag is None else sys_flag,
        born_timestamp=record.born_timestamp,
        born_host=record.born_host if born_host is None else born_host,
        store_host=record.store_host if store_host is None else store_host,
        reconsume_times=record.reconsume_times if reconsume_times is None else reconsume_times,
        prepared_transaction_offset=prepared_transaction_offset,
        deliver_time=deliver_time,
    )
