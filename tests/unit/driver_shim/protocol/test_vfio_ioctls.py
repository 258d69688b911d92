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


def test_iommufd_shares_the_type_and_counts_from_0x80() -> None:
    assert vfio.DEVICE_BIND_IOMMUFD == 0x3B76
    assert vfio.DEVICE_ATTACH_IOMMUFD_PT == 0x3B77
    assert (vfio.IOAS_ALLOC, vfio.IOAS_IOVA_RANGES, vfio.IOAS_MAP, vfio.IOAS_UNMAP) == (0x3B81, 0x3B84, 0x3B85, 0x3B86)


def test_iommufd_bytes() -> None:
    assert vfio.BIND_IOMMUFD.pack(16, 0, 7, 0).hex() == "10000000000000000700000000000000"
    assert vfio.ATTACH_IOMMUFD.pack(12, 0, 5).hex() == "0c0000000000000005000000"
    mapped = vfio.IOAS_MAPPED.pack(40, 7, 5, 0x7F00_0000_1000, 0x1000, 0x20_0000)
    assert mapped.hex() == "2800000007000000050000000000000000100000007f000000100000000000000000200000000000"
    assert vfio.IOAS_UNMAPPED.pack(24, 5, 0x20_0000, 0x1000).hex() == "180000000500000000002000000000000010000000000000"
    ranges = vfio.IOAS_RANGES.pack(32, 5, 1, 0x7F00_0000_1000, 0)
    assert ranges.hex() == "2000000005000000010000000000000000100000007f00000000000000000000"
