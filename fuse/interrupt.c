/* interrupt.c: see interrupt.h. */
#include "fuse/interrupt.h"
#include <stddef.h>

volatile sig_atomic_t interrupt_signal;
volatile sig_atomic_t interrupt_line;

static void on_stop(int number)
{
    interrupt_signal = number;
}

static void on_line(int number)
{
    (void)number;
    interrupt_line = 1;
}

void interrupt_catch(void)
{
    struct sigaction stop = {.sa_handler = on_stop,
                             .sa_flags = SA_RESTART | (int)SA_RESETHAND};
    struct sigaction line = {.sa_handler = on_line, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGUSR1, &line, NULL);
}
