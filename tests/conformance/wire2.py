"""Speaks HTTP/2 byte by byte (RFC 9113), without a library that would refuse to send what is wrong.

Owns frames, header blocks as literals, and what a peer did with them. Does not judge (`http2_cases`, `run`).
Invariant: every wait ends after `PATIENCE_S`; a peer that says nothing is `silent`.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

PATIENCE_S = 2.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY_FLAG = 0x4, 0x8, 0x20

NAMES = {
    0x0: "NO_ERROR",
    0x1: "PROTOCOL_ERROR",
    0x2: "INTERNAL_ERROR",
    0x3: "FLOW_CONTROL_ERROR",
    0x4: "SETTINGS_TIMEOUT",
    0x5: "STREAM_CLOSED",
    0x6: "FRAME_SIZE_ERROR",
    0x7: "REFUSED_STREAM",
    0x8: "CANCEL",
    0x9: "COMPRESSION_ERROR",
    0xA: "CONNECT_ERROR",
    0xB: "ENHANCE_YOUR_CALM",
}


@dataclass
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


@dataclass
class Seen:
    """What the peer did: how the connection and the streams ended, and what came back."""

    goaway: int | None = None
    closed: bool = False
    resets: dict[int, int] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)
    bodies: dict[int, int] = field(default_factory=dict)
    first_data: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    pongs: list[bytes] = field(default_factory=list)
    settings_acks: int = 0
    first: Frame | None = None

    def describe(self, stream: int) -> str:
        """The end that matters for a stream, in a word."""
        if stream in self.resets:
            return f"RST_STREAM {NAMES.get(self.resets[stream], self.resets[stream])}"
        if self.goaway is not None:
            return f"GOAWAY {NAMES.get(self.goaway, self.goaway)}"
        if stream in self.answers:
            return f"answered {status(self.answers[stream])}"
        if self.closed:
            return "closed"
        if self.pongs:
            return "pong"
        return "silent"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def integer(value: int, bits: int, first: int) -> bytes:
    """An integer with a prefix (RFC 7541 section 5.1)."""
    top = (1 << bits) - 1
    if value < top:
        return bytes([first | value])
    out, value = [first | top], value - top
    while value >= 128:
        out.append(value % 128 | 128)
        value //= 128
    return bytes([*out, value])


def literal(name: bytes, value: bytes) -> bytes:
    """A field that is not indexed, without Huffman coding (RFC 7541 section 6.2.2)."""
    return b"\x00" + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value


def block(fields: list[tuple[str | bytes, str | bytes]]) -> bytes:
    """A header block of literals."""
    raw = lambda text: text if isinstance(text, bytes) else text.encode()  # noqa: E731
    return b"".join(literal(raw(name), raw(value)) for name, value in fields)


def status(first: bytes) -> str:
    """The status at the start of a header block; `?` where it is written in a way not read here."""
    indexed = {0x88: "200", 0x89: "204", 0x8A: "206", 0x8B: "304", 0x8C: "400", 0x8D: "404", 0x8E: "500"}
    # A dynamic table size update may stand first (RFC 7541 section 4.2).
    while first and first[0] & 0xE0 == 0x20:
        first = first[2:] if first[0] & 0x1F == 0x1F else first[1:]
    if not first:
        return "?"
    if first[0] in indexed:
        return indexed[first[0]]
    # A literal whose name is the indexed `:status`: 8 to 14.
    if first[0] & 0xC0 == 0x40 and 8 <= first[0] & 0x3F <= 14 or first[0] & 0xF0 in (0, 0x10) and 8 <= first[0] & 0x0F <= 14:
        length, huffman = first[1] & 0x7F, first[1] & 0x80
        text = first[2 : 2 + length]
        return digits(text) if huffman else text.decode("latin-1")
    return "?"


def digits(coded: bytes) -> str:
    """Digits in Huffman coding (RFC 7541 appendix B)."""
    codes = {"00000": "0", "00001": "1", "00010": "2"}
    codes |= {format(0x19 + n - 3, "06b"): str(n) for n in range(3, 10)}
    bits, out = "".join(format(byte, "08b") for byte in coded), ""
    while len(bits) >= 5:
        size = 5 if bits[:5] in codes else 6
        if bits[:size] not in codes:
            break
        out, bits = out + codes[bits[:size]], bits[size:]
    return out


class Connection:
    """One connection with prior knowledge."""

    def __init__(self, address: tuple[str, int], preface: bytes = PREFACE + frame(SETTINGS, 0, 0), polite: bool = True) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.seen = Seen()
        self.settings: dict[int, int] = {}
        self.send(preface)
        if polite:
            # The peer's settings come and are acknowledged before anything is tried.
            self.watch(until=lambda seen: bool(self.settings_came))

    settings_came = False

    def close(self) -> None:
        """Closes at once."""
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Writes; a peer that closed already is for `watch` to find."""
        try:
            self.socket.sendall(b"".join(parts))
        except OSError:
            self.seen.closed = self.seen.closed or not self.buffer

    def watch(self, until=lambda seen: False, patience_s: float = PATIENCE_S) -> Seen:
        """Reads frames until something is seen, the peer has gone or time is up."""
        deadline = time.monotonic() + patience_s
        while not until(self.seen) and not self.gone:
            got = self.next(deadline)
            if got is None:
                break
            self.note(got)
        return self.seen

    gone = False

    def next(self, deadline: float) -> Frame | None:
        """The next frame, or nothing when time is up or the peer has gone."""
        while True:
            if len(self.buffer) >= 9:
                size = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) >= 9 + size:
                    got = Frame(
                        self.buffer[3],
                        self.buffer[4],
                        int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF,
                        self.buffer[9 : 9 + size],
                    )
                    self.buffer = self.buffer[9 + size :]
                    return got
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                read = self.socket.recv(65536)
            except TimeoutError:
                return None
            except OSError:
                read = b""
            if not read:
                self.gone = self.seen.closed = True
                return None
            if self.seen.first is None and not self.buffer and read.startswith(b"HTTP/1."):
                # An HTTP/1 answer: the peer did not take the bytes for HTTP/2.
                self.gone = self.seen.closed = True
                return None
            self.buffer += read

    def note(self, got: Frame) -> None:
        """Writes down what a frame says."""
        seen = self.seen
        seen.first = seen.first or got
        if got.kind == SETTINGS and got.flags & ACK:
            seen.settings_acks += 1
        elif got.kind == SETTINGS:
            for at in range(0, len(got.payload) - 5, 6):
                self.settings[int.from_bytes(got.payload[at : at + 2], "big")] = int.from_bytes(got.payload[at + 2 : at + 6], "big")
            self.settings_came = True
            self.send(frame(SETTINGS, ACK, 0))
        elif got.kind == PING and got.flags & ACK:
            seen.pongs.append(got.payload)
        elif got.kind == PING:
            self.send(frame(PING, ACK, 0, got.payload))
        elif got.kind == GOAWAY:
            code = int.from_bytes(got.payload[4:8], "big")
            # A graceful GOAWAY says nothing about what was sent.
            if code or seen.goaway is None:
                seen.goaway = code
        elif got.kind == RST_STREAM:
            seen.resets.setdefault(got.stream, int.from_bytes(got.payload[:4], "big"))
        elif got.kind == HEADERS:
            seen.answers.setdefault(got.stream, got.payload)
        elif got.kind == DATA:
            seen.first_data.setdefault(got.stream, len(got.payload))
            seen.bodies[got.stream] = seen.bodies.get(got.stream, 0) + len(got.payload)
        if got.kind in (HEADERS, DATA) and got.flags & END_STREAM:
            seen.ended.add(got.stream)
