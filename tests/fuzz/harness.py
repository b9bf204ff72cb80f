"""What the harnesses of atheris share. Only a harness that runs imports atheris."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def message(id: Any = 1, to: Any = "2", time_stamp: Any = 1, content: str = "hej") -> bytes:
    """Return a message-send-request."""
    inside = {"timeStamp": time_stamp, "touID": to, "content": content}
    return json.dumps({"type": "message-send-request", "id": id, "message": inside}).encode()


@dataclass
class Fuzzed:
    """Something that takes bytes.

    :ivar one: takes some; raises where something is wrong.
    :ivar seeds: bytes to begin with.
    :ivar dictionary: what else the bytes are made of.
    :ivar planted: a name, and a value of it with which something is wrong: what a fuzzer must find.
    """

    one: Callable[[bytes], None]
    seeds: Sequence[bytes]
    planted: tuple[str, Any]
    dictionary: Sequence[str] = ()

    def run(self, arguments: Sequence[str]) -> None:
        """Run atheris. This does not return.

        :param arguments: libFuzzer's own options; files to repeat, or folders with a corpus, the first to be added to.
        """
        import atheris

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            seeds, found, words = folder / "seeds", folder / "found", folder / "dictionary"
            for corpus in (seeds, found):
                corpus.mkdir()
            for number, seed in enumerate(self.seeds):
                (seeds / str(number)).write_bytes(seed)
            words.write_text("".join(json.dumps(word) + "\n" for word in self.dictionary))
            given = [argument for argument in arguments if not argument.startswith("-")]
            ours = [f"-dict={words}"] if self.dictionary else []
            ours += [*([] if given else [str(found)]), str(seeds)]
            repeating = any(Path(name).is_file() for name in given)
            atheris.Setup([sys.argv[0], *arguments, *([] if repeating else ours)], self.one)
            atheris.Fuzz()
