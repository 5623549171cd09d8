/*
 * thread.h: threads that may never end. One whose operation on a hung replica was abandoned
 * is kept by the kernel, after its last instruction, until that operation has returned: so
 * nobody waits for a thread's end without a limit.
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
