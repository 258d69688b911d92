#include "board.h"

int main(void)
{
    uint64_t start = mtime();
    int loops = 0;
    while (mtime() - start < 5000)
        loops++;
    print(loops > 0 ? "waited\n" : "time jumped\n");
    uint32_t low = CSR_READ(time);
    print(CSR_READ(time) - low < 1000000 ? "time runs\n" : "time runs wild\n");
    return 0;
}
