"""Removing on request what is not needed any more (codes 306, 316, 329)."""

from __future__ import annotations

import asyncio
import logging

from rocketq.broker.topics import Topics
from rocketq.errors import StoreError
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")


class Cleaning:
    """Lets the store's retention work now, and removes queues of topics that do not exist."""

    def __init__(self, store: MessageStore, topics: Topics) -> None:
        self._store = store
        self._topics = topics
        self._deleting = asyncio.Lock()

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE: self._queues,
            RequestCode.CLEAN_UNUSED_TOPIC: self._unused_topics,
            RequestCode.DELETE_EXPIRED_COMMITLOG: self._commit_log,
        }

    def _queues(self, connection: Connection, request: Command) -> Reply:
        log.info("%s lets ConsumeQueue files be removed that nothing needs", connection.peer)
        self._store.retention.request_queues()
        return encode_response(request, ResponseCode.SUCCESS)

    def _commit_log(self, connection: Connection, request: Command) -> Reply:
        log.info("%s lets expired CommitLog files be removed at any hour", connection.peer)
        self._store.retention.request()
        return encode_response(request, ResponseCode.SUCCESS)

    async def delete_queues(self, *topics: str) -> None:
        """Remove the queues of topics with their files: whoever asks for it waits for the disk. Raises StoreError.

        What is sent to the topics meanwhile is refused. One that cannot be deleted keeps none of the others.
        """
        gone: list[str] = []
        failure: StoreError | None = None
        async with self._deleting:
            for topic in topics:
                try:
                    removed = self._store.forget_topic(topic)
                    if removed is not None:
                        await asyncio.wrap_future(removed)
                        gone.append(topic)
                except StoreError as error:
                    log.error("%s", error)
                    failure = error
            if gone:
                self._store.begin_checkpoint()
                saved = None
                while saved is None:
                    await asyncio.sleep(0)  # others have their turns meanwhile
                    saved = self._store.continue_checkpoint()
                await asyncio.wrap_future(saved)
                for topic in gone:
                    self._store.topic_gone(topic)
        if failure is not None:
            raise failure

    async def _unused_topics(self, connection: Connection, request: Command) -> Reply:
        there = {topic for topic, _ in self._store.queues() if topic not in self._topics.table}
        unused = sorted(topic for topic in there if not self._topics.is_system(topic))
        if unused:
            log.info("%s removes the queues of topics that do not exist: %s", connection.peer, ", ".join(unused))
            await self.delete_queues(*unused)
        return encode_response(request, ResponseCode.SUCCESS)
