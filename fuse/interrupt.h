/*
 * interrupt.h: signals of a long command: SIGINT and SIGTERM ask it to stop where that leaves
 * nothing half done, SIGUSR1 for a line of progress.
 */
#ifndef FUSE_INTERRUPT_H
#define FUSE_INTERRUPT_H

#include <signal.h>

extern volatile sig_atomic_t interrupt_signal; /* the one that came, or 0 */
extern volatile sig_atomic_t
    interrupt_line; /* a line is wanted; whoever prints it sets 0 */

/* From now on. A second SIGINT ends the program. */
void interrupt_catch(void);

#endif
