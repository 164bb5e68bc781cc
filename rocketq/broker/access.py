"""Who may do what: accounts, their permissions, and the signature of every request (Apache's plain ACL).

The file is Apache 4.9's `plain_acl.yml`, as that is what its users have. One check stands before all handlers. It is
stricter than Apache's: a request that :data:`_NEEDS` does not list is an operator's and needs an admin account.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import msgspec.yaml

from rocketq.broker.refusal import Refused
from rocketq.errors import ConfigError
from rocketq.names import DLQ_PREFIX, RETRY_PREFIX, TRACE_TOPIC
from rocketq.remoting.bodies import CheckClientBody, HeartbeatData, LockBatchBody
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command
from rocketq.remoting.credentials import ACCESS_KEY, SIGNATURE, signature

log = logging.getLogger("rocketq.broker")

PUB = 1
SUB = 2
_PERMISSIONS = {"DENY": 0, "PUB": PUB, "SUB": SUB, "PUB|SUB": PUB | SUB, "SUB|PUB": PUB | SUB}
#: Old clients do not sign this field of a query by unique key; it says only how to search.
_UNSIGNED = "_UNIQUE_KEY_QUERY"

#: What a request needs: (topic or group, permission), any of whose bits suffices. A group's names start with
#: `%RETRY%`, as they do in Apache's ACL.
Needs = list[tuple[str, int]]


class _Ack(msgspec.Struct):
    """One entry of a bulk acknowledgement: its group."""

    c: str


class _Acks(msgspec.Struct):
    acks: list[_Ack]


def _field(name: str, permission: int) -> Callable[[Command], Needs]:
    return lambda request: _topic(request.ext.get(name), permission)


def _topic(topic: str | None, permission: int) -> Needs:
    """A topic, or the group that it belongs to."""
    if not topic:
        raise Refused(ResponseCode.NO_PERMISSION, "The request names no topic")
    for prefix in (RETRY_PREFIX, DLQ_PREFIX):
        if topic.startswith(prefix):
            return [(RETRY_PREFIX + topic[len(prefix) :], SUB)]
    return [(topic, permission)]


def _group(group: str | None) -> Needs:
    if not group:
        raise Refused(ResponseCode.NO_PERMISSION, "The request names no group")
    return [(RETRY_PREFIX + group, SUB)]


def _group_field(name: str) -> Callable[[Command], Needs]:
    return lambda request: _group(request.ext.get(name))


def _consume(request: Command) -> Needs:
    return _topic(request.ext.get("topic"), SUB) + _group(request.ext.get("consumerGroup"))


def _settle(request: Command) -> Needs:
    """Receipts read nothing, and those of retries name POP's own retry topic: `%RETRY%GROUP_TOPIC`."""
    group = _group(request.ext.get("consumerGroup"))
    topic = request.ext.get("topic") or ""
    return group if topic.startswith(group[0][0] + "_") else _topic(topic, SUB) + group


def _heartbeat(request: Command) -> Needs:
    needs: Needs = []
    for consumer in HeartbeatData.decode(request.body).consumer_data_set:
        needs += _group(consumer.group_name)
        for subscription in consumer.subscription_data_set:
            needs += _topic(subscription.topic, SUB)
    return needs


def _unregister(request: Command) -> Needs:
    group = request.ext.get("consumerGroup")
    return _group(group) if group else []


def _check_client(request: Command) -> Needs:
    subscription = CheckClientBody.decode(request.body).subscription_data
    return _topic(subscription.topic, SUB) if subscription is not None else []


def _assignment(request: Command) -> Needs:
    body = msgspec.json.decode(request.body, type=dict[str, object])
    return _topic(str(body.get("topic") or ""), SUB) + _group(str(body.get("consumerGroup") or ""))


def _acks(request: Command) -> Needs:
    acks = msgspec.json.decode(request.body, type=_Acks).acks
    return [need for ack in acks for need in _group(ack.c)]


def _lock(request: Command) -> Needs:
    return _group(LockBatchBody.decode(request.body).consumer_group)


def _nothing(request: Command) -> Needs:
    return []


_C = RequestCode
#: Requests that accounts without admin rights may make, and what they need for them.
_NEEDS: dict[int, Callable[[Command], Needs]] = {
    _C.SEND_MESSAGE: _field("topic", PUB),
    _C.SEND_MESSAGE_V2: _field("b", PUB),
    _C.SEND_BATCH_MESSAGE: _field("b", PUB),
    _C.SEND_REPLY_MESSAGE: _field("topic", PUB),
    _C.SEND_REPLY_MESSAGE_V2: _field("b", PUB),
    _C.RECALL_MESSAGE: _field("topic", PUB),
    _C.END_TRANSACTION: _nothing,  # old clients do not say of which topic
    _C.CONSUMER_SEND_MSG_BACK: _group_field("group"),
    _C.PULL_MESSAGE: _consume,
    _C.LITE_PULL_MESSAGE: _consume,
    _C.PEEK_MESSAGE: _consume,
    _C.POP_MESSAGE: _consume,
    _C.ACK_MESSAGE: _settle,
    _C.BATCH_ACK_MESSAGE: _acks,
    _C.CHANGE_MESSAGE_INVISIBLETIME: _settle,
    _C.NOTIFICATION: _consume,
    _C.POLLING_INFO: _consume,
    _C.QUERY_CONSUMER_OFFSET: _consume,
    _C.UPDATE_CONSUMER_OFFSET: _consume,
    _C.QUERY_ASSIGNMENT: _assignment,
    _C.QUERY_MESSAGE: _field("topic", SUB),
    _C.LIST_TIMER_MESSAGES: _field("topic", SUB),
    _C.SEARCH_OFFSET_BY_TIMESTAMP: _field("topic", PUB | SUB),
    _C.GET_MAX_OFFSET: _field("topic", PUB | SUB),
    _C.GET_MIN_OFFSET: _field("topic", PUB | SUB),
    _C.GET_EARLIEST_MSG_STORETIME: _field("topic", PUB | SUB),
    _C.HEART_BEAT: _heartbeat,
    _C.UNREGISTER_CLIENT: _unregister,
    _C.CHECK_CLIENT_CONFIG: _check_client,
    _C.GET_CONSUMER_LIST_BY_GROUP: _group_field("consumerGroup"),
    _C.LOCK_BATCH_MQ: _lock,
    _C.UNLOCK_BATCH_MQ: _lock,
}


class _AccountText(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """An account as it stands in the file. Keys that are numbers for YAML are text for us."""

    access_key: str | int
    secret_key: str | int
    white_remote_address: str | None = None
    admin: bool = False
    default_topic_perm: str | None = None
    default_group_perm: str | None = None
    topic_perms: list[str] | None = None
    group_perms: list[str] | None = None


class _FileText(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    accounts: list[_AccountText] | None = None
    global_white_remote_addresses: list[str] | None = None


class Account:
    """An account with what it may. `permissions`: topics and `%RETRY%` groups with their bits."""

    def __init__(self, text: _AccountText) -> None:
        self.name = str(text.access_key)
        secret = str(text.secret_key)
        if len(self.name) <= 6 or len(secret) <= 6:
            raise ValueError("accessKey and secretKey have to be longer than 6 characters")
        self.secret = secret.encode()
        self.admin = text.admin
        self.trusted = [_addresses(text.white_remote_address)] if text.white_remote_address else []
        self.default_topic = _permission(text.default_topic_perm or "DENY", "defaultTopicPerm")
        self.default_group = _permission(text.default_group_perm or "DENY", "defaultGroupPerm")
        self.permissions: dict[str, int] = {}
        for prefix, entries in (("", text.topic_perms), (RETRY_PREFIX, text.group_perms)):
            for entry in entries or ():
                name, equals, permission = entry.partition("=")
                if not equals or not name.strip():
                    raise ValueError(f"{entry!r} is not NAME=PERMISSION")
                self.permissions[prefix + name.strip()] = _permission(permission, entry)

    def check(self, request: Command) -> None:
        """Raises Refused when the account may not do what `request` asks for."""
        if self.admin:
            return
        needs = _NEEDS.get(request.code)
        if needs is None:
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"Need admin permission for request code={request.code}, but accessKey={self.name} is not",
            )
        try:
            needed = needs(request)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"What the request is about cannot be read: {error}"
            ) from None
        for name, wanted in needed:
            group = name.startswith(RETRY_PREFIX)
            owned = self.permissions.get(name, self.default_group if group else self.default_topic)
            if not owned & wanted and not (name == TRACE_TOPIC and wanted == PUB):
                what = f"group {name[len(RETRY_PREFIX) :]}" if group else f"topic {name}"
                raise Refused(
                    ResponseCode.NO_PERMISSION, f"No default permission for {what}, accessKey={self.name}"
                )


def _permission(text: str, where: str) -> int:
    found = _PERMISSIONS.get(text.replace(" ", ""))
    if found is None:
        raise ValueError(f"{where}: {text.strip()!r} is none of DENY, PUB, SUB, PUB|SUB")
    return found


_PART = re.compile(r"(\*)|(\d{1,3})(?:-(\d{1,3}))?")


def _addresses(text: str) -> Callable[[str], bool]:
    """Whether an address is one of `text`: `*`, addresses with commas, IPv4 with `*`, `1-20` or a last `{1,2}`."""
    text = text.strip()
    if text in ("*", "*.*.*.*", "*:*:*:*:*:*:*:*"):
        return lambda address: True
    if text.endswith("}"):
        head, _, tail = text[:-1].partition("{")
        texts = [head + last.strip() for last in tail.split(",")]
    else:
        texts = [part.strip() for part in text.split(",")]
    tests = [_one_address(part) for part in texts]
    return lambda address: any(test(address) for test in tests)


def _one_address(text: str) -> Callable[[str], bool]:
    try:
        exact = ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        return lambda address: _ip(address) == exact
    ranges: list[tuple[int, int]] = []
    parts = text.split(".")
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None:
            break
        low = 0 if match[1] else int(match[2])
        high = 255 if match[1] else int(match[3] or match[2])
        ranges.append((low, high))
    if len(ranges) != 4 or len(parts) != 4 or any(not low <= high <= 255 for low, high in ranges):
        raise ValueError(f"{text!r} is neither an address nor a range of IPv4 addresses as 10.1.2-9.*")

    def matches(address: str) -> bool:
        ip = _ip(address)
        if not isinstance(ip, ipaddress.IPv4Address):
            return False
        return all(low <= byte <= high for byte, (low, high) in zip(ip.packed, ranges, strict=True))

    return matches


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


class Rules:
    """What one version of the file says. Raises ConfigError for one that cannot be read."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.accounts: dict[str, Account] = {}
        try:
            text = msgspec.yaml.decode(data, type=_FileText)
        except ImportError:
            raise ConfigError("aclEnable needs PyYAML: pip install 'rocketq[acl]'") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a file of accounts: {error}") from None
        try:
            self.trusted = [_addresses(entry) for entry in text.global_white_remote_addresses or ()]
        except ValueError as error:
            raise ConfigError(f"{path}, globalWhiteRemoteAddresses: {error}") from None
        for number, entry in enumerate(text.accounts or (), 1):
            try:
                account = Account(entry)
                if account.name in self.accounts:
                    raise ValueError("there is an account with this accessKey already")
            except ValueError as error:
                raise ConfigError(f"{path}, account {number} ({entry.access_key}): {error}") from None
            self.accounts[account.name] = account


class Access:
    """The rules of `path`, read again by :meth:`refresh` when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self._rules: Rules

    def load(self) -> None:
        """Raises ConfigError when the file is missing or cannot be read."""
        try:
            self._seen = self._stamp()
            data = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"aclEnable=true needs the file of accounts {self._path}: {error.strerror}"
            ) from None
        self._rules = Rules(data, self._path)

    def refresh(self) -> None:
        """Follow the file. One that cannot be read changes nothing: what it said before goes on to hold."""
        try:
            if self._stamp() == self._seen:
                return
            self.load()
        except (ConfigError, OSError) as error:
            if isinstance(error, ConfigError):
                log.error("the accounts stay as they were: %s", error)
            return
        log.info("accounts were read again from %s", self._path)

    def _stamp(self) -> object:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def check(self, request: Command, peer: str) -> None:
        """Raises Refused when `request` from the address `peer` (`host:port`) is not to be served."""
        rules = self._rules
        host = peer.rpartition(":")[0].strip("[]")
        if any(trusts(host) for trusts in rules.trusted):
            return
        ext = request.ext
        name = ext.get(ACCESS_KEY)
        if not name:
            raise Refused(ResponseCode.NO_PERMISSION, "No accessKey is configured")
        account = rules.accounts.get(name)
        if account is None:
            raise Refused(ResponseCode.NO_PERMISSION, f"No acl config for {name}")
        if account.trusted and account.trusted[0](host):
            return
        given = ext.get(SIGNATURE, "").encode()
        if not hmac.compare_digest(signature(ext, request.body, account.secret).encode(), given) and not (
            _UNSIGNED in ext
            and hmac.compare_digest(signature(ext, request.body, account.secret, _UNSIGNED).encode(), given)
        ):
            raise Refused(ResponseCode.NO_PERMISSION, f"Check signature failed for accessKey={name}")
        account.check(request)
