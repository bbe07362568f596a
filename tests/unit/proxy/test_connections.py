"""The registry of client connections: limits, eviction, deadlines, pauses, and rate-limited warnings."""

import asyncio
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler

from ollama_auth.exchange import Exchange
from ollama_auth.proxy import client_connection
from ollama_auth.proxy import connections as module
from ollama_auth.proxy.client_connection import (
    CONNECT_TIMEOUT,
    EXPIRY_GRACE_SECONDS,
    ClientConnection,
    ConnectLost,
    Expire,
)
from ollama_auth.proxy.connections import WARNING_INTERVAL, Connections
from ollama_auth.proxy.pacer import Pacer
from ollama_auth.settings import UNCONFIGURED

MADE_ROOM = "connections without a request were closed to make room for new ones"


class FakeTransport:
    """A transport of asyncio that notes whether it reads."""

    def __init__(self) -> None:
        self.reading = True
        self.closing = False
        self.unsent = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> None:
        """No socket: what the client takes is seen by what is still to be sent."""

    def abort(self) -> None:
        self.aborted, self.unsent = True, 0

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True


class FakeWriter(asyncio.StreamWriter):
    def __init__(self, transport: FakeTransport) -> None:
        self._transport = transport

    def __del__(self, *_: Any) -> None:
        """Nothing to close."""


class FakeTask:
    """The task that reads from a connection; notes how it was cancelled, and may raise."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.error: Exception | None = None

    def done(self) -> bool:
        return False

    def cancel(self, why: str) -> None:
        self.cancelled.append(why)
        if self.error:
            raise self.error


class FakeHandler:
    """A ConnectionHandler of mitmproxy that notes the events it is given."""

    def __init__(self, client: Client) -> None:
        self.task = FakeTask()
        self.sent: list[events.Event] = []
        self.transports: dict[Connection, Any] = {}
        self.socket_of(client).handler = self.task

    def socket_of(self, connection: Connection) -> Any:
        reader, writer = SimpleNamespace(_paused=False), FakeWriter(FakeTransport())
        return self.transports.setdefault(connection, SimpleNamespace(handler=None, reader=reader, writer=writer))

    async def server_event(self, event: events.Event) -> None:
        self.sent.append(event)


class FakeProtocol:
    def __init__(self, *, idle: bool = True) -> None:
        self.idle = idle


def peer_from(
    address: str = "10.0.0.1", *, busy: bool = False, authenticated: bool = False, deadline: float = 0
) -> ClientConnection:
    client = Client(peername=(address, 1), sockname=("10.0.0.2", 8081), timestamp_start=0)
    peer = ClientConnection(client, cast(ConnectionHandler, FakeHandler(client)), deadline, Pacer(4, 1))
    peer.http_server = FakeProtocol(idle=not busy)
    peer.authenticated_before = authenticated
    return peer


def fake(peer: ClientConnection) -> FakeHandler:
    return cast(FakeHandler, peer.handler)


def was_cut(peer: ClientConnection) -> bool:
    return fake(peer).task.cancelled == ["closed by the gate"]


def filled(*peers: ClientConnection) -> Connections:
    found = Connections()
    assert all(found.add(peer, 1000, 0) for peer in peers)
    return found


# What connections are counted by.


def test_the_address_of_a_client() -> None:
    assert peer_from("2001:db8::7").address == "2001:db8::7"
    assert peer_from("::ffff:10.0.0.1").address == "10.0.0.1", "IPv4 on a socket of IPv6"
    nobody = Client(peername=cast(Any, None), sockname=("", 0), timestamp_start=0)
    assert ClientConnection(nobody, cast(ConnectionHandler, FakeHandler(nobody)), 0, Pacer(4, 1)).address == "unknown"


# Counting.


def test_a_connection_is_found_until_it_is_removed() -> None:
    one = peer_from()
    found = filled(one)
    assert (found.get(one.client.id), len(found), list(found)) == (one, 1, [one])
    assert found.remove(one.client.id) is one
    assert (found.get(one.client.id), len(found), list(found)) == (None, 0, [])


def test_removing_what_is_not_there_is_harmless() -> None:
    found = filled(one := peer_from())
    assert found.remove("nobody") is None
    assert found.remove(one.client.id) is one
    assert found.remove(one.client.id) is None
    assert found.add(one, 1, 1)


def test_connections_may_go_while_they_are_looked_at() -> None:
    found = filled(peer_from(), peer_from(), peer_from())
    assert [found.remove(peer.client.id) is peer for peer in found] == [True] * 3


def test_where_all_are_at_work_there_is_no_room() -> None:
    found = filled(peer_from(busy=True), peer_from(busy=True))
    assert not found.add(peer_from(), 2, 0)
    assert len(found) == 2
    assert not any(map(was_cut, found))


def test_the_oldest_stranger_makes_room() -> None:
    worker, friend, old, young = peer_from(busy=True), peer_from(authenticated=True), peer_from(), peer_from()
    found = filled(worker, friend, old, young)
    assert found.add(new := peer_from(), 4, 0)
    assert list(found) == [worker, friend, young, new]
    assert [was_cut(peer) for peer in (worker, friend, old, young, new)] == [False, False, True, False, False]


def test_where_there_is_no_stranger_the_oldest_that_is_idle_makes_room() -> None:
    worker, old, young = (
        peer_from(busy=True, authenticated=True),
        peer_from(authenticated=True),
        peer_from(authenticated=True),
    )
    found = filled(worker, old, young)
    assert found.add(peer_from(), 3, 0)
    assert [was_cut(peer) for peer in (worker, old, young)] == [False, True, False]


def test_a_connection_that_has_not_said_a_word_makes_room() -> None:
    silent = peer_from()
    silent.http_server = None
    assert filled(silent).add(peer_from(), 1, 0)
    assert was_cut(silent)


def test_a_request_under_way_keeps_its_connection_whatever_the_http_layer_says() -> None:
    at_work = peer_from()
    at_work.exchanges[1] = Exchange("10.0.0.1")
    assert not filled(at_work).add(peer_from(), 1, 0)


@pytest.mark.parametrize("network", ["10.0.0.1", "10.0.0.2"])
def test_while_all_are_at_work_it_is_not_looked_for_others_again(network: str) -> None:
    """With thousands of them, a stranger who is one too many would cost several times as much as a refusal."""
    at_work = peer_from(busy=True)
    found = filled(at_work, peer_from("10.0.0.2", busy=True))
    looks: list[int] = []
    found._by_client = type("Watched", (dict,), {"values": lambda own: looks.append(1) or dict.values(own)})(  # type: ignore[func-returns-value]
        found._by_client
    )
    assert not found.add(peer_from(network), 2, 0)
    first = len(looks)
    assert not any(found.add(peer_from(network), 2, 0) for _ in range(10))
    assert len(looks) == first > 0
    at_work.exchanges.clear()
    at_work.http_server = None
    found.note_change(at_work.network)
    assert found.add(peer_from(network), 2, 0)
    assert was_cut(at_work)


def test_a_request_that_has_arrived_and_is_not_decided_yet_is_waited_for_at_the_end() -> None:
    """Yet its connection makes room: who sent it may be a stranger."""
    found = filled(peer := peer_from())
    assert not found.busy
    peer.begins, peer.http_server = True, None
    assert found.busy
    peer.drain()
    assert not was_cut(peer)
    assert found.add(peer_from(), 1, 0)
    assert was_cut(peer)


def test_one_client_has_a_limit_of_its_own() -> None:
    found = filled(peer_from(busy=True), peer_from(busy=True))
    assert not found.add(peer_from(), 1000, 2)
    assert found.add(peer_from("10.0.0.9"), 1000, 2)
    assert found.add(peer_from(), 1000, 3)


def test_only_a_connection_of_the_same_client_makes_room_for_it() -> None:
    other, own, worker = peer_from("10.0.0.9"), peer_from(), peer_from(busy=True)
    found = filled(other, own, worker)
    assert found.add(peer_from(), 1000, 2)
    assert (was_cut(other), was_cut(own)) == (False, True)
    assert not filled(other, peer_from(busy=True)).add(peer_from(), 1000, 1)


def test_an_ipv6_network_has_one_limit_for_all_its_addresses() -> None:
    found = filled(*(peer_from(f"2001:db8::{host:x}", busy=True) for host in range(1, 4)))
    assert not found.add(peer_from("2001:db8::ffff"), 1000, 3)
    assert found.add(peer_from("2001:db8:0:1::1"), 1000, 3)


def test_no_limit_of_its_own_is_no_limit() -> None:
    found = Connections()
    assert all(found.add(peer_from(busy=True), 100, 0) for _ in range(100))
    assert not found.add(peer_from(), 100, 0)


def test_a_removed_connection_makes_room_for_its_client() -> None:
    found = filled(one := peer_from(busy=True))
    assert not found.add(peer_from(), 1000, 1)
    found.remove(one.client.id)
    assert found.add(peer_from(), 1000, 1)


def test_room_is_made_in_both_ways_at_once() -> None:
    """Its client is over its limit, and so is everybody together."""
    own, other = peer_from(), peer_from("10.0.0.9")
    found = filled(own, other)
    assert found.add(new := peer_from(), 1, 1)
    assert list(found) == [new]


steps = st.lists(
    st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"]), st.booleans(), st.booleans())
    | st.integers(0, 5),
    max_size=30,
)


@given(steps, st.integers(1, 5), st.integers(0, 3))
def test_the_limits_hold_and_nobody_at_work_is_ever_cut(
    steps: list[tuple[str, bool, bool] | int], most: int, most_per_network: int
) -> None:
    """Connections come, busy or not and authenticated or not, and some of them go."""
    found, everybody = Connections(), list[ClientConnection]()
    for step in steps:
        if isinstance(step, int):
            for peer in list(found)[step : step + 1]:
                found.remove(peer.client.id)
        else:
            everybody.append(peer_from(step[0], busy=step[1], authenticated=step[2]))
            taken = found.add(everybody[-1], most, most_per_network)
            assert taken == (everybody[-1] in list(found))
        counts = Counter(peer.network for peer in found)
        assert len(found) == counts.total() <= most
        assert not most_per_network or max(counts.values(), default=0) <= most_per_network
    assert not any(was_cut(peer) and not peer.idle for peer in everybody)
    assert not any(was_cut(peer) for peer in found)


def test_what_has_gone_leaves_nothing_behind() -> None:
    found = Connections()
    for number in range(200):
        found.add(peer := peer_from(f"2001:db8:{number:x}::1"), 10, 2)
        found.remove(peer.client.id)
    assert not any(vars(found).values())


# Deadlines.


class Clock:
    """The time module of connections.py, and its sweep step by step."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(client_connection, "time", clock)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0)
    return clock


async def swept(found: Connections) -> None:
    """A few looks at the deadlines, and what they set going."""
    sweep = asyncio.create_task(found.sweep(lambda: UNCONFIGURED))
    for _ in range(10):
        await asyncio.sleep(0)
    sweep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweep


async def test_before_its_deadline_a_connection_is_left_alone(clock: Clock) -> None:
    found = filled(peer := peer_from(deadline=clock.now))
    await swept(found)
    assert (fake(peer).sent, was_cut(peer)) == ([], False)


async def test_the_sweep_looks_again(clock: Clock) -> None:
    """For what no event tells, such as a client that takes nothing."""
    found = filled(at_work := peer_from(busy=True, deadline=clock.now))
    assert not found.add(peer_from(), 1, 0)
    at_work.http_server = None
    assert not found.add(peer_from(), 1, 0)
    await swept(found)
    assert found.add(peer_from(), 1, 0)


async def test_many_connections_are_looked_at_in_several_turns(clock: Clock) -> None:
    """Tokens of all would wait for it otherwise. One that has ended meanwhile is left alone."""
    peers = [peer_from(deadline=clock.now - 1) for _ in range(150)]
    found = filled(*peers)
    sweep = asyncio.create_task(found.sweep(lambda: UNCONFIGURED))
    seen = list[int]()
    while sum(seen) < 149 and len(seen) < 20:
        await asyncio.sleep(0)
        seen.append(sum(peer.expiry_sent for peer in peers) - sum(seen))
        if sum(seen) == 64:
            found.remove(peers[-1].client.id)
    sweep.cancel()
    assert [some for some in seen if some] == [64, 64, 21]
    assert not peers[-1].expiry_sent


async def test_after_its_deadline_a_connection_may_say_a_last_word_and_is_then_cut(clock: Clock) -> None:
    found = filled(peer := peer_from(deadline=clock.now - 1))
    await swept(found)
    assert [type(event) for event in fake(peer).sent] == [Expire]
    assert (was_cut(peer), peer.deadline) == (False, clock.now + EXPIRY_GRACE_SECONDS)
    clock.now += EXPIRY_GRACE_SECONDS + 0.1
    await swept(found)
    assert was_cut(peer)
    assert len(fake(peer).sent) == 1


async def test_a_connection_that_can_say_nothing_is_cut_at_once(clock: Clock) -> None:
    peer = peer_from(deadline=clock.now - 1)
    peer.http_server = None
    await swept(filled(peer))
    assert was_cut(peer)


async def test_a_connection_without_a_deadline_waits_for_ever(clock: Clock) -> None:
    found = filled(peer := peer_from())
    peer.deadline = None
    clock.now += 10**9
    await swept(found)
    assert (fake(peer).sent, was_cut(peer)) == ([], False)


async def test_a_connection_that_can_not_be_ended_does_not_save_the_others(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = peer_from(deadline=clock.now - 1), peer_from(deadline=clock.now - 1)
    broken.http_server = other.http_server = None
    fake(broken).task.error = RuntimeError("sk-ollama-in-a-message")
    await swept(filled(broken, other))
    assert was_cut(other)
    assert caplog.messages == ["a connection could not be ended: RuntimeError"]


@pytest.mark.parametrize("tls", [False, True])
async def test_an_attempt_to_connect_ends_at_its_deadline(clock: Clock, tls: bool) -> None:
    """Unless it has ended before; the layers are told so where its task did not."""
    found = filled(peer := peer_from(deadline=clock.now))
    slow, ready, closed = (Server(address=("127.0.0.1", port), tls=tls) for port in (1, 2, 3))
    for server in (slow, ready):
        fake(peer).socket_of(server).handler = FakeTask()
    peer.connecting = dict.fromkeys((slow, closed), clock.now + 1)
    await swept(found)
    assert [*peer.connecting] == [slow]
    assert [event.server for event in fake(peer).sent if isinstance(event, ConnectLost)] == [closed]
    clock.now += 1.1
    peer.deadline = None
    await swept(found)
    assert peer.connecting == {slow: math.inf}
    assert [fake(peer).transports[one].handler.cancelled for one in (slow, ready)] == [[CONNECT_TIMEOUT], []]


def test_a_connection_whose_socket_is_gone_can_be_cut() -> None:
    peer = peer_from()
    fake(peer).transports.clear()
    peer.close_now()
    peer.hold_reading(peer.client, "me")
    peer.release_reading(peer.client, "me")


# Warnings that may occur a thousand times a second.


async def test_a_warning_is_logged_at_once_and_then_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    found = Connections()
    for _ in range(1000):
        found.warn_rate_limited("it rains")
    await swept(found)
    assert caplog.messages == ["it rains"]
    clock.now += WARNING_INTERVAL
    await swept(found)
    assert caplog.messages == ["it rains", "it rains (999 more times in 10 seconds)"]
    clock.now += WARNING_INTERVAL
    await swept(found)
    assert len(caplog.messages) == 2


async def test_a_single_warning_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    found = Connections()
    for _ in range(3):
        found.warn_rate_limited("it rains")
        clock.now += WARNING_INTERVAL
        await swept(found)
    assert caplog.messages == ["it rains"] * 3


def test_two_warnings_do_not_hide_each_other(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    found = Connections()
    for what in ("it rains", "it snows", "it rains"):
        found.warn_rate_limited(what)
    assert caplog.messages == ["it rains", "it snows"]


def test_percent_signs_in_a_warning_are_no_format(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    Connections().warn_rate_limited("100%s full")
    assert caplog.messages == ["100%s full"]


def test_evictions_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    found = Connections()
    for _ in range(100):
        assert found.add(peer_from(), 2, 0)
    assert caplog.messages == [MADE_ROOM]


# Clients that take nothing.


def waiting(peer: ClientConnection, unsent: int) -> FakeTransport:
    """Its transport, with so many bytes that the client has not taken."""
    transport = transport_of(peer)
    transport.unsent = unsent
    return transport


async def test_who_takes_nothing_is_ended_after_the_idle_timeout(clock: Clock) -> None:
    found = filled(peer := peer_from(busy=True), other := peer_from(busy=True))
    peer.deadline = other.deadline = None
    transport, taking = waiting(peer, 1000), waiting(other, 1000)
    await swept(found)
    clock.now += UNCONFIGURED.idle_timeout - 1
    taking.unsent -= 1
    await swept(found)
    assert not transport.aborted
    clock.now += 2
    await swept(found)
    assert (transport.aborted, taking.aborted) == (True, False)


async def test_what_a_closed_connection_has_still_to_send_counts(clock: Clock) -> None:
    """Until it is sent, or its client has taken nothing for too long."""
    found = filled(peer := peer_from(), other := peer_from())
    one, two = waiting(peer, 1000), waiting(other, 1000)
    found.remove(peer.client.id)
    found.remove(other.client.id)
    await swept(found)
    assert not found.add(peer_from(), 2, 0)
    assert not found.add(peer_from(), 9, 2)
    one.unsent = 0
    await swept(found)
    assert found.add(peer_from(busy=True), 2, 0)
    clock.now += UNCONFIGURED.idle_timeout + 1
    await swept(found)
    assert two.aborted
    assert found.add(peer_from(), 2, 0)


async def test_a_client_that_takes_nothing_makes_room(clock: Clock) -> None:
    """One that takes something does not, though no request of it is running."""
    found = filled(peer := peer_from())
    transport = waiting(peer, 1000)
    await swept(found)
    assert not found.add(peer_from(), 1, 0)
    clock.now += EXPIRY_GRACE_SECONDS + 1
    await swept(found)
    assert found.add(peer_from(), 1, 0)
    assert transport.aborted


# Pausing a peer.


def transport_of(peer: ClientConnection) -> FakeTransport:
    return cast(FakeTransport, fake(peer).transports[peer.client].writer.transport)


def test_a_client_waits_until_all_that_held_it_released_it() -> None:
    peer = peer_from()
    peer.hold_reading(peer.client, "one")
    peer.hold_reading(peer.client, "two")
    peer.hold_reading(peer.client, "two")
    peer.release_reading(peer.client, "two")
    assert not transport_of(peer).reading
    peer.release_reading(peer.client, "one")
    assert transport_of(peer).reading


def test_who_holds_nothing_releases_nothing() -> None:
    peer = peer_from()
    peer.hold_reading(peer.client, "one")
    peer.release_reading(peer.client, "two")
    assert not transport_of(peer).reading


def test_a_server_that_waits_does_not_make_the_client_wait() -> None:
    peer, server = peer_from(), peer_from().client
    fake(peer).socket_of(server)
    peer.hold_reading(server, "one")
    assert transport_of(peer).reading
    peer.release_reading(peer.client, "one")
    assert not fake(peer).transports[server].writer.transport.reading


def test_a_connection_that_is_closing_is_not_read_again() -> None:
    peer = peer_from()
    peer.hold_reading(peer.client, "one")
    transport_of(peer).closing = True
    peer.release_reading(peer.client, "one")
    assert not transport_of(peer).reading


def test_a_reader_that_is_full_resumes_by_itself() -> None:
    peer = peer_from()
    peer.hold_reading(peer.client, "one")
    fake(peer).socket_of(peer.client).reader._paused = True
    peer.release_reading(peer.client, "one")
    assert not transport_of(peer).reading
