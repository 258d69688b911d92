"""The kernel's VFIO and iommufd interfaces as <linux/vfio.h> and <linux/iommufd.h> have them, without I/O.

Structures that vfio-user shares (region, interrupt and device information) are those of `vfio_user.py`.
"""

from __future__ import annotations

import enum

from driver_shim.protocol.layout import Layout, i32, reserved, u16, u32, u64

_TYPE = ord(";") << 8
_BASE = 100


def _request(number: int) -> int:
    """_IO(VFIO_TYPE, VFIO_BASE + number): VFIO's requests state neither size nor direction."""
    return _TYPE | (_BASE + number)


TYPE1V2_IOMMU = 3

GET_API_VERSION = _request(0)
SET_IOMMU = _request(2)
GROUP_GET_STATUS = _request(3)
GROUP_SET_CONTAINER = _request(4)
GROUP_GET_DEVICE_FD = _request(6)
DEVICE_GET_INFO = _request(7)
DEVICE_GET_REGION_INFO = _request(8)
DEVICE_GET_IRQ_INFO = _request(9)
DEVICE_SET_IRQS = _request(10)
DEVICE_RESET = _request(11)
IOMMU_GET_INFO = _request(12)
IOMMU_MAP_DMA = _request(13)
IOMMU_UNMAP_DMA = _request(14)
DEVICE_BIND_IOMMUFD = _request(18)
DEVICE_ATTACH_IOMMUFD_PT = _request(19)

IOAS_ALLOC = _TYPE | 0x81
IOAS_IOVA_RANGES = _TYPE | 0x84
IOAS_MAP = _TYPE | 0x85
IOAS_UNMAP = _TYPE | 0x86
"""iommufd shares VFIO's type and numbers its requests itself."""


class GroupFlag(enum.IntFlag):
    """`flags` of GROUP_GET_STATUS."""

    VIABLE = 1 << 0


class IommuFlag(enum.IntFlag):
    """`flags` of IOMMU_GET_INFO."""

    PAGE_SIZES = 1 << 0
    CAPS = 1 << 1


IOVA_RANGE_CAPABILITY = 1
"""VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE."""
EVENTFD_NONE = -1
"""In place of an eventfd: disconnect this vector."""

GROUP_STATUS = Layout("vfio_group_status", 8, "argsz" / u32, "flags" / u32)
IOMMU_INFO = Layout(
    "vfio_iommu_type1_info",
    24,
    "argsz" / u32,
    "flags" / u32,
    "iova_pgsizes" / u64,
    "cap_offset" / u32,
    reserved(4),
)
IOVA_RANGES = Layout(
    "vfio_iommu_type1_info_cap_iova_range",
    16,
    "id" / u16,
    "version" / u16,
    "next" / u32,
    "nr_iovas" / u32,
    reserved(4),
)
IOVA_RANGE = Layout("vfio_iova_range", 16, "start" / u64, "end" / u64)
DMA_MAP = Layout(
    "vfio_iommu_type1_dma_map", 32, "argsz" / u32, "flags" / u32, "vaddr" / u64, "iova" / u64, "size" / u64
)
DMA_UNMAP = Layout("vfio_iommu_type1_dma_unmap", 24, "argsz" / u32, "flags" / u32, "iova" / u64, "size" / u64)


class IoasMapFlag(enum.IntFlag):
    """`flags` of IOAS_MAP."""

    FIXED_IOVA = 1 << 0
    WRITEABLE = 1 << 1
    READABLE = 1 << 2


BIND_IOMMUFD = Layout("vfio_device_bind_iommufd", 16, "argsz" / u32, "flags" / u32, "iommufd" / i32, "out_devid" / u32)
"""As it was when the request came into being: later kernels take more, and this too."""
ATTACH_IOMMUFD = Layout("vfio_device_attach_iommufd_pt", 12, "argsz" / u32, "flags" / u32, "pt_id" / u32)
IOAS_ALLOCATED = Layout("iommu_ioas_alloc", 12, "size" / u32, "flags" / u32, "out_ioas_id" / u32)
IOAS_RANGES = Layout(
    "iommu_ioas_iova_ranges",
    32,
    "size" / u32,
    "ioas_id" / u32,
    "num_iovas" / u32,
    reserved(4),
    "allowed_iovas" / u64,
    "out_iova_alignment" / u64,
)
IOAS_MAPPED = Layout(
    "iommu_ioas_map",
    40,
    "size" / u32,
    "flags" / u32,
    "ioas_id" / u32,
    reserved(4),
    "user_va" / u64,
    "length" / u64,
    "iova" / u64,
)
IOAS_UNMAPPED = Layout("iommu_ioas_unmap", 24, "size" / u32, "ioas_id" / u32, "iova" / u64, "length" / u64)


def decode_iova_ranges(info: bytes) -> tuple[tuple[int, int], ...]:
    """(first, last) of the ranges in a complete IOMMU_GET_INFO answer; empty when the kernel states none."""
    _, flags, _, at = IOMMU_INFO.unpack_from(info)
    previous = 0
    while flags & IommuFlag.CAPS and at > previous and at + IOVA_RANGES.size <= len(info):
        kind, _, following, count = IOVA_RANGES.unpack_from(info, at)
        if kind == IOVA_RANGE_CAPABILITY:
            start = at + IOVA_RANGES.size
            count = min(count, (len(info) - start) // IOVA_RANGE.size)
            return tuple(IOVA_RANGE.unpack_from(info, start + n * IOVA_RANGE.size) for n in range(count))
        previous, at = at, following
    return ()
