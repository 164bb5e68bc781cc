"""`rocketq message trace`: what producers and consumers wrote down about a message."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from rocketq import trace as traces
from rocketq.cli.options import ClientOptions, client_options
from rocketq.cli.output import print_json, print_table, time_text
from rocketq.client.browse import Browser
from rocketq.errors import RocketQError
from rocketq.message import ReceivedMessage
from rocketq.names import TRACE_TOPIC
from rocketq.trace import Trace

#: Trace messages of one broker that are looked at.
LIMIT = 1000


class Step(NamedTuple):
    """One thing that happened to a message. `cost` in ms, None while it is not known."""

    time: int
    what: str
    group: str
    client: str
    cost: int | None
    status: str
    delivery: int | None = None


@click.command("trace")
@click.argument("message_id", metavar="ID")
@click.option(
    "--trace-topic", default=TRACE_TOPIC, show_default=True, help="Where the clients write their traces."
)
@client_options
def show_trace(options: ClientOptions, message_id: str, trace_topic: str) -> None:
    """Show who sent and consumed the message with an ID (the producer's unique id), when, and how that ended.

    Clients write that down when they are told to: trace=True here, enableMsgTrace in Java. It is there some seconds
    later.
    """
    with options.admin() as admin:
        found = Browser(admin).by_key(trace_topic, message_id, count=LIMIT)
    records = [
        (message, trace)
        for message in found
        for trace in traces.decode(message.body.decode(errors="replace"))
        if trace.message_id == message_id
    ]
    if not records:
        raise RocketQError(
            f"topic {trace_topic} has nothing about message {message_id}: its clients do not trace, have not written "
            "it yet, or its retention has ended"
        )
    if options.as_json:
        print_json([_as_object(message, trace) for message, trace in records])
        return
    print_table(
        ["TIME", "WHAT", "GROUP", "CLIENT", "COST MS", "STATUS", "DELIVERY"],
        [
            [time_text(step.time), step.what, step.group, step.client, step.cost, step.status, step.delivery]
            for step in steps(records)
        ],
    )


def steps(records: list[tuple[ReceivedMessage, Trace]]) -> list[Step]:
    """What happened, in order; the beginning and the end of a consumption are one step."""
    ends = {trace.request_id: trace for _, trace in records if trace.kind == traces.SUB_AFTER}
    begun = {trace.request_id for _, trace in records if trace.kind == traces.SUB_BEFORE}
    found = []
    for message, trace in records:
        client = trace.client_host or message.born_host[0]
        if trace.kind == traces.SUB_BEFORE:
            end = ends.get(trace.request_id)
            cost, status = (end.cost, _status(end)) if end else (None, "not finished")
            found.append(Step(trace.time, "consumed", trace.group, client, cost, status, trace.retries + 1))
        elif trace.kind == traces.SUB_AFTER:
            if trace.request_id not in begun:
                found.append(Step(trace.time, "consumed", trace.group, client, trace.cost, _status(trace)))
        elif trace.kind == traces.END_TRANSACTION:
            found.append(Step(trace.time, "transaction", trace.group, client, None, trace.state.lower()))
        else:
            recalled = trace.kind == traces.RECALL
            what, cost = ("recalled", None) if recalled else (_sent(trace), trace.cost)
            found.append(Step(trace.time, what, trace.group, client, cost, _status(trace)))
    # what happens within one ms of the send comes behind it
    return sorted(found, key=lambda step: (step.time, not step.what.startswith("sent")))


def _sent(trace: Trace) -> str:
    kind = trace.message_type
    return (
        "sent"
        if kind == traces.NORMAL or kind >= len(traces.MESSAGE_TYPES)
        else (f"sent ({traces.MESSAGE_TYPES[kind]})")
    )


def _status(trace: Trace) -> str:
    if trace.success:
        return "success"
    known = trace.kind == traces.SUB_AFTER and 0 < trace.outcome < len(traces.OUTCOMES)
    return traces.OUTCOMES[trace.outcome] if known else "failed"


def _as_object(message: ReceivedMessage, trace: Trace) -> dict[str, Any]:
    """A record with the fields of its kind."""
    fields = {name: getattr(trace, name) for name in traces.fields(trace.kind)}
    return {"kind": trace.kind, **fields, "client_host": trace.client_host or message.born_host[0]}
