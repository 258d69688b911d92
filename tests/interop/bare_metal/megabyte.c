// Prints a megabyte.
#include "board.h"

int main(void)
{
    uint32_t state = 1;
    for (int i = 0; i < 1 << 20; i++) {
        state = state * 1664525 + 1013904223;
        REG8(UART) = i % 64 == 63 ? '\n' : 'a' + (state >> 24) % 26;
    }
    return 0;
}
