/* A 16550: sends by waiting for room, receives by interrupt. */
#ifndef DRIVERS_UART_H
#define DRIVERS_UART_H

#include <stdbool.h>

void uart_start(void);
void uart_send(char character);
/* False when nothing has been received. */
bool uart_receive(char *character);

#endif
