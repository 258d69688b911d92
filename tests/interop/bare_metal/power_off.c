#include "board.h"

void power_off(uint32_t code)
{
    REG32(POWER_OFF) = code ? code << 16 | 0x3333 : 0x5555;
    for (;;) {
    }
}
