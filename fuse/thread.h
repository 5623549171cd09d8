/*
 * thread.h: threads that may be stuck in a call on a hung replica, or in one of the kernel's
 * that waits for an answer of our own: nobody waits for their end without a limit (R5).
 */
#ifndef FUSE_THREAD_H
#define FUSE_THREAD_H

#include <glib.h>
#include <pthread.h>
#include <stdbool.h>

/* 0 or -errno; `name`: at most 15 bytes. */
int thread_start(pthread_t *ret_thread, const char *name, void *(*run)(void *opaque),
                 void *opaque);

/* Waits for its end, at most until `until_us` (g_get_monotonic_time). True: it has ended.
 * False: it may still run; it can be waited for again, or left alone (pthread_detach). */
bool thread_join(pthread_t thread, gint64 until_us);

#endif
