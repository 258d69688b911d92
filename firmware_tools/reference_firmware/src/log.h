/* The tokenised log: records in retained RAM, whose texts stay behind in the ELF file.
 *
 * A text lies in the section .log_strings, which is linked at address 0 and not loaded; its address is the record's
 * token. Texts may use %u %d %x %c and widths like %08x, with at most NPU_LOG_ARGUMENTS arguments of 32 bits.
 */
#ifndef LOG_H
#define LOG_H

#include <stdint.h>

#include "bytes.h"
#include "npu_protocol.h"
#include "npu_registers.h"

#define LOG_INFO(...) LOG_WRITE(NPU_LOG_LEVEL_INFO, __VA_ARGS__)
#define LOG_WARNING(...) LOG_WRITE(NPU_LOG_LEVEL_WARNING, __VA_ARGS__)
#define LOG_ERROR(...) LOG_WRITE(NPU_LOG_LEVEL_ERROR, __VA_ARGS__)

#define LOG_WRITE(level, text, ...)                                                                            \
    do {                                                                                                       \
        static const char log_text[] __attribute__((section(".log_strings"), used)) = text;                    \
        const uint32_t log_arguments[] = {0, ##__VA_ARGS__}; /* never empty, thanks to the first */            \
        _Static_assert(ELEMENTS(log_arguments) - 1 <= NPU_LOG_ARGUMENTS, "too many arguments for a record");   \
        if (0) {                                                                                               \
            log_check_text(text LOG_AS_UNSIGNED(__VA_ARGS__));                                                 \
        }                                                                                                      \
        log_append((level), (uint32_t)(uintptr_t)log_text, ELEMENTS(log_arguments) - 1, log_arguments + 1);    \
    } while (0)

/* `, (unsigned)a, (unsigned)b …`: uint32_t is a long for some compilers, and %u would not do. */
#define LOG_AS_UNSIGNED(...) LOG_PICK(_, ##__VA_ARGS__, LOG_CAST_4, LOG_CAST_3, LOG_CAST_2, LOG_CAST_1, LOG_CAST_0)(__VA_ARGS__)
#define LOG_PICK(_0, _1, _2, _3, _4, name, ...) name
#define LOG_CAST_0()
#define LOG_CAST_1(a) , (unsigned)(a)
#define LOG_CAST_2(a, b) LOG_CAST_1(a), (unsigned)(b)
#define LOG_CAST_3(a, b, c) LOG_CAST_2(a, b), (unsigned)(c)
#define LOG_CAST_4(a, b, c, d) LOG_CAST_3(a, b, c), (unsigned)(d)

/* Never called: lets the compiler compare texts with arguments. */
void log_check_text(const char *text, ...) __attribute__((format(printf, 1, 2)));

/* Takes over what earlier firmware left, or starts anew when that is not whole. */
void log_start(void);
void log_append(uint32_t level, uint32_t token, uint32_t argument_count, const uint32_t *arguments);

/* Sequence numbers of the oldest record and of the next one; they wrap around. */
uint32_t log_first(void);
uint32_t log_next(void);
/* A record from log_first() to log_next() - 1. */
const struct npu_log_record *log_record(uint32_t sequence);
/* Copies up to `room` records from `sequence` on, or from the oldest when that one is gone. Returns how many; the
 * sequence after the last of them is in *next. */
uint32_t log_read(uint32_t sequence, struct npu_log_record *records, uint32_t room, uint32_t *next);

#endif
