"""What a device says of itself."""

from __future__ import annotations

import dataclasses

from driver_shim.discovery import find_cards, find_served
from driver_shim.holder import holder_of
from driver_shim.pre_open import PreOpenRecord
from driver_shim.protocol.runtime_folder import Holder


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """Facts of one device; what is unknown without opening it is None."""

    name: str
    """"NPU" and the profile, for people."""
    address: str
    """What `sdk.Device` takes."""
    profile: str | None = None
    serial: str | None = None
    emulated: bool | None = None
    firmware: str | None = None
    """Version of the running firmware; None where there is no management core."""
    kernels: str | None = None
    """Which kernels an emulator computes with: auto, numpy or golden."""
    memory_bytes: int | None = None
    tick_hz: int | None = None
    engines: int | None = None
    contract: str | None = None
    """Contract version, "major.minor"."""
    revision: str | None = None
    """Silicon revision, "major.minor"."""
    max_queues: int | None = None
    driver: str | None = None
    """How it is reached: "vfio-user", or the kernel driver of a card."""
    pid: int | None = None
    """Process of an emulator."""
    pre_open: PreOpenRecord | None = None
    """What the device showed before it was enabled: earlier resets, faults, whether there is a black box."""
    holder: Holder | None = None
    """Who held it when the list was made; None when it was free, or its holder is not visible to this user."""

    @property
    def memory(self) -> int | None:
        """Device memory in bytes."""
        return self.memory_bytes


def list_devices() -> list[DeviceInfo]:
    """All devices of this machine: cards on the bus, then served emulators. Opens none of them."""
    cards = [
        DeviceInfo(name="NPU", address=address, emulated=False, driver=card.driver, holder=holder_of(address))
        for card in find_cards()
        for address in [f"pci:{card.bus_address}"]
    ]
    served = [
        DeviceInfo(
            name=f"NPU {found['profile']} (emulator)",
            address=found["address"],
            profile=found["profile"],
            serial=found["serial"],
            emulated=True,
            kernels=found["kernels"],
            driver="vfio-user",
            pid=found["pid"],
            holder=holder_of(found["address"]),
        )
        for found in find_served()
    ]
    return cards + served
