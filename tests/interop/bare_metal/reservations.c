// lr and sc: what keeps a reservation and what does not, as far as it is not the implementation's choice.
#include "probe.h"

static volatile uint32_t word, other;

void handle_trap(void)
{
    probe_trap();
}

int main(void)
{
    uint32_t failed, old;
    word = 1;
    asm volatile("sc.w %0, %2, (%1)" : "=&r"(failed) : "r"(&other), "r"(7) : "memory");
    print_hex("sc without lr", failed != 0);
    print_hex("other", other);
    asm volatile("lr.w %1, (%2)\n sc.w %0, %3, (%2)" : "=&r"(failed), "=&r"(old) : "r"(&word), "r"(2) : "memory");
    print_hex("sc after lr", failed);
    print_hex("old", old);
    asm volatile("sc.w %0, %2, (%1)" : "=&r"(failed) : "r"(&word), "r"(3) : "memory");
    print_hex("second sc", failed != 0);
    asm volatile("lr.w %1, (%2)\n sc.w %0, %3, (%4)" : "=&r"(failed), "=&r"(old) : "r"(&word), "r"(9), "r"(&other) : "memory");
    print_hex("sc elsewhere", failed != 0);
    print_hex("word", word);
    print_hex("other", other);
    for (int i = 0; i < 100000; i++)
        asm volatile("1: lr.w %0, (%1)\n addi %0, %0, 3\n sc.w t0, %0, (%1)\n bnez t0, 1b" : "=&r"(old) : "r"(&word) : "t0", "memory");
    print_hex("counted", word);
    uint32_t results[9];
    asm volatile("amoswap.w %0, %1, (%2)" : "=r"(results[0]) : "r"(0x80000001), "r"(&word) : "memory");
    asm volatile("amoadd.w %0, %1, (%2)" : "=r"(results[1]) : "r"(0x7fffffff), "r"(&word) : "memory");
    asm volatile("amoxor.w %0, %1, (%2)" : "=r"(results[2]) : "r"(0xf0f0f0f0), "r"(&word) : "memory");
    asm volatile("amoand.w %0, %1, (%2)" : "=r"(results[3]) : "r"(0xff00ff00), "r"(&word) : "memory");
    asm volatile("amoor.w %0, %1, (%2)" : "=r"(results[4]) : "r"(0x00000001), "r"(&word) : "memory");
    asm volatile("amomin.w %0, %1, (%2)" : "=r"(results[5]) : "r"(5), "r"(&word) : "memory");
    asm volatile("amomax.w %0, %1, (%2)" : "=r"(results[6]) : "r"(-5), "r"(&word) : "memory");
    asm volatile("amominu.w %0, %1, (%2)" : "=r"(results[7]) : "r"(1000), "r"(&word) : "memory");
    asm volatile("amomaxu.w %0, %1, (%2)" : "=r"(results[8]) : "r"(-1), "r"(&word) : "memory");
    for (int i = 0; i < 9; i++)
        print_hex("amo", results[i]);
    print_hex("word", word);
    return 0;
}
