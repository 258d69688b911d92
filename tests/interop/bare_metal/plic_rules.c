// Priorities, thresholds, claims and completions of the PLIC, with the empty transmitter as the source.
#include "board.h"

#define PRIORITY(source) REG32(PLIC + 4 * (source))
#define PENDING REG32(PLIC + 0x1000)
#define ENABLE(word) REG32(PLIC + 0x2000 + 4 * (word))
#define THRESHOLD REG32(PLIC + 0x200000)
#define CLAIM REG32(PLIC + 0x200004)
#define EXTERNAL (CSR_READ(mip) >> 11 & 1)

static void look(const char *name)
{
    uint32_t external = EXTERNAL, pending = PENDING;
    print(name);
    print_hex(" external", external);
    print_hex("pending", pending);
}

int main(void)
{
    print_hex("priority", PRIORITY(10));
    PRIORITY(10) = 0xffffffff;
    print_hex("priority", PRIORITY(10));
    PRIORITY(0) = 5;
    print_hex("priority 0", PRIORITY(0));
    THRESHOLD = 0xffffffff;
    print_hex("threshold", THRESHOLD);
    THRESHOLD = 0;
    print_hex("claim of nothing", CLAIM);

    PRIORITY(10) = 0;
    REG8(UART + 1) = 2;
    look("not enabled");
    ENABLE(0) = 1 << 10;
    look("priority 0");
    print_hex("claim", CLAIM);
    PRIORITY(10) = 3;
    look("priority 3");
    THRESHOLD = 3;
    look("threshold 3");
    THRESHOLD = 2;
    look("threshold 2");
    print_hex("claim", CLAIM);
    print_hex("claimed", EXTERNAL);
    print_hex("claim again", CLAIM);
    CLAIM = 9;
    print_hex("another completed", EXTERNAL);
    CLAIM = 10;
    look("completed, level still high");
    print_hex("claim", CLAIM);
    print_hex("iir", REG8(UART + 2));
    CLAIM = 10;
    print_hex("enable 1", ENABLE(1));
    ENABLE(0) = 0xffffffff;
    print_hex("enable 0", ENABLE(0) | 1);
    print_hex("enable of the supervisor", REG32(PLIC + 0x2080));
    return 0;
}
