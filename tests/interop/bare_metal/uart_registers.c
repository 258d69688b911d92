// The UART's registers after a reset and in loopback, with and without FIFO. Nothing is printed while it loops back.
#include "board.h"

static uint32_t seen[64];
static int count;

static void note(uint32_t value)
{
    seen[count++] = value;
}

int main(void)
{
    for (int i = 1; i < 8; i++)
        note(REG8(UART + i));
    REG8(UART + 3) = 0x80;
    note(REG8(UART + 0));
    note(REG8(UART + 1));
    REG8(UART + 3) = 0x1b;
    note(REG8(UART + 3));
    REG8(UART + 3) = 0x03;

    REG8(UART + 4) = 0x1f;
    note(REG8(UART + 6));
    note(REG8(UART + 5));
    REG8(UART) = 0x31;
    note(REG8(UART + 5));
    REG8(UART) = 0x32; // overruns the first
    note(REG8(UART + 5));
    note(REG8(UART + 5));
    note(REG8(UART));
    note(REG8(UART + 5));
    note(REG8(UART)); // what was read last

    REG8(UART + 2) = 0x07;
    note(REG8(UART + 2));
    for (int i = 0; i < 20; i++)
        REG8(UART) = 0x40 + i;
    note(REG8(UART + 5));
    for (int i = 0; i < 17; i++)
        note(REG8(UART));
    note(REG8(UART + 5));

    REG8(UART + 2) = 0xc7; // interrupts from 14 bytes on
    REG8(UART + 1) = 0x02;
    note(REG8(UART + 2));
    note(REG8(UART + 2));
    REG8(UART + 2) = 0xc5; // clearing the transmitter empties it once more
    note(REG8(UART + 2));
    note(REG8(UART + 2));
    REG8(UART + 1) = 0x00;
    REG8(UART + 1) = 0x02;
    note(REG8(UART + 2));
    REG8(UART + 1) = 0x05;
    for (int i = 0; i < 14; i++)
        REG8(UART) = 0x60 + i;
    note(REG8(UART + 2));
    REG8(UART + 2) = 0x00; // no FIFO any more: what was in it is gone
    note(REG8(UART + 2));
    note(REG8(UART + 5));
    REG8(UART + 1) = 0xff;
    note(REG8(UART + 1));
    REG8(UART + 1) = 0x00;
    REG8(UART + 4) = 0xff;
    note(REG8(UART + 4));
    REG8(UART + 4) = 0x00;
    note(REG8(UART + 6));

    for (int i = 0; i < count; i++)
        print_hex("", seen[i]);
    return 0;
}
