/* The only way to a register. Names are the exported ones: NPU_<BLOCK>_<REGISTER>, fields NPU_<BLOCK>_<REGISTER>_<FIELD>. */
#ifndef DRIVERS_MMIO_H
#define DRIVERS_MMIO_H

#include <stdint.h>

#include "npu_registers.h"

#define REGISTER(block, name) (NPU_##block##_BASE + NPU_##block##_##name##_OFFSET)
#define FIELD_OF(value, field) (((value) & NPU_##field##_MASK) >> NPU_##field##_LSB)
#define FIELD(field, value) (((uint32_t)(value) << NPU_##field##_LSB) & NPU_##field##_MASK)

static inline uint32_t mmio_read(uint32_t address)
{
    return *(volatile uint32_t *)(uintptr_t)address;
}

/* Memory that a peripheral is told about is written before it is told, and read after it has been asked: hence the
 * barriers, for the compiler and the bus. */
static inline void mmio_write(uint32_t address, uint32_t value)
{
    __asm__ volatile("fence iorw, iorw" ::: "memory");
    *(volatile uint32_t *)(uintptr_t)address = value;
    __asm__ volatile("fence iorw, iorw" ::: "memory");
}

static inline uint8_t mmio_read_byte(uint32_t address)
{
    return *(volatile uint8_t *)(uintptr_t)address;
}

static inline void mmio_write_byte(uint32_t address, uint8_t value)
{
    *(volatile uint8_t *)(uintptr_t)address = value;
}

/* `count` bytes, whole words of them, into consecutive registers. */
void mmio_write_bytes(uint32_t address, const void *bytes, uint32_t count);
/* `count` bytes, whole words of them, from consecutive registers. */
void mmio_read_bytes(uint32_t address, void *bytes, uint32_t count);

#endif
