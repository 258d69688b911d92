// As microcontrollers' start-up code does it: .data is copied from where it was loaded, .bss is cleared.
#include "board.h"

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[];

static volatile uint32_t words[4] = {1, 2, 3, 4};
static volatile uint32_t zeroes[1000];

int main(void)
{
    for (uint32_t *to = data_start, *from = data_load; to < data_end;)
        *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;)
        *to++ = 0;
    print_hex("sum", words[0] + words[1] + words[2] + words[3] + zeroes[999]);
    return (int)words[3];
}
