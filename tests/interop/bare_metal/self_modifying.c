// Writes code, runs it, writes it anew; across a page, in a loop, and over the loop itself.
#include "board.h"

typedef uint32_t (*function)(void);

static uint32_t area[2048] __attribute__((aligned(4096)));

static uint32_t run(uint32_t *place, uint32_t value)
{
    place[0] = value << 20 | 0x00000513; // li a0, value
    place[1] = 0x00008067;               // ret
    asm volatile(".option arch, +zifencei\n fence.i" ::: "memory");
    return ((function)place)();
}

int main(void)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 500; i++) {
        sum = sum * 31 + run(area + 16, i);
        sum = sum * 31 + run(area + 1023, i + 1);
        sum = sum * 31 + run(area + (i & 0x3ff), i + 2);
    }
    print_hex("sum", sum);
    uint32_t result;
    asm volatile("la t0, 1f\n la t1, 2f\n lw t1, 0(t1)\n li %0, 0\n j 1f\n"
                 ".option push\n.option norvc\n.option arch, +zifencei\n.align 2\n"
                 "2: addi %0, %0, 100\n"
                 "1: addi %0, %0, 1\n"
                 "   sw t1, 0(t0)\n fence.i\n"
                 "   li t2, 300\n blt %0, t2, 1b\n.option pop\n"
                 : "=&r"(result)::"t0", "t1", "t2", "memory");
    print_hex("loop", result);
    return 0;
}
