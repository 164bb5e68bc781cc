"""What capabilities raise inside when a request is not to be served; their handlers turn it into the answer."""

from __future__ import annotations

from rocketq.remoting.codes import ResponseCode


class Refused(Exception):
    """The answer's code and text.

    `forbidden` is a pull's `forbiddenType`: which of broker 1, group 2, topic 3, broadcast 4 or subscription 5 is in
    the way; 0: none of them.
    """

    def __init__(self, code: ResponseCode, remark: str, forbidden: int = 0) -> None:
        super().__init__(remark)
        self.code = code
        self.remark = remark
        self.forbidden = forbidden
