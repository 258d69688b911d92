#include "build_id.h"

#include "bytes.h"

/* The linker's note: three words of sizes and type, the name "GNU\0", and the id itself. */
extern const uint8_t build_id_note[];

#define NOTE_ID_OFFSET 16u

uint32_t build_id(void)
{
    return load_u32(build_id_note + NOTE_ID_OFFSET);
}
