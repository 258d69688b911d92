/* The flash: read as memory, erased by sectors, programmed by pages. */
#ifndef DRIVERS_FLASH_H
#define DRIVERS_FLASH_H

#include <stdbool.h>
#include <stdint.h>

/* The flash's contents from `offset` on. */
const uint8_t *flash_at(uint32_t offset);
/* Both return whether it worked; the core stands still meanwhile. */
bool flash_erase_sector(uint32_t offset);
bool flash_program_page(uint32_t offset, const uint8_t *page);

#endif
