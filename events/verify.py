"""What must hold of a log, and the first place where it does not.

`seq` counts from 0 without a gap; every body is an event, and canonical; the columns that
look it up are what its body gives; every attempt is a legal walk with one terminal event
at its end, unless the running service can still end it; no request begins twice; and
accounts, secrets' versions and keys stand in their tables as the events leave them.

Reads in pages, and holds accounts, keys and open attempts, so that any length of log can
be read. Only the last few rows and the tables share a snapshot: the log may grow meanwhile.
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest

import attrs
from attrs import frozen

from events.records import TERMINAL, AttemptEvent, Event
from events.replay import AccountState, Fault, KeyState, Replay, read
from events.sqlite import PAGE, SqliteReader

_BEFORE_ALL = -(2**63)  # SQLite's least rowid: an event below 0 would stand before the first


@frozen
class Report:
    """How far the log holds: `events` of them, and what they add up to; all of it where there is no fault."""

    events: int
    replay: Replay
    fault: Fault | None


def verify(reader: SqliteReader, on_page: Callable[[int, int], None] = lambda done, size: None) -> Report:
    """Read the log to its end. `on_page` is told how many events of how many are done. Raises `StoreError`."""
    reading = _Reading(reader, on_page)
    fault = None
    try:
        reading.run()
    except Fault as found:
        fault = found
    return Report(reading.events, reading.replay, fault)


def difference(reader: SqliteReader, replay: Replay) -> str | None:
    """The first account or key that stands otherwise in its tables than the events leave it. Raises `StoreError`."""
    rebuilt = sorted(replay.accounts.values(), key=lambda state: state.account)
    for pair in zip_longest(_live_accounts(reader), rebuilt):
        if pair[0] != pair[1]:
            account = min(state.account for state in pair if state is not None)
            return f"account {account} stands otherwise in its tables than the events leave it"
    live_keys = {KeyState(**attrs.asdict(key)) for key in reader.signing_keys()}
    changed = sorted(key.kid for key in live_keys ^ set(replay.keys.values()))
    return f"key {changed[0]} stands otherwise in its table than the events leave it" if changed else None


def _live_accounts(reader: SqliteReader) -> Iterator[AccountState]:
    after = ""
    while page := reader.account_states(after):
        for account, secrets in page:
            yield AccountState(**attrs.asdict(account), secrets=secrets)
        after = page[-1][0].account


class _Reading:
    def __init__(self, reader: SqliteReader, on_page: Callable[[int, int], None]) -> None:
        self.replay = Replay(reader.attempt_start)
        self.events = 0
        self._reader = reader
        self._on_page = on_page

    def run(self) -> None:
        while (size := self._reader.size()) - self.events > PAGE:
            self._read_to(size)
        self._reader.snapshot()
        try:
            self._read_to(self._reader.size())
            self._check_ends()
        finally:
            self._reader.release()

    def _read_to(self, size: int) -> None:
        for page in self._reader.pages(self.events or _BEFORE_ALL, size):
            for seq, body, request_id, account in page:
                if seq != self.events:
                    raise Fault(self.events, f"is missing, event {seq} stands in its place")
                event = read(seq, body)
                self.replay.apply(seq, event)
                if (request_id, account) != _columns(event):
                    raise Fault(seq, "is looked up by another request_id or account than its body has")
                self.events += 1
            self._on_page(self.events, size)

    def _check_ends(self) -> None:
        lost = self.replay.lost()
        if lost is not None:
            raise Fault(lost.first, "begins an attempt that has no terminal event")
        repeated = self._reader.repeated_request()
        if repeated is not None:
            raise Fault(repeated, "begins an attempt whose request_id another one has")
        differs = difference(self._reader, self.replay)
        if differs is not None:
            raise Fault(None, differs)


def _columns(event: Event) -> tuple[bytes | None, bytes | None]:
    """What the store derives from the body. The replay has found the ids well-formed."""
    request_id = account = None
    if isinstance(event, AttemptEvent):
        if event.position == 0:
            request_id = bytes.fromhex(event.request_id)
        if event.TYPE not in TERMINAL:
            return request_id, None
    named: str | None = getattr(event, "account", None)
    if named is not None:
        account = bytes.fromhex(named)
    return request_id, account
