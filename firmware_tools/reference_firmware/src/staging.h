/* The RAM in which the host puts an image together, and which of its bytes are there. */
#ifndef STAGING_H
#define STAGING_H

#include <stdbool.h>
#include <stdint.h>

/* False when the bytes do not all lie in the staging memory. */
bool staging_write(uint32_t offset, const uint8_t *bytes, uint32_t count);
/* The first byte that is missing of the first `count`, or `count`. */
uint32_t staging_first_hole(uint32_t count);
/* The host has put nothing there. */
void staging_forget(void);

#endif
