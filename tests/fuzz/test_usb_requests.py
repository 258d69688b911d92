"""Setup packets and USB/IP streams that nobody meant: the port always answers, the framer always decides."""

from __future__ import annotations

from hypothesis import strategies as st

from driver_shim.protocol import usbip
from driver_shim.protocol.dfu import TRANSFER_BYTES, State
from driver_shim.protocol.registers import Post
from driver_shim.protocol.usb import Setup
from emulator.usb.transfer import Answer, Ending
from tests.fuzz.device import fuzzed
from tests.support.debug_port_bench import CLASS_IN, CLASS_OUT, GOOD, VENDOR_IN, VENDOR_OUT, Bench
from tests.support.debug_ports import encode_unlink

EXAMPLES = 100
MAX_STEPS = 40

KINDS = st.one_of(
    st.sampled_from((0x00, 0x01, 0x02, 0x80, 0x81, 0x82, CLASS_IN, CLASS_OUT, VENDOR_IN, VENDOR_OUT)),
    st.integers(0, 0xFF),
)
VALUES = st.one_of(st.integers(0, 8), st.sampled_from((0xA0, 0x0100, 0x0200, 0x0303, 0x0600)), st.integers(0, 0xFFFF))
INDEXES = st.one_of(st.integers(0, 2), st.sampled_from((0x0100, 0x0409)), st.integers(0, 0xFFFF))
LENGTHS = st.one_of(st.sampled_from((0, 1, 4, 6, 8, TRANSFER_BYTES, TRANSFER_BYTES + 1)), st.integers(0, 0xFFFF))
PACKETS = st.builds(Setup, KINDS, st.one_of(st.integers(0, 12), st.integers(0, 0xFF)), VALUES, INDEXES, LENGTHS)
STEPS = st.lists(st.tuples(PACKETS, st.sampled_from((0.0, 0.0, 0.2, 2.0, 20.0))), max_size=MAX_STEPS)
SENSIBLE = st.sampled_from(
    [
        Setup(CLASS_OUT, 1, 0, 1, len(GOOD)),
        Setup(CLASS_OUT, 1, 1, 1, len(GOOD)),
        Setup(CLASS_OUT, 1, 1, 1, 0),
        Setup(CLASS_IN, 2, 0, 1, TRANSFER_BYTES),
        Setup(CLASS_IN, 3, 0, 1, 6),
        Setup(CLASS_OUT, 4, 0, 1, 0),
        Setup(CLASS_OUT, 6, 0, 1, 0),
        Setup(CLASS_OUT, 0, 0, 1, 0),
        Setup(0x01, 11, 1, 1, 0),
        Setup(0x00, 9, 1, 0, 0),
    ]
)
DFU_STEPS = st.lists(st.tuples(st.one_of(SENSIBLE, SENSIBLE, PACKETS), st.sampled_from((0.0, 0.0, 2.0))), max_size=40)


def carry_out(bench: Bench, setup: Setup) -> Answer:
    data = b"" if setup.is_in else (GOOD + bytes(setup.length))[: setup.length]
    return bench.port.answer(setup, data)


def stays_sound(bench: Bench, steps: list[tuple[Setup, float]]) -> None:
    """Every packet is answered, and afterwards the port can be used."""
    for setup, passes in steps:
        answer = carry_out(bench, setup)
        assert isinstance(answer, (bytes, Ending))
        if not setup.is_in:
            assert answer in (b"", Ending.STALL, Ending.LATER)
        bench.now += passes
        bench.port.look()
    bench.configure()
    state = bench.ask(CLASS_IN, 5, 0, 1, 1)
    assert isinstance(state, bytes) and State(state[0]) in (State.APP_IDLE, State.IDLE)
    assert isinstance(bench.ask(0x80, 6, 0x0200, 0, 255), bytes)


@fuzzed(
    EXAMPLES,
    steps=STEPS,
    post=st.sampled_from((Post.RECOVERY, Post.FIRMWARE_READY, Post.ABSENT)),
    owned=st.booleans(),
)
def test_any_setup_packets(steps: list[tuple[Setup, float]], post: Post, owned: bool) -> None:
    bench = Bench(post)
    bench.owned = owned
    stays_sound(bench, steps)
    assert not (owned and any(offset != 0x200 for offset, _ in bench.chip.written)) or any(
        setup.index >> 8 & 1 for setup, _ in steps
    )


@fuzzed(EXAMPLES, steps=DFU_STEPS, busy=st.integers(0, 3))
def test_firmware_requests_in_any_order(steps: list[tuple[Setup, float]], busy: int) -> None:
    bench = Bench(Post.RECOVERY, busy)
    stays_sound(bench, steps)
    for image in bench.recovery.slots.values():
        assert image.startswith(GOOD)


REQUESTS = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda setup, direction, length: usbip.encode_submit(
            usbip.Submit(1, 0x10002, direction, 0, length, setup.build(), bytes(64))
        ),
        PACKETS,
        st.integers(0, 2),
        st.integers(-(1 << 31), (1 << 31) - 1),
    ),
    st.just(encode_unlink(usbip.Unlink(2, 1), 0x10002)),
)


@fuzzed(EXAMPLES, messages=st.lists(REQUESTS, max_size=8), chunk=st.integers(1, 64), imported=st.booleans())
def test_any_stream_is_cut_or_refused_and_never_piles_up(messages: list[bytes], chunk: int, imported: bool) -> None:
    framer = usbip.RequestFramer()
    if imported:
        framer.imported()
    stream = b"".join(messages)
    try:
        for at in range(0, len(stream), chunk):
            framer.feed(stream[at : at + chunk])
            while framer.next_request() is not None:
                pass
            assert len(framer) < usbip.HEADER_BYTES + usbip.MAX_TRANSFER_BYTES + chunk
    except usbip.ProtocolError:
        return
