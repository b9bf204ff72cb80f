"""The scenarios of the benchmark, as data.

A scenario is a load, and the servers that are measured under it. docs/benchmarks.rst has the results.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """A load, and the servers that are measured under it.

    :ivar name: its name on the command line and in the JSON.
    :ivar title: its name in tables.
    :ivar kind: ``cost`` (CPU per message), ``growth`` (the same over numbers of connections), ``idle`` (memory per
        connection), ``login`` (CPU per login), ``latency`` (from sending to arrival).
    :ivar servers: names of `bench.servers`, in the order of the table.
    :ivar connections: the numbers of connections; only `growth` has several.
    :ivar in_flight: pending messages per connection, or pending logins.
    :ivar rate: messages a second; 0 sends the next message when the previous one is answered.
    :ivar warm_up: seconds of load before anything is measured.
    :ivar window: seconds that are measured.
    :ivar quick: whether ``make bench-quick`` runs it, with `quick_servers`.
    """

    name: str
    title: str
    kind: str
    servers: tuple[str, ...]
    connections: tuple[int, ...]
    in_flight: int = 1
    rate: float = 0.0
    warm_up: float = 1.0
    window: float = 5.0
    quick: bool = False
    quick_servers: tuple[str, ...] = ()


RELAYS = ("autobahn", "websockets", "aiohttp", "node", "gorilla", "picows", "bun", "mosquitto")
"""The peers, the one with the highest cost first."""

SCENARIOS = (
    Scenario(
        "64x8",
        "64 connections, 8 messages in flight on each, message log off",
        "cost",
        (*RELAYS, "chatrelay", "chatrelay-lean"),
        (64,),
        in_flight=8,
        quick=True,
        quick_servers=("autobahn", "node", "bun", "chatrelay"),
    ),
    Scenario(
        "1000x1",
        "1000 connections, 1 message in flight on each, message log off",
        "cost",
        (*RELAYS, "chatrelay", "chatrelay-lean"),
        (1000,),
    ),
    Scenario(
        "64x8-log",
        "64 connections, 8 messages in flight on each, chatrelay with its SQLite message log (peers log nothing)",
        "cost",
        ("autobahn", "node", "gorilla", "bun", "chatrelay-log", "chatrelay-v2", "chatrelay-lean-log"),
        (64,),
        in_flight=8,
        quick=True,
        quick_servers=("autobahn", "node", "bun", "chatrelay-log"),
    ),
    Scenario(
        "1000x1-log",
        "1000 connections, 1 message in flight on each, chatrelay with its SQLite message log (peers log nothing)",
        "cost",
        ("autobahn", "node", "gorilla", "bun", "chatrelay-log", "chatrelay-lean-log"),
        (1000,),
    ),
    Scenario(
        "64x8-tls",
        "64 connections over TLS, 8 messages in flight on each, message log off",
        "cost",
        ("chatrelay-tls",),
        (64,),
        in_flight=8,
    ),
    Scenario(
        "growth",
        "more connections at the same 2,000 messages a second, message log off",
        "growth",
        ("node", "gorilla", "bun", "chatrelay", "chatrelay-lean"),
        (100, 1000, 10000),
        rate=2000.0,
    ),
    Scenario(
        "growth-log",
        "more connections at the same 2,000 messages a second, message log in SQLite",
        "growth",
        ("chatrelay-log", "chatrelay-v2"),
        (100, 10000),
        rate=2000.0,
        warm_up=7.0,  # so that each of 10,000 users has written once, and is known
    ),
    Scenario(
        "idle",
        "idle connections that are logged in",
        "idle",
        ("autobahn", "node", "gorilla", "bun", "chatrelay"),
        (5000,),
        warm_up=2.0,
        window=3.0,
    ),
    Scenario(
        "login",
        "logins, 32 in flight: handshake, auth-request, request to the session page, auth-response, close",
        "login",
        ("node-login", "chatrelay"),
        (0,),
        in_flight=32,
    ),
    Scenario(
        "latency",
        "1,000 messages a second over 200 connections, chatrelay with its SQLite message log",
        "latency",
        ("node", "bun", "chatrelay-log", "chatrelay-lean-log"),
        (200,),
        rate=1000.0,
        warm_up=2.0,
        window=10.0,
    ),
)
