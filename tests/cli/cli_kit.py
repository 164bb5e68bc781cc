"""What the tests of commands share: running one, and preparing a server's topics, groups and dead letters."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from rocketq.cli.main import main
from rocketq.client import Producer
from rocketq.client.admin import Admin
from rocketq.client.browse import Browser
from rocketq.client.sending import SendResult
from rocketq.message import Message, MessageQueue, parse_offset_message_id
from rocketq.remoting import headers
from rocketq.remoting.bodies import SubscriptionGroupConfig, TopicConfig
from rocketq.remoting.codes import RequestCode


class Cli:
    """Commands and preparations against one server."""

    def __init__(self, namesrv: str) -> None:
        self.namesrv = namesrv
        self.admin = Admin(namesrv, timeout=10)
        self.browser = Browser(self.admin)
        self.producer = Producer("tests", namesrv)

    def close(self) -> None:
        self.producer.close()
        self.admin.close()

    def invoke(self, *arguments: str, input: str | None = None) -> Result:
        command = [*arguments, "--namesrv", self.namesrv]
        return CliRunner().invoke(main, command, prog_name="rocketq", input=input)

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """Its lines, or with --json the value; what it says to stderr when `code` is not 0."""
        result = self.invoke(*arguments)
        assert result.exit_code == code, (result.output, result.exception)
        if code:
            return result.stderr
        return json.loads(result.stdout) if "--json" in arguments else result.stdout.splitlines()

    def topic(self, name: str, queues: int = 2) -> str:
        self.admin.create_topic(TopicConfig(name, queues, queues))
        return name

    def group(self, name: str, **settings: Any) -> str:
        self.admin.create_group(SubscriptionGroupConfig(group_name=name, **settings))
        return name

    def send(self, topic: str, body: str, queue_id: int | None = None, **given: Any) -> SendResult:
        queue = None
        if queue_id is not None:
            queue = MessageQueue(topic, self.admin.brokers()[0].name, queue_id)
        return self.producer.send(Message(topic, body.encode(), **given), queue=queue)

    def dead_letter(self, group: str, topic: str, body: str, **given: Any) -> str:
        """A message that `group` has given up; its unique id."""
        sent = self.send(topic, body, **given)
        host, port, offset = parse_offset_message_id(sent.offset_message_id)
        header = headers.ConsumerSendMsgBackHeader(
            group=group, offset=offset, delay_level=-1, origin_msg_id=sent.message_id, origin_topic=topic
        )
        self.admin.ask(f"{host}:{port}", RequestCode.CONSUMER_SEND_MSG_BACK, header)
        return sent.message_id

    def bodies(self, topic: str) -> list[str]:
        """The bodies of all messages of a topic in the order of their times."""
        return [message.body.decode() for message in self.browser.between(topic)]
