/* Which build this is: names the ELF file that decodes its log. */
#ifndef BUILD_ID_H
#define BUILD_ID_H

#include <stdint.h>

/* The first four bytes of the GNU build id. */
uint32_t build_id(void);

#endif
