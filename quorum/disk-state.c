/*
 * disk-state.c: what a disk remembers across crashes and restarts, tied to its replicas
 * (O5, W2, W5). The storage is state.h's; its header tells in which order it is used.
 *
 * - Without a state directory (offline commands) nothing is remembered.
 * - If the record cannot be believed (broken, of other replicas, or every replica was changed
 *   behind our back) it is void: that is journalled, and the disk starts as on a first mount.
 * - A replica that alone was changed is stale as a whole, and so is one that was out when the
 *   disk was closed: what a failed flush lost is not known (W4).
 * - Whether the disk may then be opened is disk-admit.c's.
 */
#include "quorum/disk-internal.h"
#include <errno.h>
#include <unistd.h>

/* ---- Opening ---------------------------------------------------------------------------- */

typedef struct shape_names {
    state_shape shape;
    const char *names[VOTE_REPLICAS_MAX], *sources[VOTE_REPLICAS_MAX];
} shape_names;

static void fill_shape(const disk *d, uint64_t size, shape_names *ret)
{
    for (unsigned i = 0; i < d->n; i++) {
        ret->names[i] = d->replicas[i].name;
        ret->sources[i] = chain_get_layer(d->replicas[i].chain, 0)->filename;
    }
    ret->shape = (state_shape){.size = size,
                               .n = d->n,
                               .threshold = d->threshold,
                               .names = ret->names,
                               .sources = ret->sources};
}

static bool is_void(const GError *error)
{
    return g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_BROKEN) ||
           g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_OTHER);
}

static bool reset_store(disk *d, const char *dir, const char *why, GError **error)
{
    shape_names names;
    g_autofree char *action = g_strdup_printf("recorded state is void: %s", why);
    disk_journal(d, (journal_record){
                        .event = JOURNAL_REPLICA_STATE, .op = "open", .action = action});
    state_close(g_steal_pointer(&d->store));
    fill_shape(d, disk_size(d), &names);
    d->store = state_reset(dir, d->name, &names.shape, error);
    return d->store != NULL;
}

static bool open_store(disk *d, const char *dir, GError **error)
{
    shape_names names;
    GError *refused = NULL;
    fill_shape(d, disk_size(d), &names);
    d->store = state_open(dir, d->name, &names.shape, &refused);
    if (d->store)
        return true;
    bool ok = is_void(refused) && reset_store(d, dir, refused->message, error);
    if (!is_void(refused))
        g_propagate_error(error, g_steal_pointer(&refused));
    g_clear_error(&refused);
    return ok;
}

static bool read_identity(disk *d, unsigned i, identity *ret, GError **error)
{
    disk_replica *replica = &d->replicas[i];
    g_clear_pointer(&replica->identity, identity_source_close);
    if (chain_get_layer(replica->chain, 0)->remote) { /* there is no file to look at */
        identity_set_remote(ret, disk_size(d));
        return true;
    }
    replica->identity = identity_source_open(replica->chain, error);
    if (!replica->identity)
        return false;
    int failed = identity_read(replica->identity, false, ret);
    if (failed)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "cannot be looked at: %s",
                    g_strerror(-failed));
    return !failed;
}

static bool read_identities(disk *d, identity *ret, GError **error)
{
    for (unsigned i = 0; i < d->n; i++) {
        if (read_identity(d, i, &ret[i], error))
            continue;
        g_prefix_error(error, "replica '%s': ", d->replicas[i].name);
        return false;
    }
    return true;
}

static bool is_foreign(const disk *d, unsigned i, const identity *now)
{
    state_replica recorded;
    state_get_replica(d->store, i, &recorded);
    identity_verdict verdict =
        identity_compare(&recorded.identity, now, state_was_clean(d->store));
    return verdict == IDENTITY_CHANGED || verdict == IDENTITY_OTHER;
}

static uint64_t find_foreign(const disk *d, const identity *now)
{
    uint64_t foreign = 0;
    for (unsigned i = 0; i < d->n && !state_is_new(d->store); i++)
        if (is_foreign(d, i, &now[i]))
            foreign |= UINT64_C(1) << i;
    return foreign;
}

/* What the replica missed, from the record. */
static void load_missed(disk *d, unsigned i, bool whole)
{
    disk_replica *replica = &d->replicas[i];
    uint64_t offset, length, from = 0;
    if (whole)
        rangeset_add(&replica->missed, 0, disk_size(d));
    while (!whole && state_next_stale(d->store, i, from, &offset, &length)) {
        rangeset_add(&replica->missed, offset, length);
        from = offset + length;
    }
    if (rangeset_count(&replica->missed) > 0)
        replica_transition(d, i, REPLICA_EVENT_CHANGE_FAILED);
}

static void journal_foreign(disk *d, unsigned i)
{
    journal_loser loser = {.replica = d->replicas[i].name, .error = ESTALE};
    disk_journal(d,
                 (journal_record){.event = JOURNAL_REPLICA_STATE,
                                  .op = "open",
                                  .length = disk_size(d),
                                  .losers = &loser,
                                  .n_losers = 1,
                                  .error = ESTALE,
                                  .action = "changed behind our back: in-sync -> stale"});
}

static void load_replicas(disk *d, uint64_t foreign)
{
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        state_replica recorded;
        state_get_replica(d->store, i, &recorded);
        load_missed(d, i,
                    disk_has_bit(foreign, i) || recorded.state == STATE_STALE_WHOLE ||
                        recorded.state == STATE_FAILED);
    }
    g_mutex_unlock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(foreign, i))
            journal_foreign(d, i);
}

/* A disk that is only read has nothing to remember that is not recorded already. */
static bool has_record(const disk *d, const char *dir)
{
    g_autofree char *path = state_path(dir, d->name);
    return d->writable || access(path, F_OK) == 0;
}

bool disk_state_open(disk *d, const char *dir, GError **error)
{
    if (!dir || !has_record(d, dir))
        return true;
    g_autofree identity *now = g_new0(identity, d->n);
    if (!read_identities(d, now, error) || !open_store(d, dir, error))
        return false;
    uint64_t foreign = find_foreign(d, now);
    if (foreign == disk_all_replicas(d)) {
        if (!reset_store(d, dir, "every replica was changed", error))
            return false;
        foreign = 0;
    }
    load_replicas(d, foreign);
    return true;
}

/* ---- Changing --------------------------------------------------------------------------- */

static const state_replica_state recorded_states[] = {
    [REPLICA_IN_SYNC] = STATE_IN_SYNC,
    [REPLICA_STALE] = STATE_STALE_RANGES,
    [REPLICA_RESYNCING] = STATE_STALE_RANGES,
    [REPLICA_FAILED] = STATE_FAILED,
};

int disk_state_record(disk *d, unsigned i)
{
    state_replica recorded;
    if (!d->store)
        return 0;
    g_mutex_lock(&d->record_lock);
    state_get_replica(d->store, i, &recorded);
    g_mutex_lock(&d->state_lock);
    state_replica_state now = recorded_states[d->replicas[i].state];
    g_mutex_unlock(&d->state_lock);
    bool same = now == recorded.state;
    recorded.state = now;
    int r = same ? 0 : state_set_replica(d->store, i, &recorded);
    g_mutex_unlock(&d->record_lock);
    return r;
}

/* Everything that is known to be stale is in the record before the first write. */
static int record_all(disk *d)
{
    int result = 0;
    for (unsigned i = 0; i < d->n && !result; i++) {
        const rangeset *missed = &d->replicas[i].missed;
        for (unsigned k = 0; k < rangeset_count(missed) && !result; k++) {
            rangeset_range range = rangeset_get(missed, k);
            result = state_mark_stale(d->store, i, range.start, range.end - range.start);
        }
        if (!result)
            result = disk_state_record(d, i);
    }
    return result;
}

bool disk_state_begin(disk *d, GError **error)
{
    if (!d->store || !d->writable)
        return true;
    g_autofree identity *now = g_new0(identity, d->n);
    if (!read_identities(d, now, error))
        return false;
    int failed = record_all(d);
    if (!failed)
        failed = state_begin_session(d->store, now);
    if (failed)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO,
                    "the state directory cannot be written: %s", g_strerror(-failed));
    d->session = !failed;
    return !failed;
}

int disk_state_resize(disk *d, uint64_t size)
{
    shape_names names;
    if (!d->store || state_size(d->store) == size)
        return 0;
    fill_shape(d, size, &names);
    return state_reshape(d->store, &names.shape, NULL);
}

void disk_state_tidy(disk *d)
{
    if (!d->session)
        return;
    rangelock_held held;
    disk_lock_size(d, &held); /* a collection is of this size */
    state_collection *collection = state_collect(d->store);
    if (collection && disk_flush_locked(d) == 0 &&
        atomic_load(&d->in_sync) == disk_all_replicas(d))
        state_clear(d->store, g_steal_pointer(&collection));
    state_collection_free(collection);
    rangelock_release(d->range_lock, &held);
}

/* ---- Closing ---------------------------------------------------------------------------- */

/* If a file cannot be looked at, the session does not count as closed cleanly. */
void disk_state_end(disk *d)
{
    g_autofree identity *now = g_new0(identity, d->n);
    bool known = d->session;
    for (unsigned i = 0; i < d->n && known; i++) {
        if (d->replicas[i].identity)
            known = identity_read(d->replicas[i].identity, true, &now[i]) == 0;
        else
            identity_set_remote(&now[i], disk_size(d));
    }
    if (known)
        state_end_session(d->store, now);
    d->session = false;
}

void disk_state_close(disk *d, bool flushed)
{
    if (flushed)
        disk_state_end(d);
    state_close(g_steal_pointer(&d->store));
    for (unsigned i = 0; i < d->n; i++)
        g_clear_pointer(&d->replicas[i].identity, identity_source_close);
}
