"""Redaction: hide session ids in the site's words before the operator reads them in the log.

Pure. It decides which part of a site's words may be logged. This module must not know what else is logged, nor when.
"""

from __future__ import annotations

import html
import json
from urllib.parse import quote, quote_plus

from chatrelay.auth.verdicts import InvalidAnswer

HIDDEN = "<SESSID>"
"""The text that replaces a session id."""

MIN_PIECE_CHARACTERS = 8
"""The fewest characters of a piece of a session id that is hidden, too. Shorter pieces are part of many words."""

MAX_QUOTED_CHARACTERS = 200
"""The most characters of a site's words that are shown."""

MAX_SEARCHED_BYTES = 128
"""The most bytes of a session id that is searched for. With a longer one, none of the site's words are shown.

A client chooses the session id, and the time of the search grows with its length.
"""

NOT_SHOWN = "<not shown, as it may contain the session id, which is too long to search for>"


def redacted(error: InvalidAnswer, sessid: str) -> str:
    """Return the text of an error for the log: the site's words are shortened, and the session id is hidden."""
    quoted = error.quoted[: 3 * MAX_QUOTED_CHARACTERS]  # limits the time of the search, however large the response is
    if quoted:
        is_searched = len(sessid.encode("utf-8", "surrogateescape")) <= MAX_SEARCHED_BYTES
        quoted = without(sessid, quoted) if is_searched else NOT_SHOWN
        quoted = quoted if len(quoted) <= MAX_QUOTED_CHARACTERS else quoted[:MAX_QUOTED_CHARACTERS] + "…"
    return error.why + quoted + error.after


def without(sessid: str, text: str) -> str:
    """Return `text` with the session id hidden, in every form in which a site may repeat it, and its pieces, too."""
    raw = sessid.encode("utf-8", "surrogateescape")
    as_header = raw.decode("latin-1")
    forms = {sessid, quote(raw), quote(raw, safe=""), quote_plus(raw), as_header, repr(raw)[2:-1]}
    forms |= {json.dumps(sessid)[1:-1], html.escape(sessid)}
    forms |= {ascii(form)[1:-1] for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    # A site may cut the session id short, or encode it in a way that leaves most of it unchanged.
    size = MIN_PIECE_CHARACTERS
    pieces = {form[start : start + size] for form in forms for start in range(len(form) - size + 1)}
    kept: list[str] = []
    kept_from = hidden_to = 0
    for start in range(len(text) - size + 1):
        if text[start : start + size] in pieces:
            if start >= hidden_to:
                kept += [text[kept_from:start], HIDDEN]
            kept_from = hidden_to = start + size
    return "".join([*kept, text[kept_from:]])
