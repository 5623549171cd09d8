/*
 * glib-tsan.c: tells ThreadSanitizer about GLib's mutexes and conditions.
 *
 * GMutex and GCond are futexes of GLib's own inside a library that is not instrumented, so
 * ThreadSanitizer sees neither the lock nor the order that it makes, and calls everything
 * that they protect a race. The functions here take the place of GLib's in a test program,
 * call them, and say what happened. What GLib builds on pthread (GRWLock, GRecMutex,
 * GPrivate, threads) needs nothing; GAsyncQueue and GThreadPool lock inside GLib and would
 * still be misunderstood.
 */
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif

#ifdef WITH_TSAN
#include <dlfcn.h>
#include <glib.h>
#include <sanitizer/tsan_interface.h>

/* Looked up once, in a constructor, before there are threads. */
static struct {
    void (*lock)(GMutex *);
    gboolean (*trylock)(GMutex *);
    void (*unlock)(GMutex *);
    void (*clear)(GMutex *);
    void (*wait)(GCond *, GMutex *);
    gboolean (*wait_until)(GCond *, GMutex *, gint64);
} glib;

static void *next(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    g_assert(symbol);
    return symbol;
}

__attribute__((constructor)) static void find_glib(void)
{
    glib.lock = next("g_mutex_lock");
    glib.trylock = next("g_mutex_trylock");
    glib.unlock = next("g_mutex_unlock");
    glib.clear = next("g_mutex_clear");
    glib.wait = next("g_cond_wait");
    glib.wait_until = next("g_cond_wait_until");
}

static void released(GMutex *mutex)
{
    __tsan_mutex_pre_unlock(mutex, 0);
    __tsan_mutex_post_unlock(mutex, 0);
}

static void acquired(GMutex *mutex)
{
    __tsan_mutex_pre_lock(mutex, 0);
    __tsan_mutex_post_lock(mutex, 0, 0);
}

void(g_mutex_lock)(GMutex *mutex)
{
    __tsan_mutex_pre_lock(mutex, 0);
    glib.lock(mutex);
    __tsan_mutex_post_lock(mutex, 0, 0);
}

gboolean(g_mutex_trylock)(GMutex *mutex)
{
    __tsan_mutex_pre_lock(mutex, __tsan_mutex_try_lock);
    gboolean got = glib.trylock(mutex);
    __tsan_mutex_post_lock(
        mutex, __tsan_mutex_try_lock | (got ? 0 : __tsan_mutex_try_lock_failed), 0);
    return got;
}

void(g_mutex_unlock)(GMutex *mutex)
{
    __tsan_mutex_pre_unlock(mutex, 0);
    glib.unlock(mutex);
    __tsan_mutex_post_unlock(mutex, 0);
}

void(g_mutex_clear)(GMutex *mutex)
{
    __tsan_mutex_destroy(mutex, __tsan_mutex_linker_init);
    glib.clear(mutex);
}

/* The mutex is held before and after: what is said here comes while it still is, or again
 * is, this thread's. */
void(g_cond_wait)(GCond *cond, GMutex *mutex)
{
    released(mutex);
    glib.wait(cond, mutex);
    acquired(mutex);
}

gboolean(g_cond_wait_until)(GCond *cond, GMutex *mutex, gint64 end_time)
{
    released(mutex);
    gboolean signalled = glib.wait_until(cond, mutex, end_time);
    acquired(mutex);
    return signalled;
}
#endif
