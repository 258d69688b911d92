#include "board.h"

static const char greeting[] = "hello, board\n";
static uint32_t counter;

int main(void)
{
    print(greeting);
    for (int i = 0; i < 1000; i++)
        counter += i * i % 7;
    print_hex("sum", counter);
    print_hex("hart", CSR_READ(mhartid));
    return 0;
}
