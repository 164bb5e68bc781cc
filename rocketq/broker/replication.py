"""Which part this broker has in replication, and what that means for everything else.

A master (:mod:`rocketq.broker.hamaster`) gives its CommitLog to slaves. A slave (:mod:`rocketq.broker.haslave`,
:mod:`rocketq.broker.slavesync`) copies log and tables, answers reads, and refuses what would change either: the log
would not continue the master's any more, and the next round of copying would undo the rest.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from rocketq import javajson
from rocketq.broker.batch import Batch
from rocketq.broker.hamaster import HaMaster
from rocketq.broker.haslave import HaSlave
from rocketq.broker.slavesync import SlaveSync
from rocketq.broker.topics import Topics
from rocketq.config import BrokerConfig
from rocketq.errors import ConfigError
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import RegisterBrokerResponse
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import Appended, MessageStore

log = logging.getLogger("rocketq.broker")

_C, _R = RequestCode, ResponseCode
#: What a slave refuses, and the code that tells clients to go elsewhere. For sends it is that of Apache's 4.9; 5.4 says
#: SYSTEM_BUSY, with which no client tries another broker.
REFUSED: dict[int, ResponseCode] = {
    **dict.fromkeys(
        (
            _C.SEND_MESSAGE,
            _C.SEND_MESSAGE_V2,
            _C.SEND_BATCH_MESSAGE,
            _C.SEND_REPLY_MESSAGE,
            _C.SEND_REPLY_MESSAGE_V2,
            _C.RECALL_MESSAGE,
        ),
        _R.SERVICE_NOT_AVAILABLE,
    ),
    _C.END_TRANSACTION: _R.SLAVE_NOT_AVAILABLE,
    **dict.fromkeys(
        (
            _C.CONSUMER_SEND_MSG_BACK,
            _C.POP_MESSAGE,
            _C.PEEK_MESSAGE,
            _C.NOTIFICATION,
            _C.ACK_MESSAGE,
            _C.BATCH_ACK_MESSAGE,
            _C.CHANGE_MESSAGE_INVISIBLETIME,
            _C.RESUME_CHECK_HALF_MESSAGE,
        ),
        _R.SYSTEM_ERROR,
    ),
    **dict.fromkeys(
        (
            _C.UPDATE_AND_CREATE_TOPIC,
            _C.UPDATE_AND_CREATE_TOPIC_LIST,
            _C.DELETE_TOPIC_IN_BROKER,
            _C.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            _C.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST,
            _C.DELETE_SUBSCRIPTIONGROUP,
            _C.UPDATE_AND_GET_GROUP_FORBIDDEN,
            _C.SET_MESSAGE_REQUEST_MODE,
            _C.INVOKE_BROKER_TO_RESET_OFFSET,
            _C.CLONE_GROUP_OFFSET,
            _C.CLEAN_UNUSED_TOPIC,
        ),
        _R.NO_PERMISSION,
    ),
}


class Replication:
    """A broker's part in replication. `master` on a master, `slave` and `tables` on a slave.

    `master_lost` is called on a slave while it has no connection to its master.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        batch: Batch,
        topics: Topics,
        master_lost: Callable[[], None],
    ) -> None:
        config.check_role()
        self._config = config
        self._topics = topics
        self.tables: SlaveSync | None = None
        self.slave = HaSlave(config, store, master_lost) if config.is_slave else None
        self.master = None if config.is_slave else HaMaster(config, store, batch.replicated)
        batch.replicas = self.master

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.GET_BROKER_HA_STATUS: self._status}

    def refusals(self) -> dict[int, Handler]:
        """Handlers that take the place of others on a slave."""
        return dict.fromkeys(REFUSED, self._refuse) if self.slave is not None else {}

    async def start(self, tables: SlaveSync | None) -> None:
        """Listen for slaves, or look for the master. Raises OSError when the port is taken, ConfigError as well."""
        if self.slave is not None:
            self.tables = tables
            if tables is not None:
                address = self._config.ha_master_address or ""
                host, _, port = address.rpartition(":")
                if host:  # a NameServer may know better
                    tables.found(f"{host}:{int(port) - 1}")
                tables.start()
            self.slave.start()
        if self.master is not None:
            await self._listen(self.master)

    async def _listen(self, master: HaMaster) -> None:
        config = self._config
        port = config.ha_listen_port
        if port is None and (config.acl_enable or config.tls_server_mode == "enforcing"):
            return  # the stream knows neither accounts nor TLS: whoever wants it says so
        default = config.listen_port + 1 if config.listen_port else 0
        try:
            await master.start(default if port is None else port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if port is not None or config.broker_role == "SYNC_MASTER":
                raise ConfigError(
                    f"haListenPort={port or default} is taken, so no slave could follow: set it to another one"
                ) from None
            log.warning("port %d is taken, so no slave can follow: set haListenPort to another one", default)

    async def stop(self) -> None:
        if self.tables is not None:
            await self.tables.stop()
        if self.slave is not None:
            await self.slave.stop()
        if self.master is not None:
            await self.master.stop()

    def registered(self, answer: RegisterBrokerResponse) -> None:
        """What a NameServer says where the master is; it says nothing while there is none."""
        if self.slave is not None:
            self.slave.found(answer.ha_server_addr or "")
        if self.tables is not None:
            self.tables.found(answer.master_addr or "")

    @property
    def port(self) -> int:
        """Where slaves come to; 0 when they cannot."""
        return 0 if self.master is None else self.master.port

    @property
    def master_is_here(self) -> bool:
        """Whether a slave hears of its master just now."""
        return self.slave is not None and self.slave.connected

    def arrived(self, messages: list[Appended]) -> None:
        """Messages became readable."""
        if self.master is not None:
            self.master.arrived()
        elif self.tables is not None:
            table = self._topics.table
            if any(message.topic not in table for message in messages):
                self.tables.soon()

    def _status(self, connection: Connection, request: Command) -> Reply:
        part = self.master or self.slave
        assert part is not None
        status = part.status()
        return encode_response(request, ResponseCode.SUCCESS, body=javajson.dumps(status))

    def _refuse(self, connection: Connection, request: Command) -> Reply:
        config = self._config
        remark = (
            f"broker {config.broker_name}, id {config.broker_id}, is a slave and serves reads only: ask its master"
        )
        return encode_response(request, REFUSED[request.code], remark)
