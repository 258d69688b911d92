/* A command line on the UART. */
#ifndef CONSOLE_H
#define CONSOLE_H

void console_banner(void);
/* Takes what has been typed. */
void console_service(void);

#endif
