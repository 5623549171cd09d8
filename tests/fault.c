/* fault.c: see fault.h. */
#include "tests/fault.h"
#include "quorum/journal.h"
#include "tests/support.h"
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define FAULTS_MAX 16

static struct {
    fault what;
    unsigned left, passed;
    bool active;
} faults[FAULTS_MAX];
static atomic_uint n_faults, n_hits, n_unsynced, n_forgotten;
static void (*_Atomic sync_hook)(void);

static bool tracking;
static atomic_uint n_open, n_finished;
static struct {
    const chain *chain;
    unsigned rounds, done;
} slow_flush;
static struct {
    unsigned owner, after;
    int error;
} bad_ops;
static atomic_uint n_runs, n_run_ops;

static GMutex counting; /* of what strikes: several threads may use one disk */

/* What a call left to be done later. */
typedef struct late_call {
    chain *chain;
    uint64_t offset, length;
    uint8_t *data; /* NULL: zeroes */
    uint64_t shreds;
    bool lands; /* is happening */
} late_call;
static GQueue late; /* of late_call, under `counting` */

static void late_free(void *opaque)
{
    late_call *call = opaque;
    g_free(call->data);
    g_free(call);
}

static void drop_late(void)
{
    g_mutex_lock(&counting);
    g_queue_clear_full(&late, late_free);
    g_mutex_unlock(&counting);
}

void fault_add(fault f)
{
    g_assert(n_faults < FAULTS_MAX);
    unsigned k = n_faults;
    faults[k].what = f;
    faults[k].left = f.times;
    faults[k].passed = 0;
    faults[k].active = true;
    n_faults = k + 1;
}

void fault_clear(void)
{
    n_faults = 0;
    n_hits = 0;
    n_forgotten = 0;
    drop_late();
    tracking = false;
    n_open = n_finished = 0;
    slow_flush.chain = NULL;
    bad_ops.error = 0;
    n_runs = n_run_ops = 0;
}

void fault_track_changes(void)
{
    tracking = true;
}

unsigned fault_finished_changes(void)
{
    return n_finished;
}

unsigned fault_open_changes(void)
{
    return n_open;
}

void fault_flush_rounds(const chain *c, unsigned rounds)
{
    slow_flush.chain = c;
    slow_flush.rounds = rounds;
    slow_flush.done = 0;
}

void fault_ops(unsigned owner, int error, unsigned after)
{
    bad_ops.owner = owner;
    bad_ops.error = error;
    bad_ops.after = after;
}

unsigned fault_runs(void)
{
    return n_runs;
}

unsigned fault_run_ops(void)
{
    return n_run_ops;
}

void fault_on_sync(void (*hook)(void))
{
    sync_hook = hook;
}

unsigned fault_hits(void)
{
    return n_hits;
}

unsigned fault_forgotten(void)
{
    return n_forgotten;
}

unsigned fault_unsynced_records(void)
{
    return n_unsynced;
}

/* Whether fault k strikes now; counts it. */
static bool takes_turn(unsigned k, const chain *c, fault_kind kind, uint64_t offset,
                       uint64_t length)
{
    const fault *f = &faults[k].what;
    if (!faults[k].active || f->kind != kind || (f->chain && f->chain != c))
        return false;
    if (f->length && (offset >= f->offset + f->length || offset + length <= f->offset))
        return false;
    if (faults[k].passed++ < f->after)
        return false;
    if (f->times && --faults[k].left == 0)
        faults[k].active = false;
    n_hits++;
    return true;
}

static const fault *strike(const chain *c, fault_kind kind, uint64_t offset,
                           uint64_t length)
{
    for (unsigned k = 0; k < n_faults; k++) {
        g_mutex_lock(&counting);
        bool strikes = takes_turn(k, c, kind, offset, length);
        g_mutex_unlock(&counting);
        if (strikes && faults[k].what.hook)
            faults[k].what.hook();
        if (strikes && faults[k].what.delay_ms)
            g_usleep(faults[k].what.delay_ms * 1000ul);
        bool rots = faults[k].what.rot && (kind == FAULT_READ || kind == FAULT_WRITE);
        if (strikes && (faults[k].what.error || rots))
            return &faults[k].what;
    }
    return NULL;
}

/* ---- What becomes of the bytes ----------------------------------------------------------- */

int __real_chain_read(chain *c, void *buf, uint64_t offset, size_t length);
int __real_chain_write(chain *c, const void *buf, uint64_t offset, size_t length);
int __real_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length);

static void rot_bytes(const fault *f, uint8_t *bytes, uint64_t offset, size_t length)
{
    for (size_t k = 0; k < length; k++)
        if (!f->length || (offset + k >= f->offset && offset + k < f->offset + f->length))
            bytes[k] ^= f->rot;
}

static int read_rotten(const fault *f, chain *c, void *buf, uint64_t offset,
                       size_t length)
{
    int r = __real_chain_read(c, buf, offset, length);
    rot_bytes(f, buf, offset, length);
    return r;
}

static int write_rotten(const fault *f, chain *c, const void *buf, uint64_t offset,
                        size_t length)
{
    g_autofree uint8_t *bytes = g_memdup2(buf, length);
    rot_bytes(f, bytes, offset, length);
    return __real_chain_write(c, bytes, offset, length);
}

static void write_part(chain *c, const uint8_t *data, uint64_t offset, uint64_t length)
{
    if (data)
        __real_chain_write(c, data, offset, (size_t)length);
    else
        __real_chain_write_zeroes(c, offset, length);
}

/* About half of the sectors, or everything. */
static void write_shreds(chain *c, const uint8_t *data, uint64_t offset, uint64_t length,
                         uint64_t shreds)
{
    for (uint64_t from = 0, to; shreds && from < length; from = to) {
        to = MIN(((offset + from) / 512 + 1) * 512 - offset, length);
        if (support_random(&shreds) >> 32 & 1)
            write_part(c, data ? data + from : NULL, offset + from, to - from);
    }
    if (!shreds)
        write_part(c, data, offset, length);
}

/* What is left of a change that fails; buf NULL: of zeroes. */
static int fail_change(const fault *f, chain *c, const void *buf, uint64_t offset,
                       uint64_t length)
{
    uint64_t part = f->torn ? MIN(f->torn, length) : f->shreds || f->late ? length : 0;
    if (part > 0 && f->late) {
        late_call *call = g_new(late_call, 1);
        uint64_t shreds = f->shreds ? f->shreds + offset : 0;
        *call = (late_call){c,      offset, part, buf ? g_memdup2(buf, part) : NULL,
                            shreds, false};
        g_mutex_lock(&counting);
        g_queue_push_tail(&late, call);
        g_mutex_unlock(&counting);
    } else if (part > 0) {
        write_shreds(c, buf, offset, part, f->shreds ? f->shreds + offset : 0);
    }
    return -f->error;
}

/* It stays in the queue, and counts, until it has happened: who rejoins waits for that. */
static late_call *take_late(const chain *c)
{
    late_call *found = NULL;
    g_mutex_lock(&counting);
    for (GList *k = late.head; k && !found; k = k->next) {
        late_call *call = k->data;
        if (!call->lands && (!c || call->chain == c))
            found = call;
    }
    if (found)
        found->lands = true;
    g_mutex_unlock(&counting);
    return found;
}

unsigned fault_land(const chain *c)
{
    unsigned count = 0;
    for (late_call *call; (call = take_late(c)); count++) {
        write_shreds(call->chain, call->data, call->offset, call->length, call->shreds);
        g_mutex_lock(&counting);
        g_queue_remove(&late, call);
        g_mutex_unlock(&counting);
        late_free(call);
    }
    return count;
}

unsigned __real_chain_abandoned(const chain *c);
unsigned __wrap_chain_abandoned(const chain *c);
unsigned __wrap_chain_abandoned(const chain *c)
{
    unsigned count = __real_chain_abandoned(c);
    g_mutex_lock(&counting);
    for (const GList *k = late.head; k; k = k->next)
        count += ((const late_call *)k->data)->chain == c;
    g_mutex_unlock(&counting);
    return count;
}

fault fault_pick(uint64_t *seed, const chain *c, uint64_t size)
{
    static const fault_kind kinds[] = {FAULT_WRITE, FAULT_WRITE, FAULT_WRITE, FAULT_CLEAR,
                                       FAULT_READ,  FAULT_READ,  FAULT_FLUSH};
    static const int errors[] = {EIO, EIO, ENOSPC};
    fault f = {.chain = c};
    f.kind = kinds[(support_random(seed) >> 16) % G_N_ELEMENTS(kinds)];
    f.error = errors[(support_random(seed) >> 16) % G_N_ELEMENTS(errors)];
    f.after = (unsigned)(support_random(seed) >> 16) % 12;
    f.times = (unsigned)(support_random(seed) >> 16) % 4;
    f.torn = (support_random(seed) >> 16) % 4 * 700;
    if ((support_random(seed) >> 16) % 3 == 0)
        f.shreds = support_random(seed);
    if ((support_random(seed) >> 16) % 3 == 0) {
        f.offset = (support_random(seed) >> 16) % size;
        f.length = 1 + (support_random(seed) >> 16) % (size - f.offset);
    }
    return f;
}

/* ---- The wrapped functions ------------------------------------------------------------- */

int __wrap_chain_read(chain *c, void *buf, uint64_t offset, size_t length);
int __wrap_chain_read(chain *c, void *buf, uint64_t offset, size_t length)
{
    const fault *f = strike(c, FAULT_READ, offset, length);
    return !f         ? __real_chain_read(c, buf, offset, length)
           : f->error ? -f->error
                      : read_rotten(f, c, buf, offset, length);
}

int __real_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list);
int __wrap_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list);
int __wrap_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list)
{
    const fault *f = strike(c, FAULT_READ, offset, length);
    return !f         ? __real_chain_prepare_read(c, buf, offset, length, owner, list)
           : f->error ? -f->error
                      : read_rotten(f, c, buf, offset, length);
}

/* What stands in for the driver's change while changes are tracked. */
typedef struct tracked_change {
    image_change *real;
    uint64_t offset;
    size_t length;
} tracked_change;

static image_change *track(image_change *real, uint64_t offset, size_t length)
{
    tracked_change *tracked = g_new(tracked_change, 1);
    *tracked = (tracked_change){real, offset, length};
    n_open++;
    return (image_change *)tracked;
}

int __real_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list, image_change **ret_change);
int __wrap_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list, image_change **ret_change);
int __wrap_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list, image_change **ret_change)
{
    *ret_change = NULL;
    const fault *f = strike(c, FAULT_WRITE, offset, length);
    if (f)
        return f->error ? fail_change(f, c, buf, offset, length)
                        : write_rotten(f, c, buf, offset, length);
    int r = __real_chain_prepare_write(c, buf, offset, length, owner, list, ret_change);
    if (r == 0 && tracking)
        *ret_change = track(*ret_change, offset, length);
    return r;
}

int __real_chain_finish_write(chain *c, image_change *change, int result);
int __wrap_chain_finish_write(chain *c, image_change *change, int result);
int __wrap_chain_finish_write(chain *c, image_change *change, int result)
{
    if (!tracking)
        return __real_chain_finish_write(c, change, result);
    g_autofree tracked_change *tracked = (tracked_change *)change;
    n_open--;
    n_finished++;
    const fault *f = strike(c, FAULT_FINISH, tracked->offset, tracked->length);
    return __real_chain_finish_write(c, tracked->real, f ? -f->error : result);
}

int __wrap_chain_write(chain *c, const void *buf, uint64_t offset, size_t length);
int __wrap_chain_write(chain *c, const void *buf, uint64_t offset, size_t length)
{
    const fault *f = strike(c, FAULT_WRITE, offset, length);
    return !f         ? __real_chain_write(c, buf, offset, length)
           : f->error ? fail_change(f, c, buf, offset, length)
                      : write_rotten(f, c, buf, offset, length);
}

int __real_chain_flush(chain *c);
int __wrap_chain_flush(chain *c);
int __wrap_chain_flush(chain *c)
{
    const fault *f = strike(c, FAULT_FLUSH, 0, 0);
    return f ? -f->error : __real_chain_flush(c);
}

int __wrap_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length)
{
    const fault *f = strike(c, FAULT_CLEAR, offset, length);
    return f ? fail_change(f, c, NULL, offset, length)
             : __real_chain_write_zeroes(c, offset, length);
}

int __real_chain_discard(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_discard(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_discard(chain *c, uint64_t offset, uint64_t length)
{
    const fault *f = strike(c, FAULT_CLEAR, offset, length);
    return f ? fail_change(f, c, NULL, offset, length)
             : __real_chain_discard(c, offset, length);
}

int __real_chain_resize(chain *c, uint64_t size);
int __wrap_chain_resize(chain *c, uint64_t size);
int __wrap_chain_resize(chain *c, uint64_t size)
{
    fault_kind kind = size == chain_size(c) ? FAULT_PROBE : FAULT_RESIZE;
    const fault *f = strike(c, kind, 0, 0);
    return f ? -f->error : __real_chain_resize(c, size);
}

bool __real_chain_begin_writing(chain *c, GError **error);
bool __wrap_chain_begin_writing(chain *c, GError **error);
bool __wrap_chain_begin_writing(chain *c, GError **error)
{
    const fault *f = strike(c, FAULT_BEGIN, 0, 0);
    if (f)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s",
                    chain_get_layer(c, 0)->filename, g_strerror(f->error));
    return !f && __real_chain_begin_writing(c, error);
}

/* Any file will do for a round. */
static int slow_round(unsigned owner, io_list *list)
{
    static int fd = -1;
    if (fd < 0)
        fd = memfd_create("slow-flush", MFD_CLOEXEC);
    slow_flush.done++;
    io_list_add(list, (io_op){.fd = fd, .flush = true, .owner = owner});
    return 1;
}

int __real_chain_flush_step(chain *c, image_flush_state *flush, unsigned owner,
                            io_list *list);
int __wrap_chain_flush_step(chain *c, image_flush_state *flush, unsigned owner,
                            io_list *list);
int __wrap_chain_flush_step(chain *c, image_flush_state *flush, unsigned owner,
                            io_list *list)
{
    bool slow = slow_flush.chain == c;
    bool in_slow_round = slow && flush->step == 0 && slow_flush.done > 0;
    bool first = flush->step == 0 && !in_slow_round;
    const fault *f = first ? strike(c, FAULT_FLUSH, 0, 0) : NULL;
    if (f)
        return -f->error;
    if (in_slow_round && flush->result != 0)
        return flush->result;
    if (slow && slow_flush.done < slow_flush.rounds)
        return slow_round(owner, list);
    return __real_chain_flush_step(c, flush, owner, list);
}

static bool changes_files(const io_list *list)
{
    for (size_t k = 0; k < list->count; k++)
        if (list->ops[k].write || list->ops[k].flush)
            return true;
    return false;
}

void __real_io_list_run(io_list *list);
void __wrap_io_list_run(io_list *list);
void __wrap_io_list_run(io_list *list)
{
    __real_io_list_run(list);
    if (!changes_files(list))
        return;
    n_runs++;
    n_run_ops = (unsigned)list->count;
    if (!bad_ops.error || bad_ops.after-- > 0)
        return;
    for (size_t k = 0; k < list->count; k++)
        if (list->ops[k].owner == bad_ops.owner)
            list->ops[k].result = -bad_ops.error;
    bad_ops.error = 0;
}

void __real_chain_forget_cache(chain *c);
void __wrap_chain_forget_cache(chain *c);
void __wrap_chain_forget_cache(chain *c)
{
    n_forgotten++;
    __real_chain_forget_cache(c);
}

int __real_journal_append(journal *j, const journal_record *record);
int __wrap_journal_append(journal *j, const journal_record *record);
int __wrap_journal_append(journal *j, const journal_record *record)
{
    n_unsynced++;
    return __real_journal_append(j, record);
}

int __real_journal_sync(journal *j);
int __wrap_journal_sync(journal *j);
int __wrap_journal_sync(journal *j)
{
    void (*hook)(void) = atomic_exchange(&sync_hook, NULL);
    if (hook)
        hook();
    n_unsynced = 0;
    return __real_journal_sync(j);
}
