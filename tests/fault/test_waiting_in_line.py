"""Who holds a device and who is next, with real processes that wait, are killed, interrupted and forked."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver_shim import timeouts
from driver_shim.cards.holder import Claim, claim, device_line, holder_of
from driver_shim.cards.line import own_record
from driver_shim.errors import DeviceBusy, Timeout
from driver_shim.shared.runtime_folder import TICKET_SUFFIX, TicketRecord
from tests.support.children import run
from tests.support.claimants import ADDRESS, PATIENCE_S, PROGRAM, Claimants, claimants

UNUSED_PID = 1 << 23
"""Beyond what the kernel gives out."""


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Claimants]:
    with claimants(tmp_path) as made:
        yield made


def ours(folder: Path, when_busy: str = "fail", timeout_s: float = PATIENCE_S) -> Claim:
    """This process's claim."""
    return claim(ADDRESS, when_busy, time.monotonic() + timeout_s, folder)


# --- taking turns ---------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_device_since_when(line: Claimants) -> None:
    before = time.time()
    holder = line.holding()
    answer = line.start("fail").says()
    assert answer.startswith(f"DeviceBusy {ADDRESS} is held by PID {holder.pid} (python")
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", answer)
    assert 'when_busy="wait"' in answer
    known = holder_of(ADDRESS, line.folder)
    assert known is not None and known.pid == holder.pid and before <= known.since <= time.time()
    holder.let_go()
    assert holder_of(ADDRESS, line.folder) is None and line.files() == []


def test_whoever_does_not_wait_is_not_let_in_before_those_who_do(line: Claimants) -> None:
    holder, waiter = line.holding(), line.waiting()
    assert "1 more is waiting" in line.start("fail").says()
    holder.let_go()
    assert waiter.says() == "held"
    with pytest.raises(DeviceBusy) as caught:
        ours(line.folder)
    assert caught.value.holder is not None and caught.value.holder.pid == waiter.pid


def test_waiters_get_the_device_in_the_order_in_which_they_came(line: Claimants) -> None:
    holder = line.holding()
    waiters = [line.waiting() for _ in range(3)]
    for number, waiter in enumerate(waiters):
        assert line.line() == [holder.pid, *(other.pid for other in waiters[number:])]
        holder.let_go()
        assert waiter.says() == "held"
        holder = waiter
    holder.let_go()
    assert line.files() == []


def test_a_killed_holder_makes_room(line: Claimants) -> None:
    holder, waiter = line.holding(), line.waiting()
    holder.kill()
    assert waiter.says() == "held"
    assert line.line() == [waiter.pid]


def test_a_killed_waiter_holds_nobody_up(line: Claimants) -> None:
    holder = line.holding()
    first, second, third = [line.waiting() for _ in range(3)]
    second.kill()
    assert line.line() == [holder.pid, first.pid, third.pid]
    holder.let_go()
    assert first.says() == "held"
    first.let_go()
    assert third.says() == "held"


def test_ctrl_c_while_waiting_leaves_no_ticket(line: Claimants) -> None:
    holder, waiter = line.holding(), line.waiting()
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.says() == "interrupted"
    assert len(line.files()) == 1 and line.line() == [holder.pid]


def test_a_wait_ends_in_time_and_says_who_is_ahead(line: Claimants) -> None:
    holder = line.holding()
    line.waiting()
    answer = line.start("wait", 0.3).says()
    # less than 0.3 s when it was starved between setting the deadline and beginning to wait
    assert re.match(rf"Timeout {ADDRESS} did not come free within 0\.[0-3] s: it is held by PID {holder.pid} ", answer)
    assert "1 more is ahead of us" in answer
    assert len(line.files()) == 2


def test_a_deadline_that_has_passed_is_no_negative_wait(line: Claimants) -> None:
    line.holding()
    with pytest.raises(Timeout, match=r"did not come free within 0\.0 s: it is held"):
        ours(line.folder, "wait", timeout_s=-1.0)


INTERRUPTED = """
import fcntl, os, random, signal, sys, time
from pathlib import Path
from driver_shim.cards.holder import claim, device_line

address, folder = sys.argv[1], Path(sys.argv[2])
chance = random.Random(7)
interrupts = 0
before = len(os.listdir("/proc/self/fd"))
for _ in range(400):
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 3e-3))
        end = time.monotonic() + 1  # an interrupt within a finaliser goes no further
        while time.monotonic() < end:
            first = claim(address, "fail", time.monotonic(), folder)
            try:
                claim(address, "wait", time.monotonic() + chance.choice([0, 1]), folder)
            except TimeoutError:
                pass
            first.release()
    except KeyboardInterrupt:
        pass
    interrupts += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    first = None
    assert not device_line(address, folder).live()
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
claim(address, "fail", time.monotonic(), folder).release()
assert os.listdir(folder) == []
print(interrupts, len(os.listdir("/proc/self/fd")) - before)
"""


def test_ctrl_c_at_any_point_leaves_nothing_locked(tmp_path: Path) -> None:
    interrupts, leaked = map(int, run(INTERRUPTED, ADDRESS, str(tmp_path)).split())
    assert interrupts == 400
    assert leaked <= interrupts // 10  # unlocked ones, where the interrupt came between open() and its result's use


CONTENDER = """
import os, sys, time
from pathlib import Path
from driver_shim import timeouts
from driver_shim.cards.holder import claim

timeouts.TICKETS_S = 60.0  # whoever has the folder locked may be starved
address, when_busy, timeout_s, folder = sys.argv[1:5]
inside = Path(folder) / "inside"
for _ in range(25):
    ours = claim(address, when_busy, time.monotonic() + float(timeout_s), Path(folder))
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails when another one is in
    os.unlink(inside)
    ours.release()
print("done", flush=True)
"""


def test_never_two_at_a_time(line: Claimants) -> None:
    contenders = [line.start("wait", program=CONTENDER) for _ in range(5)]
    for contender in contenders:
        assert contender.says() == "done", contender.process.communicate()[1]
    assert line.files() == []


def test_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    first = ours(tmp_path)
    other = claim("pci:0000:7f:00.1", "fail", time.monotonic(), tmp_path)
    other.release()
    first.release()


def test_one_process_cannot_hold_a_device_twice(tmp_path: Path) -> None:
    first = ours(tmp_path)
    with pytest.raises(DeviceBusy, match="this process"):
        ours(tmp_path)
    first.release()
    first.release()
    ours(tmp_path).release()


def test_a_socket_is_one_device_however_its_path_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = claim("vfio-user:npu.sock", "fail", time.monotonic(), tmp_path)
    assert holder_of(f"vfio-user:{tmp_path}/./npu.sock", tmp_path) is not None
    first.release()


def test_a_claim_that_is_let_go_of_ends(tmp_path: Path) -> None:
    ours(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- forks ----------------------------------------------------------------------------------------------------------

FORKING = PROGRAM.replace(
    'print("held", flush=True)',
    """
import ctypes, os
fork = os.fork if FORK == "python" else ctypes.PyDLL(None).fork
print("held", flush=True)
if fork() == 0:
    tickets = [name for name in os.listdir("/proc/self/fd") if ".ticket" in target(name)]
    if FORK == "python":
        ours.release()
    print(os.getpid(), len(tickets), flush=True)
    os.close(0), os.close(1), os.close(2)
    time.sleep(120)
    os._exit(0)
""",
)
TARGET = """
import os

def target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
"""


@pytest.mark.parametrize("way", ["python", "c"])
@pytest.mark.parametrize("end", ["killed", "released"])
def test_a_forked_child_keeps_nothing_held_and_lets_nothing_go(line: Claimants, way: str, end: str) -> None:
    holder = line.holding(program=f"FORK = {way!r}\n{TARGET}{FORKING}")
    child, inherited = map(int, holder.says().split())
    try:
        assert inherited == (0 if way == "python" else 1)  # a fork from C runs no hooks
        assert line.line() == [holder.pid], "the child's release must do nothing"
        if end == "killed":
            holder.kill()
        else:
            holder.let_go()
        assert line.line() == []
        ours(line.folder).release()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_no_ticket_reaches_a_program_that_is_started(tmp_path: Path) -> None:
    held = ours(tmp_path)
    listed = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False, check=True)
    assert TICKET_SUFFIX not in listed.stdout
    held.release()


# --- tickets that do not count ----------------------------------------------------------------------------------------


def ticket(folder: Path, content: bytes, number: int = 1) -> Path:
    """A ticket file that nobody has locked."""
    claim(ADDRESS, "fail", time.monotonic(), folder).release()
    held = ours(folder)
    (path,) = folder.glob(f"*{TICKET_SUFFIX}")
    held.release()
    path = path.with_name(path.name.replace("00000001", f"{number:08d}"))
    path.write_bytes(content)
    return path


def locked(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def encoded(**changes: object) -> bytes:
    record: TicketRecord = own_record(ADDRESS)
    return json.dumps({**record, **changes}).encode()


GARBAGE = {
    "empty": b"",
    "no text": b"\xff\xfe",
    "no object": b"7",
    "deep": b"[" * 4000,
    "too little": b'{"version": 1}',
    "another version": encoded(version=99),
    "infinite PID": encoded(pid=float("inf")),
    "no PID": encoded(pid=0),
    "beyond all dates": encoded(since=1e300),
    "no date": encoded(since=float("nan")),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_an_unreadable_ticket_counts_while_it_is_locked_and_is_removed_afterwards(
    tmp_path: Path, content: bytes
) -> None:
    path = ticket(tmp_path, content)
    fd = locked(path)
    with pytest.raises(DeviceBusy, match="a process whose ticket cannot be read") as caught:
        ours(tmp_path)
    assert caught.value.holder is None and holder_of(ADDRESS, tmp_path) is None
    os.close(fd)
    held = ours(tmp_path)
    assert next(iter(device_line(ADDRESS, tmp_path).live().values())) is not None
    held.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"start_time": 1}, {"pid": UNUSED_PID}], ids=["PID reused", "PID gone"])
def test_a_ticket_of_a_process_that_is_gone_does_not_count_even_if_locked(
    tmp_path: Path, change: dict[str, int]
) -> None:
    path = ticket(tmp_path, encoded(**change))
    fd = locked(path)
    held = ours(tmp_path)
    assert holder_of(ADDRESS, tmp_path) is not None
    held.release()
    assert not path.exists()
    os.close(fd)


def test_a_process_of_another_pid_namespace_is_believed_by_its_lock_alone(tmp_path: Path) -> None:
    fd = locked(ticket(tmp_path, encoded(pid=UNUSED_PID, pid_namespace="pid:[1]")))
    holder = holder_of(ADDRESS, tmp_path)
    assert holder is not None and str(holder).startswith(f"PID {UNUSED_PID} in another PID namespace (")
    with pytest.raises(DeviceBusy, match=str(UNUSED_PID)):
        ours(tmp_path)
    os.close(fd)


def test_what_a_ticket_says_cannot_drive_a_terminal(tmp_path: Path) -> None:
    fd = locked(ticket(tmp_path, encoded(command="\x1b[31mred\n" + "x" * 1000 + "\ud800")))
    holder = holder_of(ADDRESS, tmp_path)
    assert holder is not None and holder.command.startswith("[31mred x") and len(holder.command) <= 200
    holder.command.encode()
    os.close(fd)


def test_links_pipes_and_folders_named_like_tickets_are_no_tickets(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    link = ticket(tmp_path, b"")
    link.unlink()
    link.symlink_to(target)
    os.mkfifo(link.with_name(link.name.replace("00000001", "00000002")))
    link.with_name(link.name.replace("00000001", "00000003")).mkdir()
    ours(tmp_path).release()
    assert target.read_text() == "precious" and not link.is_symlink()


def test_what_a_claimant_left_that_was_killed_on_its_way_does_no_harm(tmp_path: Path) -> None:
    path = ticket(tmp_path, b"")
    path.rename(tmp_path / f"{path.name.partition('.')[0]}.new")
    ours(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o700, 0o600), (0o2770, 0o640), (0o755, 0o644)])
def test_a_ticket_is_readable_to_whoever_may_look_into_the_folder(
    tmp_path: Path, folder_mode: int, file_mode: int
) -> None:
    folder = tmp_path / "npu"
    folder.mkdir()
    folder.chmod(folder_mode)
    before = os.umask(0o077)
    try:
        held = ours(folder)
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o7777 == file_mode
    held.release()


def test_a_folder_that_is_not_there_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "npu"
    assert holder_of(ADDRESS, folder) is None and not folder.exists()
    ours(folder).release()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_the_claim_goes_on_unseen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    with caplog.at_level(logging.DEBUG, "npu"):
        for when_busy in ("fail", "wait"):
            held = ours(no_folder, when_busy)
            assert held.open(lambda: "opened") == "opened"
            held.release()
        assert holder_of(ADDRESS, no_folder) is None
    assert "is not published" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_a_folder_that_stays_locked_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "TICKETS_S", 0.05)
    held = ours(tmp_path)
    fd = locked(tmp_path)
    with pytest.raises(DeviceBusy, match="this process"):  # what is there is seen all the same
        ours(tmp_path)
    held.release()
    ours(tmp_path).release()
    os.close(fd)


AS_NOBODY = """
import codecs, os, sys, time
from pathlib import Path
from driver_shim.errors import DeviceBusy
from driver_shim.cards.holder import claim
codecs.lookup("ascii")  # nobody may not read the library
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    claim(sys.argv[1], "fail", time.monotonic(), Path(sys.argv[2])).release()
    print("unseen")
except DeviceBusy as busy:
    print(busy.holder.pid)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_only_be_read_still_says_who_holds_the_device() -> None:
    folder = Path(run("import tempfile; print(tempfile.mkdtemp())").strip())
    folder.chmod(0o755)
    try:
        held = ours(folder)
        assert int(run(AS_NOBODY, ADDRESS, str(folder))) == os.getpid()
        held.release()
        assert run(AS_NOBODY, ADDRESS, str(folder)).strip() == "unseen"
    finally:
        folder.rmdir()


# --- holders out of sight ---------------------------------------------------------------------------------------------


def busy_for(attempts: int) -> Callable[[], str]:
    """An opener that finds the device busy this many times."""
    left = [attempts]

    def opener() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise DeviceBusy(f"{ADDRESS} is busy", device=ADDRESS)
        return "opened"

    return opener


def test_a_holder_that_is_in_no_line_is_said_to_be_invisible(tmp_path: Path) -> None:
    held = ours(tmp_path)
    with pytest.raises(DeviceBusy, match=r"is busy; its holder is not visible to you") as caught:
        held.open(busy_for(1))
    assert caught.value.remedy is not None and caught.value.cause == f"{ADDRESS} is busy"
    held.release()


def test_waiting_for_an_invisible_holder_keeps_the_place_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "UNSEEN_HOLDER_POLL_S", 0.001)
    held = ours(tmp_path, "wait")
    assert held.open(busy_for(5)) == "opened"
    held.release()
    held = ours(tmp_path, "wait", timeout_s=0.05)
    with pytest.raises(Timeout, match=r"did not come free within 0\.[01] s.*not visible"):
        held.open(busy_for(1 << 30))
    assert holder_of(ADDRESS, tmp_path) is not None
    held.release()


def test_after_a_killed_holder_the_device_may_stay_busy_for_a_moment(
    line: Claimants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "UNSEEN_HOLDER_POLL_S", 0.001)
    monkeypatch.setattr(timeouts, "TAKEOVER_S", PATIENCE_S)  # longer than this process may be starved
    line.holding().kill()
    held = ours(line.folder)
    assert held.open(busy_for(3)) == "opened"
    held.release()
