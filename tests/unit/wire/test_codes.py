"""The table of closes: the limits of RFC 6455 on what a close frame may say."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.wire import codes
from chatrelay.wire.codes import Close, CloseCode

OF_AUTOBAHN = {CloseCode.INVALID_PAYLOAD}
"""Codes with which Autobahn closes by itself, with its own reasons."""

CLOSES = [
    *(value for value in vars(codes).values() if isinstance(value, Close)),
    codes.too_many_frames(2**31),
    codes.message_too_big(2**31),
    codes.too_many_control_frames(12345.678),
]


class TableOfCloses(SynchronousTestCase):
    """Each close has a code and a reason."""

    def test_each_close_code_has_a_close_unless_autobahn_sends_it(self) -> None:
        self.assertEqual({close.code for close in CLOSES}, set(CloseCode) - OF_AUTOBAHN)

    def test_each_reason_fits_into_a_close_frame(self) -> None:
        for close in CLOSES:
            self.assertTrue(0 < len(close.reason.encode("utf-8")) <= 123, close)

    def test_each_reason_belongs_to_one_close(self) -> None:
        self.assertEqual(len({close.reason for close in CLOSES}), len(CLOSES))
