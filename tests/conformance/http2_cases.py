"""The table of HTTP/2 cases: what RFC 9113 and RFC 7541 demand of a server, each with its section.

Owns the table only; `wire2` speaks, `run` judges. Every case sends bytes on a connection of its own and names the ends
that the section allows. Where RFC 9113 lets a server answer a malformed request instead of resetting it (section
8.1.1), a status of 400 or above with the end of the stream counts as refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wire2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    Seen,
    block,
    frame,
    integer,
    literal,
    status,
)

PROTOCOL, INTERNAL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION, CALM = 0x1, 0x2, 0x3, 0x5, 0x6, 0x7, 0x9, 0xB
WHOLE = END_STREAM | END_HEADERS
PONG = b"conforms"


@dataclass
class Peer:
    """How to ask this target something that it answers."""

    address: tuple[str, int]
    token: str

    def fields(self, method: str = "GET", path: str = "/agents", **more: str) -> list[tuple[str, str]]:
        """A good request."""
        fields = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
        fields += [("authorization", f"Bearer {self.token}")]
        return fields + [(name.replace("_", "-"), value) for name, value in more.items()]

    def get(self) -> bytes:
        """The block of a good GET."""
        return block(self.fields())

    def post(self, length: int | None = None, **more: str) -> bytes:
        """The block of a good POST of a form."""
        if length is not None:
            more["content_length"] = str(length)
        return block(self.fields("POST", "/agents/a/runs", content_type="application/x-www-form-urlencoded", **more))


FORM = b"message=hello&stream=false"


@dataclass
class Case:
    """One demand."""

    section: str
    text: str
    play: Callable[[Connection, Peer], None]
    holds: Callable[[Seen], bool]
    stream: int = 1
    polite: bool = True
    preface: bytes | None = None


# === what may happen ===


def connection_error(*codes: int) -> Callable[[Seen], bool]:
    """The connection ends: GOAWAY with one of the codes, or a close (section 5.4.1 only recommends GOAWAY)."""
    return lambda seen: seen.goaway in codes if seen.goaway else seen.closed


def stream_error(*codes: int, stream: int = 1) -> Callable[[Seen], bool]:
    """The stream is reset with one of the codes, or the connection ends (section 5.4.2 lets it)."""
    return lambda seen: seen.resets[stream] in codes if stream in seen.resets else connection_error(*codes)(seen)


def refused(*codes: int, stream: int = 1) -> Callable[[Seen], bool]:
    """A malformed request: a stream error, or an answer that says so (section 8.1.1)."""
    ends = stream_error(*(codes or (PROTOCOL,)), stream=stream)
    return lambda seen: ends(seen) or (stream in seen.answers and status(seen.answers[stream])[:1] == "4")


def answered(stream: int = 1) -> Callable[[Seen], bool]:
    """The request is served."""
    return lambda seen: stream in seen.answers and status(seen.answers[stream]) == "200" and stream not in seen.resets


def pong() -> Callable[[Seen], bool]:
    """The connection lives: a PING that was sent last is acknowledged."""
    return lambda seen: PONG in seen.pongs


def said(check: Callable[[Seen], bool]) -> Callable[[Seen], bool]:
    """Anything else."""
    return check


# === the table ===

CASES: list[Case] = []


def case(section: str, text: str, holds, stream: int = 1, polite: bool = True, preface: bytes | None = None):
    """Adds the decorated function as a case."""

    def add(play):
        CASES.append(Case(section, text, play, holds, stream, polite, preface))
        return play

    return add


def sends(section: str, text: str, holds, *parts, stream: int = 1) -> None:
    """Adds a case that sends these parts; a part is bytes or a function of the peer."""
    CASES.append(Case(section, text, lambda c, p: c.send(*[part(p) if callable(part) else part for part in parts]), holds, stream))


ping = frame(PING, 0, 0, PONG)


def headers(make: Callable[[Peer], bytes], flags: int = WHOLE, stream: int = 1) -> Callable[[Peer], bytes]:
    """A HEADERS frame whose block depends on the peer."""
    return lambda peer: frame(HEADERS, flags, stream, make(peer))


GET = headers(Peer.get)


def with_fields(change: Callable[[list[tuple[str | bytes, str | bytes]]], object]) -> Callable[[Peer], bytes]:
    """A good GET with its fields changed."""

    def make(peer: Peer) -> bytes:
        fields: list[tuple[str | bytes, str | bytes]] = list(peer.fields())
        change(fields)
        return frame(HEADERS, WHOLE, 1, block(fields))

    return make


def adding(name: str | bytes, value: str | bytes) -> Callable[[Peer], bytes]:
    """A good GET with one more field."""
    return with_fields(lambda fields: fields.append((name, value)))


def without(name: str) -> Callable[[Peer], bytes]:
    """A good GET without a field."""
    return with_fields(lambda fields: fields.remove(next(f for f in fields if f[0] == name)))


def twice(name: str) -> Callable[[Peer], bytes]:
    """A good GET with a pseudo-header field twice."""
    return with_fields(lambda fields: fields.insert(1, next(f for f in fields if f[0] == name)))


# --- 3.4 preface ---
case("9113 3.4", "the first frame of the server is SETTINGS", lambda s: s.first is not None and s.first.kind == SETTINGS)(lambda c, p: None)
case("9113 3.4", "a preface that is none ends the connection", connection_error(PROTOCOL), polite=False, preface=b"INVALID CONNECTION PREFACE\r\n\r\n")(lambda c, p: None)
case("9113 3.4", "a preface without SETTINGS after it ends the connection", connection_error(PROTOCOL), polite=False, preface=PREFACE)(lambda c, p: c.send(ping))

# --- 4 frames ---
sends("9113 4.1", "a frame of an unknown type is ignored", pong(), frame(0x16, 0, 0, b"\0" * 8), ping)
sends("9113 4.1", "undefined flags are ignored", pong(), frame(PING, 0xFE, 0, PONG))
sends("9113 4.1", "the reserved bit is ignored", pong(), frame(PING, 0, 0, PONG)[:5] + b"\x80\0\0\0" + PONG)
sends("9113 4.2", "a frame of 2^14 bytes is read", answered(), lambda p: frame(HEADERS, END_HEADERS, 1, p.post()), frame(DATA, END_STREAM, 1, b"message=" + b"x" * (2**14 - 8 - 13) + b"&stream=false"))
sends("9113 4.2", "a DATA frame above the limit is an error", stream_error(SIZE), lambda p: frame(HEADERS, END_HEADERS, 1, p.post()), frame(DATA, END_STREAM, 1, b"x" * (2**14 + 1)))
sends("9113 4.2", "a HEADERS frame above the limit ends the connection", connection_error(SIZE), lambda p: frame(HEADERS, WHOLE, 1, block([*p.fields(), ("x", "y" * 17_000)])))
sends("9113 4.3", "a header block that cannot be decoded ends the connection", connection_error(COMPRESSION), frame(HEADERS, WHOLE, 1, b"\x40\x7f"))
sends("9113 4.3", "PRIORITY inside a header block ends the connection", connection_error(PROTOCOL), headers(Peer.get, END_STREAM), frame(PRIORITY, 0, 1, b"\0\0\0\0\xff"), lambda p: frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"y")))
sends("9113 4.3", "HEADERS of another stream inside a header block ends the connection", connection_error(PROTOCOL), headers(Peer.get, END_STREAM), headers(Peer.get, WHOLE, 3))
sends("9113 5.5", "a frame of an unknown type inside a header block ends the connection", connection_error(PROTOCOL), headers(Peer.get, END_STREAM), frame(0x16, 0, 0, b"\0" * 8), frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"y")))

# --- 5.1 stream states ---
sends("9113 5.1", "DATA on an idle stream ends the connection", connection_error(PROTOCOL), frame(DATA, END_STREAM, 1, b"x"))
sends("9113 5.1", "RST_STREAM on an idle stream ends the connection", connection_error(PROTOCOL), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
sends("9113 5.1", "WINDOW_UPDATE on an idle stream ends the connection", connection_error(PROTOCOL), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x64"))
sends("9113 5.1", "CONTINUATION on an idle stream ends the connection", connection_error(PROTOCOL), lambda p: frame(CONTINUATION, END_HEADERS, 1, p.get()))
sends("9113 5.1", "PRIORITY on an idle stream is no error", pong(), frame(PRIORITY, 0, 1, b"\0\0\0\0\x0f"), ping)
sends("9113 5.1", "DATA after END_STREAM is STREAM_CLOSED", stream_error(CLOSED), GET, frame(DATA, END_STREAM, 1, b"x"))
sends("9113 5.1", "HEADERS after END_STREAM is STREAM_CLOSED", stream_error(CLOSED), GET, GET)
sends("9113 5.1", "CONTINUATION after END_STREAM ends the connection", connection_error(PROTOCOL, CLOSED), GET, frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"y")))
sends("9113 5.1", "DATA after RST_STREAM was sent is STREAM_CLOSED", stream_error(CLOSED), headers(Peer.post, END_HEADERS), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), frame(DATA, END_STREAM, 1, b"x"))
sends("9113 5.1", "HEADERS after RST_STREAM was sent is STREAM_CLOSED", stream_error(CLOSED), headers(Peer.post, END_HEADERS), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), GET)


def after_answer(part: Callable[[Peer], bytes] | bytes):
    """Waits for the whole answer, then sends."""

    def play(c: Connection, p: Peer) -> None:
        c.send(GET(p))
        c.watch(until=lambda seen: 1 in seen.ended)
        c.send(part(p) if callable(part) else part, ping)

    return play


case("9113 5.1", "DATA on a closed stream is STREAM_CLOSED", stream_error(CLOSED))(after_answer(frame(DATA, END_STREAM, 1, b"x")))
case("9113 5.1", "HEADERS on a closed stream ends the connection", connection_error(CLOSED, PROTOCOL))(after_answer(GET))
case("9113 5.1", "WINDOW_UPDATE on a closed stream is no error", pong())(after_answer(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")))
case("9113 5.1", "RST_STREAM on a closed stream is no error", pong())(after_answer(frame(RST_STREAM, 0, 1, b"\0\0\0\x08")))
case("9113 5.1", "PRIORITY on a closed stream is no error", pong())(after_answer(frame(PRIORITY, 0, 1, b"\0\0\0\0\x0f")))
sends("9113 5.1.1", "a stream with an even number ends the connection", connection_error(PROTOCOL), headers(Peer.get, WHOLE, 2), stream=2)
sends("9113 5.1.1", "a stream with a lower number ends the connection", connection_error(PROTOCOL, CLOSED), headers(Peer.get, WHOLE, 5), headers(Peer.get, WHOLE, 3), stream=3)


@case("9113 5.1.2", "streams beyond the limit are refused", lambda s: bool(s.resets) and set(s.resets.values()) <= {PROTOCOL, REFUSED} or s.goaway in (PROTOCOL, CALM))
def too_many_streams(c: Connection, p: Peer) -> None:
    limit = c.settings.get(3, 100)
    one = p.post(length=10)
    c.send(*[frame(HEADERS, END_HEADERS, 1 + 2 * n, one) for n in range(min(limit, 4096) + 1)])


# --- 5.4, 5.5 ---
sends("9113 5.4.1", "after an error of the connection it is closed", lambda s: s.closed, frame(PING, 0, 1, PONG))
sends("9113 5.5", "unknown frames on a stream are ignored", answered(), GET, frame(0x42, 0xFF, 1, b"what"))

# --- 6.1 DATA ---
sends("9113 6.1", "DATA on stream 0 ends the connection", connection_error(PROTOCOL), frame(DATA, END_STREAM, 0, b"x"))
sends("9113 6.1", "DATA with as much padding as payload ends the connection", connection_error(PROTOCOL), headers(Peer.post, END_HEADERS), frame(DATA, END_STREAM | PADDED, 1, b"\x05test"))
sends("9113 6.1", "padded DATA is read", answered(), headers(Peer.post, END_HEADERS), frame(DATA, END_STREAM | PADDED, 1, b"\x06" + FORM + b"\0" * 6))
sends("9113 6.1", "empty DATA frames are read", answered(), headers(Peer.post, END_HEADERS), frame(DATA, 0, 1), frame(DATA, 0, 1, FORM), frame(DATA, END_STREAM, 1))

# --- 6.2 HEADERS ---
sends("9113 6.2", "HEADERS on stream 0 ends the connection", connection_error(PROTOCOL), headers(Peer.get, WHOLE, 0))
sends("9113 6.2", "HEADERS with too much padding ends the connection", connection_error(PROTOCOL), frame(HEADERS, WHOLE | PADDED, 1, b"\xff" + b"\x82\x87\x84"))
sends("9113 6.2", "padded HEADERS is read", answered(), lambda p: frame(HEADERS, WHOLE | PADDED, 1, b"\x06" + p.get() + b"\0" * 6))
sends("9113 6.2", "HEADERS with priority is read", answered(), lambda p: frame(HEADERS, WHOLE | PRIORITY_FLAG, 1, b"\0\0\0\0\x0f" + p.get()))
sends("9113 6.2", "HEADERS with padding and priority is read", answered(), lambda p: frame(HEADERS, WHOLE | PADDED | PRIORITY_FLAG, 1, b"\x03\0\0\0\0\x0f" + p.get() + b"\0" * 3))

# --- 6.3 PRIORITY, 6.4 RST_STREAM ---
sends("9113 6.3", "PRIORITY on stream 0 ends the connection", connection_error(PROTOCOL), frame(PRIORITY, 0, 0, b"\0\0\0\0\x0f"))
sends("9113 6.3", "PRIORITY of another length is FRAME_SIZE_ERROR", stream_error(SIZE), headers(Peer.post, END_HEADERS), frame(PRIORITY, 0, 1, b"\0\0\0\x01"))
sends("9113 6.4", "RST_STREAM on stream 0 ends the connection", connection_error(PROTOCOL), frame(RST_STREAM, 0, 0, b"\0\0\0\x08"))
sends("9113 6.4", "RST_STREAM of another length ends the connection", connection_error(SIZE), headers(Peer.post, END_HEADERS), frame(RST_STREAM, 0, 1, b"\0\0\0"))

# --- 6.5 SETTINGS ---
setting = lambda key, value: key.to_bytes(2, "big") + value.to_bytes(4, "big")  # noqa: E731
sends("9113 6.5", "SETTINGS ACK with a payload ends the connection", connection_error(SIZE), frame(SETTINGS, ACK, 0, b"\0"))
sends("9113 6.5", "SETTINGS on a stream ends the connection", connection_error(PROTOCOL), frame(SETTINGS, 0, 1, setting(3, 100)))
sends("9113 6.5", "SETTINGS whose length is no multiple of six ends the connection", connection_error(SIZE), frame(SETTINGS, 0, 0, b"\0\x03\0"))
sends("9113 6.5.2", "ENABLE_PUSH of 2 ends the connection", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, setting(2, 2)))
sends("9113 6.5.2", "INITIAL_WINDOW_SIZE above 2^31-1 ends the connection", connection_error(FLOW), frame(SETTINGS, 0, 0, setting(4, 2**31)))
sends("9113 6.5.2", "MAX_FRAME_SIZE below 2^14 ends the connection", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, setting(5, 2**14 - 1)))
sends("9113 6.5.2", "MAX_FRAME_SIZE above 2^24-1 ends the connection", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, setting(5, 2**24)))
sends("9113 6.5.2", "an unknown setting is ignored", lambda s: s.settings_acks >= 2, frame(SETTINGS, 0, 0, setting(0xFF, 1)))
sends("9113 6.5.3", "SETTINGS is acknowledged", lambda s: s.settings_acks >= 2, frame(SETTINGS, 0, 0, setting(3, 100)))
sends("9113 6.5.3", "of a setting that stands twice the last holds", lambda s: s.first_data.get(1) == 1, frame(SETTINGS, 0, 0, setting(4, 100) + setting(4, 1)), GET)

# --- 6.7 PING, 6.8 GOAWAY ---
sends("9113 6.7", "PING is acknowledged with its payload", pong(), ping)
sends("9113 6.7", "PING ACK is not answered", lambda s: s.pongs == [PONG], frame(PING, ACK, 0, b"invalid!"), ping)
sends("9113 6.7", "PING on a stream ends the connection", connection_error(PROTOCOL), frame(PING, 0, 1, PONG))
sends("9113 6.7", "PING of another length ends the connection", connection_error(SIZE), frame(PING, 0, 0, b"\0" * 6))
sends("9113 6.8", "GOAWAY on a stream ends the connection", connection_error(PROTOCOL), frame(GOAWAY, 0, 1, b"\0" * 8))
sends("9113 7", "GOAWAY with an unknown code is no error", lambda s: PONG in s.pongs or s.closed and not s.goaway, frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\xff"), ping)
sends("9113 7", "RST_STREAM with an unknown code is no error", pong(), headers(Peer.post, END_HEADERS), frame(RST_STREAM, 0, 1, b"\0\0\0\xff"), ping)

# --- 6.9 WINDOW_UPDATE ---
sends("9113 6.9", "WINDOW_UPDATE of 0 on the connection ends it", connection_error(PROTOCOL), frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"))
sends("9113 6.9", "WINDOW_UPDATE of 0 on a stream is an error", stream_error(PROTOCOL), headers(Peer.post, END_HEADERS), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"))
sends("9113 6.9", "WINDOW_UPDATE of another length ends the connection", connection_error(SIZE), frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01"))
sends("9113 6.9.1", "a window of the connection above 2^31-1 ends it", connection_error(FLOW), frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2)
sends("9113 6.9.1", "a window of a stream above 2^31-1 is an error", stream_error(FLOW), headers(Peer.post, END_HEADERS), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2)
sends("9113 6.9.1", "no more is sent than the window allows", lambda s: s.bodies.get(1) == 1 and 1 not in s.ended, frame(SETTINGS, 0, 0, setting(4, 1)), GET)


@case("9113 6.9.2", "a window that grows by SETTINGS lets the rest out", lambda s: 1 in s.ended and s.bodies.get(1, 0) > 1)
def growing_window(c: Connection, p: Peer) -> None:
    c.send(frame(SETTINGS, 0, 0, setting(4, 1)), GET(p))
    c.watch(until=lambda seen: 1 in seen.first_data)
    c.send(frame(SETTINGS, 0, 0, setting(4, 65_535)))


@case("9113 6.9.2", "a window may be negative after SETTINGS", lambda s: s.bodies.get(1) == 4 and 1 not in s.ended)
def negative_window(c: Connection, p: Peer) -> None:
    c.send(frame(SETTINGS, 0, 0, setting(4, 3)), GET(p))
    c.watch(until=lambda seen: seen.bodies.get(1) == 3)
    # From 0 to -1; 2 more make it 1.
    c.send(frame(SETTINGS, 0, 0, setting(4, 2)), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x02"))


# --- 6.6 PUSH_PROMISE, 6.10 CONTINUATION ---
sends("9113 8.4", "PUSH_PROMISE of a client ends the connection", connection_error(PROTOCOL), lambda p: frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + p.get()))


def pieces(p: Peer, count: int) -> list[bytes]:
    whole = p.get()
    size = -(-len(whole) // count)
    return [whole[at : at + size] for at in range(0, len(whole), size)]


@case("9113 6.10", "a header block may take several CONTINUATION frames", answered())
def continued(c: Connection, p: Peer) -> None:
    first, *rest = pieces(p, 4)
    c.send(frame(HEADERS, END_STREAM, 1, first), *[frame(CONTINUATION, END_HEADERS if part is rest[-1] else 0, 1, part) for part in rest])


sends("9113 6.10", "CONTINUATION after END_HEADERS ends the connection", connection_error(PROTOCOL), headers(Peer.post, END_HEADERS), frame(CONTINUATION, END_HEADERS, 1, literal(b"x", b"y")))
sends("9113 6.10", "CONTINUATION on stream 0 ends the connection", connection_error(PROTOCOL), headers(Peer.get, END_STREAM), frame(CONTINUATION, END_HEADERS, 0, literal(b"x", b"y")))
sends("9113 6.10", "CONTINUATION of another stream ends the connection", connection_error(PROTOCOL), headers(Peer.get, END_STREAM), frame(CONTINUATION, END_HEADERS, 3, literal(b"x", b"y")))
sends("9113 6.10", "DATA inside a header block ends the connection", connection_error(PROTOCOL), headers(Peer.get, 0), frame(DATA, END_STREAM, 1, b"x"))

# --- 8 messages ---
sends("9113 8.1", "a second HEADERS without END_STREAM is malformed", refused(), headers(Peer.post, END_HEADERS), frame(HEADERS, END_HEADERS, 1, literal(b"x-trailer", b"y")))
sends("9113 8.1", "a pseudo-header field in trailers is malformed", refused(), headers(Peer.post, END_HEADERS), frame(DATA, 0, 1, FORM), frame(HEADERS, WHOLE, 1, literal(b":method", b"GET")))
sends("9113 8.1", "trailers are read or dropped", answered(), headers(Peer.post, END_HEADERS), frame(DATA, 0, 1, FORM), frame(HEADERS, WHOLE, 1, literal(b"x-trailer", b"y")))
for name in ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"]:
    value = {"connection": "keep-alive", "keep-alive": "timeout=5", "transfer-encoding": "chunked", "upgrade": "h2c", "proxy-connection": "close"}[name]
    sends("9113 8.2.2", f"the field `{name}` is malformed", refused(), adding(name, value))
sends("9113 8.2.2", "TE other than `trailers` is malformed", refused(), adding("te", "trailers, deflate"))
sends("9113 8.2.2", "TE of `trailers` is read", answered(), adding("te", "trailers"))
for what, name in {"upper case": b"X-TEST", "a space": b"x test", "a line feed": b"x\ntest", "a colon": b"x:test", "a NUL": b"x\0test", "no character": b"", "a byte above ASCII": b"x\xff"}.items():
    sends("9113 8.2.1", f"a field name with {what} is malformed", refused(PROTOCOL, COMPRESSION), adding(name, "y"))
for what, value in {"CR": b"a\rb", "LF": b"a\nb", "CR LF": b"a\r\nhost: b", "NUL": b"a\0b"}.items():
    sends("9113 8.2.1", f"a field value with {what} is malformed", refused(), adding("x-test", value))
sends("9113 8.3", "an unknown pseudo-header field is malformed", refused(), with_fields(lambda f: f.insert(0, (":test", "x"))))
sends("9113 8.3", "a pseudo-header field of answers is malformed", refused(), with_fields(lambda f: f.insert(0, (":status", "200"))))
sends("9113 8.3", "a pseudo-header field after others is malformed", refused(), with_fields(lambda f: f.append(f.pop(3))))
sends("9113 8.3.1", "an empty `:path` is malformed", refused(), with_fields(lambda f: f.__setitem__(3, (":path", ""))))
for name in [":method", ":scheme", ":path"]:
    sends("9113 8.3.1", f"`{name}` must not be missing", refused(), without(name))
for name in [":method", ":scheme", ":path", ":authority"]:
    sends("9113 8.3.1", f"`{name}` must not stand twice", refused(), twice(name))
sends("9113 8.3.1", "a `:path` without a slash is malformed", refused(), with_fields(lambda f: f.__setitem__(3, (":path", "agents"))))
sends("9113 8.3.1", "a `:path` with a space is malformed", refused(), with_fields(lambda f: f.__setitem__(3, (":path", "/a gents"))))
sends("9113 8.3.1", "a `Host` that contradicts `:authority` is refused", refused(), adding("host", "elsewhere"))
sends("9113 8.1.1", "a body shorter than its length is malformed", refused(), lambda p: frame(HEADERS, END_HEADERS, 1, p.post(length=len(FORM) + 1)), frame(DATA, END_STREAM, 1, FORM))
sends("9113 8.1.1", "a body longer than its length is malformed", refused(), lambda p: frame(HEADERS, END_HEADERS, 1, p.post(length=1)), frame(DATA, END_STREAM, 1, FORM))
sends("9113 8.1.1", "several frames longer than the length are malformed", refused(), lambda p: frame(HEADERS, END_HEADERS, 1, p.post(length=len(FORM))), frame(DATA, 0, 1, FORM), frame(DATA, END_STREAM, 1, FORM))
sends("9113 8.1.1", "a length without a body is malformed", refused(), lambda p: frame(HEADERS, WHOLE, 1, p.post(length=10)))
sends("9113 8.1", "a body in several frames is read", answered(), lambda p: frame(HEADERS, END_HEADERS, 1, p.post(length=len(FORM))), frame(DATA, 0, 1, FORM[:10]), frame(DATA, END_STREAM, 1, FORM[10:]))
sends("9113 8.2.3", "`cookie` may be split", answered(), with_fields(lambda f: f.extend([("cookie", "a=b"), ("cookie", "c=d")])))
sends("9113 8.5", "CONNECT with a path is malformed or refused", lambda s: refused()(s) or (1 in s.answers and status(s.answers[1])[:1] in "45"), with_fields(lambda f: f.__setitem__(0, (":method", "CONNECT"))))

# --- RFC 7541 ---


def hpack(section: str, text: str, raw: bytes, holds=connection_error(COMPRESSION), before: bool = False) -> None:
    """A good block with raw bytes after it, or before it."""
    sends(section, text, holds, lambda p: frame(HEADERS, WHOLE, 1, raw + p.get() if before else p.get() + raw))


hpack("7541 2.3.3", "an index beyond the tables ends the connection", integer(200, 7, 0x80))
hpack("7541 2.3.3", "a literal with a name beyond the tables ends the connection", integer(200, 6, 0x40) + b"\x01y")
hpack("7541 4.2", "a table size update at the end of a block ends the connection", integer(1, 5, 0x20))
hpack("7541 4.2", "a table size update at the start of a block is read", integer(0, 5, 0x20), answered(), before=True)
hpack("7541 5.1", "an integer without end ends the connection", b"\xff" + b"\xff" * 20 + b"\x0f")
hpack("7541 5.2", "Huffman padding of more than seven bits ends the connection", b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff")
hpack("7541 5.2", "Huffman padding that is not the start of EOS ends the connection", b"\x00\x85\xf2\xb2\x4a\x87\xff\x83\x49\x50\x90")
hpack("7541 5.2", "EOS inside a Huffman text ends the connection", b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f")
hpack("7541 5.2", "a text longer than its block ends the connection", b"\x00\x01x\x7f\x01y")
hpack("7541 5.2", "a Huffman text is read", b"\x00\x01x\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", answered())
hpack("7541 6.1", "index 0 ends the connection", b"\x80")
hpack("7541 6.2.3", "a literal that is never indexed is read", b"\x10\x01x\x01y", answered())
hpack("7541 6.3", "a table size update above the limit ends the connection", integer(4097, 5, 0x20), before=True)


@case("7541 2.3.2", "a field of an earlier block is found in the dynamic table", answered(3), stream=3)
def dynamic(c: Connection, p: Peer) -> None:
    fields = p.fields()
    name, value = (text.encode() for text in fields.pop())
    indexed = b"\x40" + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value
    c.send(frame(HEADERS, WHOLE, 1, block(fields) + indexed), frame(HEADERS, WHOLE, 3, block(fields) + integer(62, 7, 0x80)))


@case("7541 4.3", "the dynamic table is emptied by a size of 0", connection_error(COMPRESSION), stream=3)
def emptied(c: Connection, p: Peer) -> None:
    fields = p.fields()
    name, value = (text.encode() for text in fields.pop())
    indexed = b"\x40" + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value
    late = b"\x20" + block(fields) + integer(62, 7, 0x80)
    c.send(frame(HEADERS, WHOLE, 1, block(fields) + indexed), frame(HEADERS, WHOLE, 3, late))
