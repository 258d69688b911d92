// What a hart without floating point and with 32 bits does not have: a build for another core is found out at once.
#include "probe.h"

void handle_trap(void)
{
    probe_trap();
}

#define HALF(name, encoding) PROBE(name, ".half " #encoding "\n c.nop", 0, 0x84000000)

int main(void)
{
    HALF("c.fld", 0x2000);
    HALF("c.flw", 0x6000);
    HALF("c.fsd", 0xa000);
    HALF("c.fsw", 0xe000);
    HALF("c.fldsp", 0x2002);
    HALF("c.flwsp", 0x6002);
    HALF("c.fsdsp", 0xa002);
    HALF("c.fswsp", 0xe002);
    HALF("reserved", 0x8000);
    HALF("c.srli by 32", 0x9101);
    HALF("c.srai by 32", 0x9501);
    HALF("c.subw", 0x9d09);
    HALF("c.addw", 0x9d29);
    HALF("c.slli by 32", 0x1502);
    PROBE("fsgnj.d", ".word 0x22730353", 0, 0);
    return 0;
}
