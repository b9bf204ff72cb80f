"""What becomes of the epoch when the power fails, and the note by which a relay recognises its message log is old."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.messagelog.sqlite.files import LogFiles
from tests.support.evidence import Evidence
from tests.support.promise import Trial, read_log
from tests.support.saturation import Crowd
from tests.trials.durability import Stage, recorded_under_load
from tests.trials.power import PARTS


def unsynced_notes_are_lost(stage: Stage, evidence: Evidence, cuts: int) -> None:
    """Cut the power of a relay at any moment from its start on, so that any part of the unsynced data is lost.

    The log that is left keeps its epoch, since no place that a client was sent is lost. A backup that is put in its
    place has another one.
    """
    with stage.relay() as relay, Crowd(relay, stage.site) as crowd:
        crowd.fill(window=1)
        crowd.begin()
        crowd.press(0, answers=20)
        crowd.settle()
        relay.stop()
    before = stage.folder / "before"
    before.mkdir()
    for file in stage.folder.glob(f"{stage.log.name}*"):
        if file.is_file():
            shutil.copy(file, before)
    with closing(sqlite3.connect(before / stage.log.name)) as backup:
        kept = {content for (content,) in backup.execute("SELECT content FROM message")}
    recording, talkers = recorded_under_load(stage, 200, before=before)
    told = recording.heard_by(talkers)
    with closing(sqlite3.connect(stage.log)) as log:
        (epoch,) = log.execute("SELECT epoch FROM life").fetchone()
    inode = stage.log.stat().st_ino
    chance = random.Random(cuts)
    syncs = [number for number in recording.all_syncs if number < recording.first]
    opening = range(syncs[0], recording.first)
    moments = sorted([*chance.choices(opening, k=cuts // 3), *recording.moments(cuts - cuts // 3, chance)])
    acknowledged = replaced = 0
    # A file that is put back with `cp`, or is on a disk after a power cut, keeps its inode. Here they are other files.
    with patch.object(LogFiles, "inode", lambda _: inode):
        for number, (moment, disk) in enumerate(recording.disks(moments, chance)):
            image = disk.after_a_power_cut(stage.folder / f"cut-{number}", PARTS[number % len(PARTS)], chance)
            copied = stage.folder / f"copy-{number}"
            shutil.copytree(image.parent, copied)
            assert epoch_of(image) == epoch, f"a power cut before call {moment} gave the log another epoch"
            trial = Trial()
            trial.add(told.accounts(moment), settled=False)
            rows = read_log(image)
            trial.check_log([row for row in rows if row.content not in kept])
            assert kept <= {row.content for row in rows}
            acknowledged += trial.counts["acknowledged"]
            if trial.counts["acknowledged"]:
                put_back = copied / stage.log.name
                for file in copied.glob(f"{stage.log.name}*"):
                    if not file.name.endswith(".lock"):
                        file.unlink()
                shutil.copy(before / stage.log.name, put_back)
                assert epoch_of(put_back) != epoch, f"a backup after a power cut before call {moment} has its epoch"
                replaced += 1
            for folder in (image.parent, copied):
                shutil.rmtree(folder)
    evidence.count("power cuts", len(moments), at_least=cuts)
    evidence.count("backups that were put back", replaced, at_least=cuts // 3)
    evidence.count("acknowledged messages looked for", acknowledged, at_least=cuts * 10)


def epoch_of(log: Path) -> str:
    """Return the epoch that a relay finds when it opens a log."""
    store = SqliteStore(str(log))
    store.open()
    store.close()
    return store.epoch
