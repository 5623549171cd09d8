/*
 * disk-state.c: what a disk remembers across crashes and restarts, tied to its replicas
 * (O5, W2, W5). The storage is state.h's; its header tells in which order it is used.
 *
 * - Without a state directory (offline commands) nothing is remembered.
 * - If the record cannot be believed (broken, of other replicas, or every replica was changed
 *   behind our back) it is void: that is journalled, and the disk starts as on a first mount.
 * - A replica that alone is not what is recorded (generation.h) is stale as a whole, and so is
 *   one that was out when the disk was closed: what a failed flush lost is not known (W4).
 * - Where nothing is recorded, images that say that they are behind the others are so, too.
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

static void fill_shape(const disk *d, uint64_t size, const identity *now,
                       shape_names *ret)
{
    for (unsigned i = 0; i < d->n; i++) {
        ret->names[i] = d->replicas[i].name;
        const chain *c = d->replicas[i].chain; /* without one it is known by its name */
        ret->sources[i] =
            c ? chain_get_layer(c, 0)->filename : d->replicas[i].options->path;
    }
    ret->shape = (state_shape){.size = size,
                               .n = d->n,
                               .threshold = d->threshold,
                               .names = ret->names,
                               .sources = ret->sources,
                               .identities = now};
}

static const char *name_in(const disk_options *options)
{
    return options->state_name ? options->state_name : options->name;
}

static bool is_void(const GError *error)
{
    return g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_BROKEN) ||
           g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_OTHER);
}

static bool reset_store(disk *d, const disk_options *options, const char *why,
                        GError **error)
{
    shape_names names;
    g_autofree char *action = g_strdup_printf("recorded state is void: %s", why);
    disk_journal(d, (journal_record){
                        .event = JOURNAL_REPLICA_STATE, .op = "open", .action = action});
    state_close(g_steal_pointer(&d->store));
    fill_shape(d, disk_size(d), NULL, &names);
    d->store = state_reset(options->state_dir, name_in(options), &names.shape, error);
    return d->store != NULL;
}

static bool open_store(disk *d, const disk_options *options, const identity *now,
                       GError **error)
{
    shape_names names;
    GError *refused = NULL;
    fill_shape(d, disk_size(d), now, &names);
    names.shape.resize_from = d->other_size;
    names.shape.resize_to = disk_size(d);
    d->store = state_open(options->state_dir, name_in(options), &names.shape, &refused);
    if (d->store)
        return true;
    if (d->other_size != disk_size(d)) { /* void: there is nothing that explains it */
        g_propagate_error(error, refused);
        return false;
    }
    bool ok = is_void(refused) && reset_store(d, options, refused->message, error);
    if (!is_void(refused))
        g_propagate_error(error, g_steal_pointer(&refused));
    g_clear_error(&refused);
    return ok;
}

/* Of one that is out of reach nothing, which leaves what is recorded. */
static bool read_identity(disk *d, unsigned i, identity *ret, GError **error)
{
    disk_replica *replica = &d->replicas[i];
    g_clear_pointer(&replica->identity, identity_source_close);
    if (!replica->chain)
        return true;
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

static uint64_t present(const disk *d)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < d->n; i++)
        set |= (uint64_t)(d->replicas[i].chain != NULL) << i;
    return set;
}

/* How the replicas stand to the record. */
typedef struct found_set {
    generation_verdict verdicts[VOTE_REPLICAS_MAX];
    uint64_t foreign; /* not to be trusted: stale as a whole */
} found_set;

/* Those of the set with that verdict. */
static uint64_t with_verdict(const disk *d, const found_set *found,
                             generation_verdict verdict)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < d->n; i++)
        if (found->verdicts[i] == verdict)
            set |= UINT64_C(1) << i;
    return set;
}

static void compare_with_record(const disk *d, const identity *now, found_set *ret)
{
    *ret = (found_set){0};
    for (unsigned i = 0; i < d->n; i++) {
        state_replica record;
        generation_record recorded;
        if (!d->replicas[i].chain)
            continue; /* when it comes back (rejoin.c) */
        state_get_generation(d->store, i, &record, &recorded);
        ret->verdicts[i] = generation_compare(&recorded, &now[i]);
        if (!generation_trusted(ret->verdicts[i]))
            ret->foreign |= UINT64_C(1) << i;
    }
}

/* A first mount: nothing is known but what the images say of each other, and other records of
 * them. */
static void compare_marks(const disk *d, const identity *now, found_set *ret)
{
    *ret = (found_set){.foreign = generation_behind(now, d->n, d->threshold)};
    for (unsigned i = 0; i < d->n; i++) {
        if (disk_has_bit(ret->foreign, i))
            ret->verdicts[i] = GENERATION_BEHIND;
        else if (d->replicas[i].options->behind)
            ret->verdicts[i] = GENERATION_ELSEWHERE;
        if (!generation_trusted(ret->verdicts[i]))
            ret->foreign |= UINT64_C(1) << i;
    }
}

static void journal_opening(disk *d, const char *action)
{
    disk_journal(d, (journal_record){
                        .event = JOURNAL_REPLICA_STATE, .op = "open", .action = action});
}

/* Nobody is what is recorded. If all have been moved, mark and all, the record tells more of
 * them than nothing: it forgets nobody's missed changes. */
static bool judge_strangers(disk *d, const disk_options *options, const identity *now,
                            found_set *found, GError **error)
{
    uint64_t all = present(d), fresh = with_verdict(d, found, GENERATION_NEW);
    if (with_verdict(d, found, GENERATION_MOVED) == all) {
        journal_opening(d, "all replicas were moved: recorded state is kept");
        found->foreign = 0;
        return true;
    }
    if (d->other_size != disk_size(d)) {
        g_set_error(error, STATE_ERROR, STATE_ERROR_SIZE, "every replica was changed");
        return false;
    }
    if (!reset_store(d, options, "every replica was changed", error))
        return false;
    compare_marks(d, now, found);
    for (unsigned i = 0; i < d->n && fresh != all; i++)
        if (disk_has_bit(fresh, i))
            found->verdicts[i] = GENERATION_NEW;
    found->foreign |= fresh != all ? fresh : 0;
    return true;
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
    if (rangeset_count(&replica->missed) > 0) /* one that failed stays so */
        replica_transition(d, i, REPLICA_EVENT_CHANGE_FAILED);
}

static void journal_foreign(disk *d, unsigned i, generation_verdict verdict)
{
    bool trusted = generation_trusted(verdict);
    journal_loser loser = {.replica = d->replicas[i].name, .error = ESTALE};
    g_autofree char *action =
        g_strdup_printf("%s%s", generation_reason(verdict),
                        trusted ? ": as recorded" : ": in-sync -> stale");
    disk_journal(d, (journal_record){.event = JOURNAL_REPLICA_STATE,
                                     .op = "open",
                                     .length = disk_size(d),
                                     .losers = &loser,
                                     .n_losers = trusted ? 0 : 1,
                                     .error = trusted ? 0 : ESTALE,
                                     .action = action});
}

static void load_replicas(disk *d, const found_set *found)
{
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        state_replica recorded;
        state_get_replica(d->store, i, &recorded);
        load_missed(
            d, i,
            disk_has_bit(found->foreign, i) || recorded.state == STATE_STALE_WHOLE ||
                recorded.state == STATE_FAILED || recorded.state == STATE_REMOVED ||
                (state_is_new(d->store) && !d->replicas[i].chain));
    }
    g_mutex_unlock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(found->foreign, i) || found->verdicts[i] == GENERATION_COPY)
            journal_foreign(d, i, found->verdicts[i]);
}

/* A disk that is only read has nothing to remember that is not recorded already. Who looks at
 * it before a repair is told what the images say of each other, too. */
static bool has_record(const disk *d, const disk_options *options)
{
    g_autofree char *path = state_path(options->state_dir, name_in(options));
    return d->writable || d->offline || access(path, F_OK) == 0;
}

bool disk_state_open(disk *d, const disk_options *options, GError **error)
{
    if (!options->state_dir || !has_record(d, options))
        return true;
    g_autofree identity *now = g_new0(identity, d->n);
    if (!read_identities(d, now, error) || !open_store(d, options, now, error))
        return false;
    found_set found;
    if (state_is_new(d->store))
        compare_marks(d, now, &found);
    else
        compare_with_record(d, now, &found);
    if (!state_is_new(d->store) && found.foreign == present(d) &&
        !judge_strangers(d, options, now, &found, error))
        return false;
    load_replicas(d, &found);
    return true;
}

/* ---- Changing --------------------------------------------------------------------------- */

static const state_replica_state recorded_states[] = {
    [REPLICA_IN_SYNC] = STATE_IN_SYNC,        [REPLICA_STALE] = STATE_STALE_RANGES,
    [REPLICA_RESYNCING] = STATE_STALE_RANGES, [REPLICA_HUNG] = STATE_STALE_RANGES,
    [REPLICA_FAILED] = STATE_STALE_RANGES,    [REPLICA_REMOVED] = STATE_REMOVED,
};

/* state_lock is held. What a failed flush lost is found out from the intent bitmap, but not by
 * who only sees what the page cache kept (W4). */
static state_replica_state state_to_record(const disk_replica *replica)
{
    if (replica->state == REPLICA_FAILED && replica->suspect)
        return STATE_FAILED;
    return recorded_states[replica->state];
}

int disk_state_record(disk *d, unsigned i)
{
    state_replica recorded;
    if (!d->store)
        return 0;
    g_mutex_lock(&d->record_lock);
    state_get_replica(d->store, i, &recorded);
    g_mutex_lock(&d->state_lock);
    state_replica_state now = state_to_record(&d->replicas[i]);
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
    int failed = state_take_over(d->store);
    if (!failed)
        failed = record_all(d);
    if (!failed)
        failed = state_begin_session(d->store, now);
    if (failed)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO,
                    "the state directory cannot be written: %s", g_strerror(-failed));
    d->session = !failed;
    return !failed;
}

int disk_state_reshape(disk *d, const int *map)
{
    shape_names names;
    fill_shape(d, disk_size(d), NULL, &names);
    return state_reshape(d->store, &names.shape, map);
}

int disk_state_resize(disk *d, uint64_t size, uint64_t from, uint64_t to)
{
    shape_names names;
    uint64_t old_from, old_to;
    bool resizes = d->store && state_get_resize(d->store, &old_from, &old_to);
    if (!d->store || (state_size(d->store) == size && from == to && !resizes))
        return 0;
    int r = disk_mark(d);
    if (r < 0)
        return r;
    fill_shape(d, size, NULL, &names);
    names.shape.resize_from = from;
    names.shape.resize_to = to;
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
        atomic_load(&d->in_sync) == disk_members(d))
        state_clear(d->store, g_steal_pointer(&collection));
    state_collection_free(collection);
    rangelock_release(d->range_lock, &held);
}

/* ---- Closing ---------------------------------------------------------------------------- */

/* If a file cannot be looked at, the session does not count as closed cleanly; so with one that
 * hangs, or it would look changed the next time. One that failed keeps what is recorded. */
void disk_state_end(disk *d)
{
    g_autofree identity *now = g_new0(identity, d->n);
    bool known = d->session;
    for (unsigned i = 0; i < d->n && known; i++) {
        replica_state last = d->replicas[i].state;
        if (last == REPLICA_FAILED || last == REPLICA_REMOVED)
            continue;
        if (last == REPLICA_HUNG)
            known = false;
        else if (d->replicas[i].identity)
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
