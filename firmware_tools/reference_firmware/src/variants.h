/* Every switch with which this firmware can be built differently, by -D on the compiler's command line.
 *
 * They exist for tests of what surrounds the firmware: the host's time-outs, the watchdog, the fall-back of a trial
 * and the power-cut tests, which must notice BROKEN_TRIAL_BEFORE_READ_BACK. None is meant for a product.
 */
#ifndef VARIANTS_H
#define VARIANTS_H

/* Printed in the banner, to tell builds apart. */
#ifndef GREETING
#define GREETING "management core at your service"
#endif

/* Version in the banner of a firmware that was loaded from outside; in a slot, the image's header says it. */
#ifndef FIRMWARE_VERSION
#define FIRMWARE_VERSION "unversioned"
#endif

/* Stops with interrupts off before it is ready: the watchdog has to come. */
#ifndef VARIANT_HANGS
#define VARIANT_HANGS 0
#endif

/* Runs, but never answers the mailbox. */
#ifndef VARIANT_NO_SERVICE
#define VARIANT_NO_SERVICE 0
#endif

/* Executes an illegal instruction as soon as it is ready. */
#ifndef VARIANT_FAULTS
#define VARIANT_FAULTS 0
#endif

/* WRONG on purpose: names a slot for a trial boot before anything has been written to it. */
#ifndef BROKEN_TRIAL_BEFORE_READ_BACK
#define BROKEN_TRIAL_BEFORE_READ_BACK 0
#endif

#endif
