/* Answers the host. */
#ifndef MAILBOX_SERVICE_H
#define MAILBOX_SERVICE_H

/* Answers the request that waits, if one does. */
void mailbox_service(void);

#endif
