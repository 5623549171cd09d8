/*
 * loop.c: threads that take requests.
 *
 * libfuse has such a loop; ours differs in what hung replicas ask for (R5):
 * - A write that was abandoned may still read from the memory in which its request came.
 *   Then that memory is not used again (io_list.lends).
 * - Any thread may be stuck, for good: the end waits for nobody who makes no progress.
 * - When every thread waits for a hung replica, who asks for the status would wait, too. So
 *   when nothing is answered for a while more threads are made than are of use otherwise.
 *
 * Each thread has its own descriptor of the kernel's device (FUSE_DEV_IOC_CLONE), which keeps
 * them from disputing one queue of answers. The kernel wants an answer on the descriptor its
 * request came from, and libfuse writes it: through write_answer, which knows the thread. What
 * is said to the kernel by others goes through the session's descriptor.
 *
 * One thread takes what comes until all are busy; only then there is another. They stay: a
 * thread's ring and buffers cost more to make again than a sleeping thread does.
 *
 * loop_run itself serves nothing; it looks after the others. A thread that sleeps in the
 * kernel is woken for the end with a signal. One that comes just before that sleep is lost, so
 * it is repeated.
 */
#include "fuse/loop.h"
#include "formats/uring.h"
#include "fuse/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define WAKE_SIGNAL SIGUSR2
#define WAKE_EVERY  (50 * G_TIME_SPAN_MILLISECOND)
/* All are busy, and none has answered for so long: so many more. */
#define STALL_EVERY (100 * G_TIME_SPAN_MILLISECOND)
#define STALL_STEP  8
/* For what is left to do after a thread's last request. */
#define EXIT_US G_USEC_PER_SEC

/* What precedes the data of a write. */
#define HEADER_SIZE (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define PAGE        4096u

typedef struct server {
    loop *loop;
    pthread_t thread;
    int fd;
    atomic_uint_fast64_t answered;
    atomic_bool busy;
    bool left; /* under lock */
} server;

struct loop {
    struct fuse_session *fuse;
    loop_options options;
    atomic_int idle; /* threads that have no request */

    GMutex lock;
    GCond changed;
    GPtrArray *servers; /* of server*; under lock, as what follows */
    unsigned left;      /* of them */
    bool watched;       /* loop_run looks at them already */
    int result;
};

static _Thread_local int this_device = -1;

static ssize_t write_answer(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    return writev(this_device >= 0 ? this_device : fd, parts, count);
}

static ssize_t read_request(int fd, void *buf, size_t size, void *userdata)
{
    (void)userdata;
    return read(this_device >= 0 ? this_device : fd, buf, size);
}

loop *loop_new(struct fuse_session *fuse, const loop_options *options)
{
    static const struct fuse_custom_io io = {.writev = write_answer,
                                             .read = read_request};
    loop *l = g_new0(loop, 1);
    l->fuse = fuse;
    l->options = *options;
    l->servers = g_ptr_array_new_with_free_func(g_free);
    g_mutex_init(&l->lock);
    g_cond_init(&l->changed);
    if (fuse_session_custom_io(fuse, &io, fuse_session_fd(fuse)) != 0)
        g_error("out of memory for a session");
    return l;
}

/* ---- A thread's work ----------------------------------------------------------------- */

static bool add_server(loop *l);

static void finish(loop *l, int result)
{
    g_mutex_lock(&l->lock);
    fuse_session_exit(l->fuse);
    if (l->result == 0)
        l->result = result;
    g_cond_broadcast(&l->changed);
    g_mutex_unlock(&l->lock);
}

/* Nobody is left to take the next one. */
static void relieve(loop *l)
{
    g_mutex_lock(&l->lock);
    if (atomic_load(&l->idle) == 0 && !fuse_session_exited(l->fuse)) {
        if (l->servers->len < l->options.threads)
            add_server(l);
        else if (!l->watched && l->options.spares > 0)
            g_cond_broadcast(&l->changed);
    }
    g_mutex_unlock(&l->lock);
}

/* The data of a write begins on a page. */
static void *request_memory(const loop *l)
{
    void *memory = NULL;
    if (posix_memalign(&memory, PAGE, PAGE + l->options.request_max) != 0)
        g_error("out of memory for a request of %zu bytes", l->options.request_max);
    return memory;
}

/* False: there are no more. */
static bool take_request(server *s, void *memory)
{
    loop *l = s->loop;
    char *start = (char *)memory + PAGE - HEADER_SIZE;
    ssize_t got = read(s->fd, start, l->options.request_max + HEADER_SIZE);
    if (got < 0) {
        /* ENOENT: it was interrupted before it came. */
        bool again = errno == EINTR || errno == EAGAIN || errno == ENOENT;
        if (!again)
            finish(l, errno == ENODEV ? 0 : -errno);
        return again;
    }
    atomic_store_explicit(&s->busy, true, memory_order_relaxed);
    if (atomic_fetch_sub(&l->idle, 1) == 1)
        relieve(l);
    struct fuse_buf request = {.mem = start, .size = (size_t)got};
    fuse_session_process_buf(l->fuse, &request);
    atomic_fetch_add(&l->idle, 1);
    atomic_store_explicit(&s->busy, false, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->answered, 1, memory_order_relaxed);
    return true;
}

static void *serve(void *opaque)
{
    server *s = opaque;
    loop *l = s->loop;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, WAKE_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    this_device = s->fd;
    void *memory = request_memory(l);
    while (!fuse_session_exited(l->fuse) && take_request(s, memory)) {
        if (io_thread_abandoned()) {
            io_free_later(memory, free);
            memory = request_memory(l);
        }
    }
    free(memory);
    g_mutex_lock(&l->lock);
    s->left = true;
    l->left++;
    g_cond_broadcast(&l->changed);
    g_mutex_unlock(&l->lock);
    return NULL;
}

/* ---- Looking after them -------------------------------------------------------------- */

static int clone_device(const loop *l)
{
    uint32_t session = (uint32_t)fuse_session_fd(l->fuse);
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd >= 0 && ioctl(fd, FUSE_DEV_IOC_CLONE, &session) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return fcntl((int)session, F_DUPFD_CLOEXEC, 0);
}

/* Under lock. */
static bool add_server(loop *l)
{
    server *s = g_new0(server, 1);
    s->loop = l;
    s->fd = clone_device(l);
    int result = s->fd < 0 ? -errno : 0;
    atomic_fetch_add(&l->idle, 1);
    if (result == 0)
        result = thread_start(&s->thread, "fuse", serve, s);
    if (result == 0) {
        g_ptr_array_add(l->servers, s);
        return true;
    }
    atomic_fetch_sub(&l->idle, 1);
    if (s->fd >= 0)
        close(s->fd);
    g_free(s);
    if (l->servers->len == 0)
        l->result = result; /* else those that there are have to do */
    return false;
}

static uint64_t progress(const loop *l)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < l->servers->len; i++)
        sum += atomic_load(&((server *)l->servers->pdata[i])->answered);
    return sum;
}

uint64_t loop_progress(loop *l)
{
    g_mutex_lock(&l->lock);
    uint64_t sum = progress(l);
    g_mutex_unlock(&l->lock);
    return sum;
}

static void add_spares(loop *l)
{
    unsigned most = l->options.threads + l->options.spares;
    for (unsigned i = 0; i < STALL_STEP && l->servers->len < most; i++)
        if (!add_server(l))
            return;
}

/* Under lock, as what follows. */
static void look_after(loop *l)
{
    while (!fuse_session_exited(l->fuse)) {
        l->watched = atomic_load(&l->idle) == 0 && l->options.spares > 0;
        if (!l->watched) {
            g_cond_wait(&l->changed, &l->lock);
            continue;
        }
        uint64_t before = progress(l);
        gint64 until = g_get_monotonic_time() + STALL_EVERY;
        while (!fuse_session_exited(l->fuse) &&
               g_cond_wait_until(&l->changed, &l->lock, until))
            ;
        if (atomic_load(&l->idle) == 0 && progress(l) == before)
            add_spares(l);
    }
}

static void wake_sleepers(const loop *l)
{
    for (unsigned i = 0; i < l->servers->len; i++) {
        const server *s = l->servers->pdata[i];
        if (!s->left && !atomic_load(&s->busy))
            pthread_kill(s->thread, WAKE_SIGNAL);
    }
}

static void wait_for_servers(loop *l)
{
    gint64 stall = l->options.stall_ms * G_TIME_SPAN_MILLISECOND;
    gint64 now = g_get_monotonic_time(), until = now + stall;
    uint64_t before = progress(l);
    while (l->left < l->servers->len && now < until) {
        wake_sleepers(l);
        g_cond_wait_until(&l->changed, &l->lock, now + WAKE_EVERY);
        now = g_get_monotonic_time();
        if (progress(l) != before)
            until = now + stall;
        before = progress(l);
    }
}

/* A descriptor that a stuck thread may still write to keeps its number, and leads nowhere. */
static void cut_device(const server *s)
{
    int nowhere = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nowhere < 0 || dup3(nowhere, s->fd, O_CLOEXEC) < 0)
        close(s->fd);
    if (nowhere >= 0)
        close(nowhere);
}

static void drop_servers(loop *l)
{
    gint64 until = g_get_monotonic_time() + EXIT_US;
    for (unsigned i = 0; i < l->servers->len; i++) {
        server *s = l->servers->pdata[i];
        if (s->left)
            close(s->fd);
        else
            cut_device(s);
        if (!s->left || !thread_join(s->thread, until))
            pthread_detach(s->thread);
    }
}

static void wake(int number)
{
    (void)number; /* that the system call returns is all */
}

int loop_run(loop *l)
{
    struct sigaction action = {.sa_handler = wake};
    sigaction(WAKE_SIGNAL, &action, NULL);
    g_mutex_lock(&l->lock);
    if (add_server(l))
        look_after(l);
    wait_for_servers(l);
    drop_servers(l);
    int result = l->result;
    g_mutex_unlock(&l->lock);
    return result;
}

void loop_end(loop *l)
{
    finish(l, 0);
}

unsigned loop_stuck(loop *l)
{
    g_mutex_lock(&l->lock);
    unsigned stuck = l->servers->len - l->left;
    g_mutex_unlock(&l->lock);
    return stuck;
}

void loop_free(loop *l)
{
    if (!l)
        return;
    g_ptr_array_unref(l->servers);
    g_cond_clear(&l->changed);
    g_mutex_clear(&l->lock);
    g_free(l);
}
