#include "board.h"

static uint32_t word;

#define AMO(operation, value)                                                                       \
    ({                                                                                              \
        uint32_t old;                                                                               \
        asm volatile(operation " %0, %2, %1" : "=r"(old), "+A"(word) : "r"(value) : "memory"); \
        print(operation);                                                                           \
        print_hex(" old", old);                                                                     \
        print_hex("new", word);                                                                     \
    })

int main(void)
{
    word = 5;
    AMO("amoadd.w", 7);
    AMO("amoswap.w", 0xf0);
    AMO("amoand.w", 0x3c);
    AMO("amoor.w", 0x81);
    AMO("amoxor.w", 0xff);
    AMO("amomin.w", 0xfffffff0);
    AMO("amomax.w", 3);
    AMO("amominu.w", 0xfffffff0);
    AMO("amomaxu.w", 0xfffffff0);
    uint32_t loaded, failed;
    asm volatile("lr.w %0, (%2)\n addi %0, %0, 1\n sc.w %1, %0, (%2)" : "=&r"(loaded), "=&r"(failed) : "r"(&word) : "memory");
    print_hex("sc failed", failed);
    print_hex("word", word);
    asm volatile("sc.w %0, zero, (%1)" : "=&r"(failed) : "r"(&word) : "memory");
    print_hex("sc alone failed", failed != 0);
    print_hex("fetch", __atomic_fetch_add(&word, 2, __ATOMIC_SEQ_CST));
    return 0;
}
