// The corner cases of M, and a mix of everything that a compiler makes, as a sum.
#include "board.h"

static const uint32_t corners[] = {0, 1, 2, 3, 7, 0x7fffffff, 0x80000000, 0x80000001, 0xfffffffe, 0xffffffff, 0x12345678};
#define COUNT (sizeof corners / sizeof *corners)

int main(void)
{
    uint32_t sum = 0;
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned k = 0; k < COUNT; k++) {
            uint32_t a = corners[i], b = corners[k], r;
#define TRY(name) asm volatile(name " %0, %1, %2" : "=r"(r) : "r"(a), "r"(b)); sum = (sum << 5 | sum >> 27) ^ r;
            TRY("mul") TRY("mulh") TRY("mulhu") TRY("mulhsu") TRY("div") TRY("divu") TRY("rem") TRY("remu")
            TRY("sll") TRY("srl") TRY("sra") TRY("slt") TRY("sltu") TRY("add") TRY("sub")
        }
    print_hex("corners", sum);
    uint64_t state = 88172645463325252ull;
    for (int i = 0; i < 200000; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sum = sum * 33 + (uint32_t)(state % 1000003) + (uint32_t)(state / 77);
    }
    print_hex("mixed", sum);
    return 0;
}
