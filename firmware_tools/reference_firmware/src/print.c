#include "print.h"

#include <stdarg.h>

#include "drivers/uart.h"

#define DECIMAL 10u
#define HEXADECIMAL 16u
/* 2^32 - 1 in decimal. */
#define MAX_DIGITS 10u

static void put(char character)
{
    if (character == '\n') {
        uart_send('\r');
    }
    uart_send(character);
}

static void put_text(const char *text)
{
    while (*text) {
        put(*text++);
    }
}

static void put_number(unsigned value, unsigned base, unsigned width)
{
    char digits[MAX_DIGITS];
    unsigned count = 0;

    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    for (; width > count; width--) {
        put('0');
    }
    while (count) {
        put(digits[--count]);
    }
}

static void put_signed(int value, unsigned width)
{
    if (value < 0) {
        put('-');
    }
    put_number(value < 0 ? -(unsigned)value : (unsigned)value, DECIMAL, width);
}

void print(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    for (; *format; format++) {
        unsigned width = 0;

        if (*format != '%') {
            put(*format);
            continue;
        }
        for (format++; *format >= '0' && *format <= '9'; format++) {
            width = width * DECIMAL + (unsigned)(*format - '0');
        }
        switch (*format) {
        case 's':
            put_text(va_arg(arguments, const char *));
            break;
        case 'c':
            put((char)va_arg(arguments, int));
            break;
        case 'u':
            put_number(va_arg(arguments, unsigned), DECIMAL, width);
            break;
        case 'd':
            put_signed(va_arg(arguments, int), width);
            break;
        case 'x':
            put_number(va_arg(arguments, unsigned), HEXADECIMAL, width);
            break;
        default:
            put(*format);
            break;
        }
    }
    va_end(arguments);
}
