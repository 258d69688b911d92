/* Text for people, on the UART. */
#ifndef PRINT_H
#define PRINT_H

#include <stdint.h>

/* Knows %s %c %u %d %x and zero-padded widths such as %08x, for int-sized arguments; '\n' goes out as CR LF. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For printing a uint32_t, which is a long for some compilers. */
static inline unsigned as_unsigned(uint32_t value)
{
    return (unsigned)value;
}

#endif
