"""What sysfs tells of cards without opening one, and which of them `NPU_VISIBLE_DEVICES` shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver_shim.cards.discovery import PciCard, find_cards, parse_bus_address, select_cards
from driver_shim.errors import DeviceNotFound
from tests.support import sysfs

LINK = {
    "current_link_speed": "2.5 GT/s PCIe",
    "current_link_width": "1",
    "max_link_speed": "5.0 GT/s PCIe",
    "max_link_width": "16",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "devices"


def only_card(root: Path) -> PciCard:
    (card,) = find_cards(root)
    return card


# --- facts ----------------------------------------------------------------------------------------------------------


def test_a_card_with_everything(root: Path) -> None:
    folder = sysfs.add_function(root, "0000:03:00.0", numa_node="1", power_state="D3hot", **LINK)
    sysfs.link(folder, "driver", "vfio-pci")
    sysfs.link(folder, "iommu_group", "17")
    (folder / "config").write_bytes(sysfs.config_space("NPU-2026-00000042"))
    assert only_card(root) == PciCard(
        bus_address="0000:03:00.0",
        driver="vfio-pci",
        iommu_group="17",
        numa_node=1,
        link_speed_gt_per_s=2.5,
        link_width_lanes=1,
        link_max_speed_gt_per_s=5.0,
        link_max_width_lanes=16,
        serial="00000042",
        power_state="D3hot",
    )


def test_a_card_of_which_sysfs_tells_nothing(root: Path) -> None:
    sysfs.add_function(root, "0000:03:00.0")
    assert only_card(root) == PciCard("0000:03:00.0", None)


def test_a_group_that_vfio_made_up_is_no_iommu_group(root: Path) -> None:
    folder = sysfs.add_function(root, "0000:03:00.0")
    sysfs.link(folder, "iommu_group", "7")
    (folder / "iommu_group/name").write_text("vfio-noiommu\n")
    assert only_card(root).iommu_group is None


def test_other_functions_are_no_cards_and_cards_are_sorted(root: Path) -> None:
    sysfs.add_function(root, "0000:05:00.0")
    sysfs.add_function(root, "0000:03:00.0")
    sysfs.add_function(root, "0000:01:00.0", device="0x1234")
    (root / "0000:02:00.0").mkdir()
    assert [card.bus_address for card in find_cards(root)] == ["0000:03:00.0", "0000:05:00.0"]


def test_a_machine_without_a_pci_bus_has_no_cards(tmp_path: Path) -> None:
    assert find_cards(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("numa_node", "-1", "numa_node"),
        ("numa_node", "", "numa_node"),
        ("current_link_speed", "Unknown", "link_speed_gt_per_s"),
        ("current_link_speed", "Unknown speed", "link_speed_gt_per_s"),
        ("current_link_width", "0", "link_width_lanes"),
        ("max_link_width", "255", "link_max_width_lanes"),
        ("power_state", "unknown", "power_state"),
        ("power_state", "error", "power_state"),
    ],
)
def test_what_the_kernel_does_not_know_is_none(root: Path, name: str, text: str, fact: str) -> None:
    sysfs.add_function(root, "0000:03:00.0", **{name: text})
    assert getattr(only_card(root), fact) is None


@pytest.mark.parametrize(("text", "speed"), [("5 GT/s", 5.0), ("8.0 GT/s PCIe", 8.0), ("32.0 GT/s PCIe", 32.0)])
def test_link_speeds_of_old_and_new_kernels(root: Path, text: str, speed: float) -> None:
    sysfs.add_function(root, "0000:03:00.0", current_link_speed=text)
    assert only_card(root).link_speed_gt_per_s == speed


def test_a_card_in_d3cold_is_not_woken(root: Path) -> None:
    folder = sysfs.add_function(root, "0000:03:00.0", power_state="D3cold", numa_node="0", **LINK)
    (folder / "config").write_bytes(sysfs.config_space("NPU-00000042"))
    card = only_card(root)
    assert (card.power_state, card.numa_node) == ("D3cold", 0)
    assert (card.serial, card.link_speed_gt_per_s, card.link_max_width_lanes) == (None, None, None)


# --- serial numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("4e50552d30303432", "NPU-0042"),
        ("0000000041424344", "ABCD"),
        ("0011223344556677", "00-11-22-33-44-55-66-77"),
        ("4100424344454647", "41-00-42-43-44-45-46-47"),
        ("0000000000000000", None),
        ("ffffffffffffffff", None),
    ],
)
def test_serial_numbers_are_text_or_lspcis_dashes(root: Path, number: str, shown: str | None) -> None:
    space = sysfs.config_space("")
    space[0x154:0x15C] = bytes.fromhex(number)[::-1]
    (sysfs.add_function(root) / "config").write_bytes(space)
    assert only_card(root).serial == shown


@pytest.mark.parametrize("readable", [0, 64, 256, 0x158])
def test_who_may_not_read_the_capability_gets_no_serial(root: Path, readable: int) -> None:
    (sysfs.add_function(root) / "config").write_bytes(sysfs.config_space("NPU-00000042")[:readable])
    assert only_card(root).serial is None


@pytest.mark.parametrize("following", [0x100, 0x150, 0x004, 0xFFC])
def test_a_list_of_capabilities_that_leads_nowhere_ends(root: Path, following: int) -> None:
    space = sysfs.config_space("NPU-00000042")
    for offset, capability in ((0x100, 0x0001), (0x150, 0x000B)):  # errors, then a vendor's: no serial number
        space[offset : offset + 4] = (capability | 1 << 16 | (0x150 if offset == 0x100 else following) << 20).to_bytes(
            4, "little"
        )
    (sysfs.add_function(root) / "config").write_bytes(space)
    assert only_card(root).serial is None


def test_the_serial_number_is_found_wherever_the_list_has_it(root: Path) -> None:
    space = sysfs.config_space("NPU-00000042")
    space[0x200:0x20C] = space[0x150:0x15C]
    space[0x100:0x104] = bytes.fromhex("01000220")  # the next capability is at 0x200
    (sysfs.add_function(root) / "config").write_bytes(space)
    assert only_card(root).serial == "00000042"


# --- bus addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("0000:03:00.0", "0000:03:00.0"),
        ("03:00.0", "0000:03:00.0"),
        ("0000:3B:00.1", "0000:3b:00.1"),
        ("10000:e1:1f.7", "10000:e1:1f.7"),
        ("", None),
        ("3", None),
        ("../../etc", None),
        ("0000:03:00.8", None),
        ("0000:03:00.0/..", None),
    ],
)
def test_bus_addresses(text: str, full: str | None) -> None:
    assert parse_bus_address(text) == full


# --- which cards are visible ----------------------------------------------------------------------------------------

CARDS = [
    PciCard("0000:03:00.0", "vfio-pci", serial="NPU-0001"),
    PciCard("0000:05:00.0", None, serial="NPU-0002"),
    PciCard("0001:03:00.0", "vfio-pci", serial="1"),
]


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (None, [0, 1, 2]),
        ([], []),
        (["0000:05:00.0"], [1]),
        (["05:00.0"], [1]),
        (["pci:0000:05:00.0"], [1]),
        (["2", "0"], [2, 0]),
        (["NPU-0002", "03:00.0"], [1, 0]),
        (["1", "05:00.0", "NPU-0002"], [1]),
    ],
)
def test_entries_are_addresses_indexes_or_serials_in_the_order_given(
    wanted: list[str] | None, shown: list[int]
) -> None:
    assert select_cards(CARDS, wanted) == [CARDS[index] for index in shown]


@pytest.mark.parametrize("entry", ["3", "-1", "06:00.0", "NPU-0003", "npu", "vfio-user:/run/npu.sock"])
def test_an_entry_that_names_no_card_says_so_and_what_there_is(entry: str) -> None:
    with pytest.raises(DeviceNotFound) as caught:
        select_cards(CARDS, ["0", entry])
    for part in ("NPU_VISIBLE_DEVICES", repr(entry), "1 = 0000:05:00.0 (serial NPU-0002)"):
        assert part in str(caught.value)


def test_a_serial_of_two_cards_names_neither() -> None:
    twins = [PciCard("0000:03:00.0", None, serial="SAME"), PciCard("0000:05:00.0", None, serial="SAME")]
    with pytest.raises(DeviceNotFound, match="several cards"):
        select_cards(twins, ["SAME"])


def test_on_a_machine_without_cards_every_entry_is_wrong() -> None:
    with pytest.raises(DeviceNotFound, match="there are: none"):
        select_cards([], ["0"])
