/* Registers and bits as in the data sheet of National Semiconductor's PC16550D, one byte each. */
#include "drivers/uart.h"

#include "drivers/mmio.h"

#define UART_DATA (NPU_UART_BASE + 0u)
#define UART_INTERRUPT_ENABLE (NPU_UART_BASE + 1u)
#define UART_FIFO_CONTROL (NPU_UART_BASE + 2u)
#define UART_LINE_CONTROL (NPU_UART_BASE + 3u)
#define UART_LINE_STATUS (NPU_UART_BASE + 5u)

#define INTERRUPT_RECEIVED 0x01u
#define FIFO_ENABLE 0x01u
#define LINE_8_BITS 0x03u
#define STATUS_RECEIVED 0x01u
#define STATUS_ROOM 0x20u

void uart_start(void)
{
    mmio_write_byte(UART_LINE_CONTROL, LINE_8_BITS);
    mmio_write_byte(UART_FIFO_CONTROL, FIFO_ENABLE);
    mmio_write_byte(UART_INTERRUPT_ENABLE, INTERRUPT_RECEIVED);
}

void uart_send(char character)
{
    while (!(mmio_read_byte(UART_LINE_STATUS) & STATUS_ROOM)) {
    }
    mmio_write_byte(UART_DATA, (uint8_t)character);
}

bool uart_receive(char *character)
{
    if (!(mmio_read_byte(UART_LINE_STATUS) & STATUS_RECEIVED)) {
        return false;
    }
    *character = (char)mmio_read_byte(UART_DATA);
    return true;
}
