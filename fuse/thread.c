/*
 * thread.c: see thread.h. The library's timed join goes by the clock on the wall: if that
 * is set meanwhile, the wait is longer or shorter.
 */
#include "fuse/thread.h"
#include <time.h>

int thread_start(pthread_t *ret_thread, const char *name, void *(*run)(void *opaque),
                 void *opaque)
{
    int result = pthread_create(ret_thread, NULL, run, opaque);
    if (result == 0)
        pthread_setname_np(*ret_thread, name);
    return -result;
}

bool thread_join(pthread_t thread, gint64 until_us)
{
    gint64 left = MAX(until_us - g_get_monotonic_time(), 0);
    gint64 until = g_get_real_time() + left;
    struct timespec deadline = {.tv_sec = until / G_USEC_PER_SEC,
                                .tv_nsec = until % G_USEC_PER_SEC * 1000};
    return pthread_timedjoin_np(thread, NULL, &deadline) == 0;
}
