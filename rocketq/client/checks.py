"""What producers answer to brokers that ask how a transaction ends."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from rocketq import properties as names
from rocketq.client.transactions import Check
from rocketq.errors import ConfigError, RemotingError, RocketQError
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.record import TRANSACTION_COMMIT, TRANSACTION_ROLLBACK
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command
from rocketq.remoting.connection import Connection
from rocketq.remoting.headers import CheckTransactionStateHeader, EndTransactionHeader

if TYPE_CHECKING:
    from rocketq.client.tracing import Tracer

log = logging.getLogger("rocketq.client")

#: Checks that run at once, and that wait for their turn; brokers ask again about those beyond.
_AT_ONCE = 16
_MOST_WAITING = 2000


class Checks:
    """What the producers of one instance answer to brokers that ask about transactions, by producer group."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[Check, Tracer | None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    def add(self, group: str, check: Check, tracer: Tracer | None = None) -> None:
        """Raises ConfigError when the group has a check here."""
        if group in self._checks:
            raise ConfigError(f"producer group {group} has a check in this client already")
        self._checks[group] = check, tracer

    def remove(self, group: str, check: Check) -> None:
        known = self._checks.get(group)
        if known is not None and known[0] is check:
            del self._checks[group]

    def asked(self, connection: Connection, request: Command) -> None:
        """A broker asks about a transaction; the answer goes back over the same connection."""
        try:
            header = request.header(CheckTransactionStateHeader)
            (message,) = decode_messages(request.body, header.bname or "")
            group = message.properties.get(names.PGROUP, "")
        except (RocketQError, ValueError) as error:
            log.warning("broker %s asks about a transaction that cannot be read: %s", connection.peer, error)
            return
        known = self._checks.get(group)
        if known is None:
            log.info("no producer of group %s here has a check: transaction %s stays open", group, header.msg_id)
        elif len(self._running) >= _MOST_WAITING:
            log.info("%d checks are waiting: transaction %s stays open", _MOST_WAITING, header.msg_id)
        else:
            task = asyncio.create_task(self._answer(connection, header, group, message, *known))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(
        self,
        connection: Connection,
        header: CheckTransactionStateHeader,
        group: str,
        message: ReceivedMessage,
        check: Check,
        tracer: Tracer | None,
    ) -> None:
        try:
            async with self._turn:
                if inspect.iscoroutinefunction(check):
                    verdict: Any = await check(message)
                else:
                    verdict = await asyncio.to_thread(check, message)
                    if inspect.isawaitable(verdict):
                        verdict = await verdict
            topic = message.topic
        except Exception:
            log.exception("the check of producer group %s failed: transaction %s stays open", group, header.msg_id)
            return
        if verdict is None:
            return
        end = EndTransactionHeader(
            topic=topic,
            producer_group=group,
            tran_state_table_offset=header.tran_state_table_offset,
            commit_log_offset=header.commit_log_offset,
            commit_or_rollback=TRANSACTION_COMMIT if verdict else TRANSACTION_ROLLBACK,
            from_transaction_check=True,
            msg_id=header.msg_id or message.message_id,
            transaction_id=header.transaction_id,
            bname=header.bname,
        )
        try:
            connection.oneway(RequestCode.END_TRANSACTION, end)
        except RemotingError as error:
            log.warning("transaction %s stays open, its broker was not told how it ends: %s", header.msg_id, error)
            return
        if tracer is not None:
            tracer.ended(message, end, connection.peer)

    async def close(self) -> None:
        """Stops what runs; brokers ask again, perhaps somebody else."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
