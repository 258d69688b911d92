"""The kernel's VFIO numbers and structures against bytes worked out by hand from <linux/vfio.h>."""

from __future__ import annotations

from driver_shim.protocol import vfio_ioctls as vfio


def test_requests_are_io_of_semicolon_and_100() -> None:
    assert vfio.GET_API_VERSION == 0x3B64
    assert vfio.GROUP_GET_DEVICE_FD == 0x3B6A
    assert vfio.DEVICE_RESET == 0x3B6F
    assert vfio.IOMMU_MAP_DMA == 0x3B71


def test_dma_map_bytes() -> None:
    packed = vfio.DMA_MAP.pack(32, 3, 0x7F00_0000_1000, 0x20_0000, 0x1000)
    assert packed.hex() == "200000000300000000100000007f000000002000000000000010000000000000"


def test_iova_ranges_are_read_from_their_capability() -> None:
    info = bytes.fromhex("480000000300000000100000000000001800000000000000")
    ranges = bytes.fromhex("01000100000000000200000000000000")
    ranges += bytes.fromhex("0000000000000000ffffdffe000000000000f0fe00000000ffffffffffff0000")
    assert vfio.decode_iova_ranges(info + ranges) == ((0, 0xFEDFFFFF), (0xFEF00000, 0xFFFFFFFFFFFF))


def test_a_capability_that_points_nowhere_ends_the_search() -> None:
    info = bytes.fromhex("18000000030000000010000000000000ff00000000000000")
    assert vfio.decode_iova_ranges(info) == ()
