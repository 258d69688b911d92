#include "console.h"

#include "build_id.h"
#include "bytes.h"
#include "drivers/boot.h"
#include "drivers/uart.h"
#include "log.h"
#include "print.h"
#include "runtime.h"
#include "thermal.h"
#include "variants.h"

#define LINE_BYTES 80u
#define RECORDS_SHOWN 16u
#define BACKSPACE '\b'
#define DELETE 0x7f
#define FIRST_PRINTABLE ' '

static char line[LINE_BYTES];
static uint32_t line_length;

static void prompt(void)
{
    print("> ");
}

static void print_version(void)
{
    uint64_t version = boot_version();

    if (boot_slot() == NPU_SLOT_NONE) {
        print("%s", FIRMWARE_VERSION);
        return;
    }
    print("%u.%u.%u+%u", (unsigned)(version & UINT8_MAX), (unsigned)(version >> 8 & UINT8_MAX),
          (unsigned)(version >> 16 & UINT16_MAX), (unsigned)(version >> 32));
}

static const char *slot_name(void)
{
    switch (boot_slot()) {
    case NPU_SLOT_A:
        return "slot A";
    case NPU_SLOT_B:
        return "slot B";
    default:
        return "loaded from outside";
    }
}

static void print_identity(void)
{
    print("reference firmware ");
    print_version();
    print(", build %08x, %s%s\n", as_unsigned(build_id()), slot_name(), runtime_is_on_trial() ? ", on trial" : "");
}

void console_banner(void)
{
    print("\n");
    print_identity();
    print("%s\n", GREETING);
    prompt();
}

static void show_help(void);

static void show_info(void)
{
    print_identity();
    print("boot %u, reason %u, up %u ms\n", as_unsigned(boot_count()), as_unsigned(boot_reason()),
          (unsigned)runtime_uptime_milliseconds());
    print("hardware id %08x, security counter %u\n", as_unsigned(boot_hardware_id()),
          as_unsigned(boot_security_counter()));
}

static void show_record(const struct npu_log_record *record)
{
    print("%u boot %u build %08x level %u token %x:", as_unsigned(record->sequence), record->boot,
          as_unsigned(record->build_id), record->level, as_unsigned(record->token));
    for (uint32_t i = 0; i < record->argument_count; i++) {
        print(" %x", as_unsigned(record->arguments[i]));
    }
    print("\n");
}

/* Tokens and arguments only: the texts are in the ELF file. */
static void show_log(void)
{
    uint32_t count = smaller(log_next() - log_first(), RECORDS_SHOWN);

    for (uint32_t sequence = log_next() - count; sequence != log_next(); sequence++) {
        show_record(log_record(sequence));
    }
}

static void show_sensors(void)
{
    const struct sensor_readings *readings = thermal_readings();

    print("%d millicelsius, %u mW, %u mV, throttle %u\n", (int)readings->millicelsius,
          as_unsigned(readings->milliwatts), as_unsigned(readings->millivolts), as_unsigned(thermal_throttle()));
}

static void reset_core(void)
{
    print("resetting\n");
    boot_request_reset();
}

static const struct {
    const char *name;
    const char *help;
    void (*run)(void);
} COMMANDS[] = {
    {"help", "lists these", show_help},
    {"info", "which firmware this is", show_info},
    {"log", "latest log records, as tokens", show_log},
    {"sensors", "latest readings", show_sensors},
    {"reset", "resets the core", reset_core},
};

static void show_help(void)
{
    for (uint32_t i = 0; i < ELEMENTS(COMMANDS); i++) {
        print("%s: %s\n", COMMANDS[i].name, COMMANDS[i].help);
    }
}

static bool is_line(const char *text)
{
    uint32_t i = 0;

    while (i < line_length && text[i] == line[i]) {
        i++;
    }
    return i == line_length && text[i] == '\0';
}

static void run_line(void)
{
    if (line_length == 0) {
        return;
    }
    for (uint32_t i = 0; i < ELEMENTS(COMMANDS); i++) {
        if (is_line(COMMANDS[i].name)) {
            COMMANDS[i].run();
            return;
        }
    }
    print("unknown command, try help\n");
}

static void end_line(void)
{
    print("\n");
    run_line();
    line_length = 0;
    prompt();
}

static void erase_last(void)
{
    if (line_length) {
        line_length--;
        print("\b \b");
    }
}

static void take(char character)
{
    switch (character) {
    case '\r':
    case '\n':
        end_line();
        break;
    case BACKSPACE:
    case DELETE:
        erase_last();
        break;
    default:
        /* What does not fit is not echoed either, so that the screen shows what will be run. */
        if (character >= FIRST_PRINTABLE && line_length < sizeof line) {
            line[line_length++] = character;
            print("%c", character);
        }
        break;
    }
}

void console_service(void)
{
    char character;

    while (uart_receive(&character)) {
        take(character);
    }
}
