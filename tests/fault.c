/* fault.c: see fault.h. */
#include "tests/fault.h"
#include "quorum/journal.h"
#include <stdatomic.h>

#define FAULTS_MAX 16

static struct {
    fault what;
    unsigned left, passed;
    bool active;
} faults[FAULTS_MAX];
static atomic_uint n_faults, n_hits, n_unsynced;
static void (*_Atomic sync_hook)(void);

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
}

void fault_on_sync(void (*hook)(void))
{
    sync_hook = hook;
}

unsigned fault_hits(void)
{
    return n_hits;
}

unsigned fault_unsynced_records(void)
{
    return n_unsynced;
}

static const fault *strike(const chain *c, fault_kind kind, uint64_t offset,
                           uint64_t length)
{
    for (unsigned k = 0; k < n_faults; k++) {
        const fault *f = &faults[k].what;
        if (!faults[k].active || f->chain != c || f->kind != kind)
            continue;
        if (f->length &&
            (offset >= f->offset + f->length || offset + length <= f->offset))
            continue;
        if (faults[k].passed++ < f->after)
            continue;
        if (f->times && --faults[k].left == 0)
            faults[k].active = false;
        n_hits++;
        if (f->hook)
            f->hook();
        if (f->error)
            return f;
    }
    return NULL;
}

int __real_chain_read(chain *c, void *buf, uint64_t offset, size_t length);
int __wrap_chain_read(chain *c, void *buf, uint64_t offset, size_t length);
int __wrap_chain_read(chain *c, void *buf, uint64_t offset, size_t length)
{
    const fault *f = strike(c, FAULT_READ, offset, length);
    return f ? -f->error : __real_chain_read(c, buf, offset, length);
}

int __real_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list);
int __wrap_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list);
int __wrap_chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                              unsigned owner, io_list *list)
{
    const fault *f = strike(c, FAULT_READ, offset, length);
    return f ? -f->error : __real_chain_prepare_read(c, buf, offset, length, owner, list);
}

int __real_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list);
int __wrap_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list);
int __wrap_chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list)
{
    const fault *f = strike(c, FAULT_WRITE, offset, length);
    if (!f)
        return __real_chain_prepare_write(c, buf, offset, length, owner, list);
    if (f->torn)
        chain_write(c, buf, offset, MIN(f->torn, length));
    return -f->error;
}

int __real_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_write_zeroes(chain *c, uint64_t offset, uint64_t length)
{
    const fault *f = strike(c, FAULT_CLEAR, offset, length);
    return f ? -f->error : __real_chain_write_zeroes(c, offset, length);
}

int __real_chain_discard(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_discard(chain *c, uint64_t offset, uint64_t length);
int __wrap_chain_discard(chain *c, uint64_t offset, uint64_t length)
{
    const fault *f = strike(c, FAULT_CLEAR, offset, length);
    return f ? -f->error : __real_chain_discard(c, offset, length);
}

int __real_chain_resize(chain *c, uint64_t size);
int __wrap_chain_resize(chain *c, uint64_t size);
int __wrap_chain_resize(chain *c, uint64_t size)
{
    fault_kind kind = size == chain_size(c) ? FAULT_PROBE : FAULT_RESIZE;
    const fault *f = strike(c, kind, 0, 0);
    return f ? -f->error : __real_chain_resize(c, size);
}

int __real_chain_prepare_flush(chain *c, unsigned owner, io_list *list);
int __wrap_chain_prepare_flush(chain *c, unsigned owner, io_list *list);
int __wrap_chain_prepare_flush(chain *c, unsigned owner, io_list *list)
{
    const fault *f = strike(c, FAULT_FLUSH, 0, 0);
    return f ? -f->error : __real_chain_prepare_flush(c, owner, list);
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
