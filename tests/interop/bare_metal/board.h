// What the programs share: the board's devices, the CSRs, and printing.
#pragma once
#include <stdint.h>

#define REG8(address) (*(volatile uint8_t *)(address))
#define REG32(address) (*(volatile uint32_t *)(address))

#define UART 0x10000000u
#define CLINT_MSIP 0x2000000u
#define CLINT_MTIMECMP 0x2004000u
#define CLINT_MTIME 0x200bff8u
#define PLIC 0xc000000u
#define POWER_OFF 0x100000u

#define CSR_READ(name) ({ uint32_t value; asm volatile(".option arch, +zicsr\n csrr %0, " #name : "=r"(value)); value; })
#define CSR_WRITE(name, value) asm volatile(".option arch, +zicsr\n csrw " #name ", %0" ::"r"(value) : "memory")
#define CSR_SET(name, value) asm volatile(".option arch, +zicsr\n csrs " #name ", %0" ::"r"(value) : "memory")
#define CSR_CLEAR(name, value) asm volatile(".option arch, +zicsr\n csrc " #name ", %0" ::"r"(value) : "memory")

void handle_trap(void);

static inline void put(char c)
{
    while (!(REG8(UART + 5) & 0x20)) {
    }
    REG8(UART) = c;
}

static inline void print(const char *text)
{
    while (*text)
        put(*text++);
}

static inline void print_hex(const char *name, uint32_t value)
{
    print(name);
    put('=');
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
    put('\n');
}

static inline uint64_t mtime(void)
{
    uint32_t high, low;
    do {
        high = REG32(CLINT_MTIME + 4);
        low = REG32(CLINT_MTIME);
    } while (high != REG32(CLINT_MTIME + 4));
    return (uint64_t)high << 32 | low;
}

static inline void set_mtimecmp(uint64_t tick)
{
    REG32(CLINT_MTIMECMP + 4) = 0xffffffff;
    REG32(CLINT_MTIMECMP) = (uint32_t)tick;
    REG32(CLINT_MTIMECMP + 4) = (uint32_t)(tick >> 32);
}

void power_off(uint32_t code);
