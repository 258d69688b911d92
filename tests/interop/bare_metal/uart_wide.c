// Drivers that take every register of the UART for a word.
#include "board.h"

#define WORD(register) REG32(UART + (register))

static void word_put(const char *text)
{
    while (*text)
        WORD(0) = (uint32_t)*text++;
}

int main(void)
{
    REG8(UART + 3) = 0x03;
    REG8(UART + 7) = 0xa5;
    REG8(UART + 2) = 0x01;
    word_put("words\n");
    print_hex("lcr", REG8(UART + 3));
    print_hex("fcr", REG8(UART + 2));
    print_hex("word 0", WORD(0) & 0xff);
    print_hex("word 4", WORD(4) & 0xff);
    WORD(4) = 0x03;
    print_hex("scr", REG8(UART + 7));
    *(volatile uint16_t *)(UART + 0) = 'h' | 0x0f00;
    print_hex("ier", REG8(UART + 1));
    print_hex("half", *(volatile uint16_t *)(UART + 6));
    return 0;
}
