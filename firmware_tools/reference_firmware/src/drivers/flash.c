#include "drivers/flash.h"

#include "drivers/mmio.h"
#include "memory_map.h"

const uint8_t *flash_at(uint32_t offset)
{
    return flash_memory + offset;
}

static bool run(uint32_t offset, uint32_t command)
{
    mmio_write(REGISTER(FLASH, ADDRESS), offset);
    mmio_write(REGISTER(FLASH, COMMAND), FIELD(FLASH_COMMAND_OPERATION, command));
    return !FIELD_OF(mmio_read(REGISTER(FLASH, STATUS)), FLASH_STATUS_FAILED);
}

bool flash_erase_sector(uint32_t offset)
{
    return run(offset, NPU_FLASH_COMMAND_ERASE_SECTOR);
}

bool flash_program_page(uint32_t offset, const uint8_t *page)
{
    mmio_write_bytes(REGISTER(FLASH, PAGE), page, NPU_FLASH_PAGE_BYTES);
    return run(offset, NPU_FLASH_COMMAND_PROGRAM_PAGE);
}
