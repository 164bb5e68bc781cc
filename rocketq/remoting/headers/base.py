"""What headers have in common."""

from __future__ import annotations

from rocketq.remoting.command import Header


class RoutedHeader(Header, kw_only=True):
    """A header that may say which broker it is meant for, as 5.x clients do (`RpcRequestHeader`)."""

    bname: str | None = None
