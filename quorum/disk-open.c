/*
 * disk-open.c: from what was asked for to a disk (O1 to O3, O5).
 *
 * A disk is writable only if every replica's top layer can be written. If one cannot,
 * those that were opened for writing are opened again for reading, so that their locks
 * and decoders are a reader's. No file is changed before everything else is known to be
 * right (begin_writing); then the replicas are made ready one after the other, and if one
 * cannot be, those before it keep their repaired tables, which say the same of the disk.
 */
#include "quorum/disk-internal.h"
#include <errno.h>
#include <string.h>

GQuark disk_error_quark(void)
{
    return g_quark_from_static_string("quorumfs-disk-error");
}

replica_options *replica_options_new(void)
{
    replica_options *options = g_new0(replica_options, 1);
    options->decoder = -1;
    return options;
}

void replica_options_free(replica_options *options)
{
    if (!options)
        return;
    g_free(options->name);
    g_free(options->source);
    g_free(options->path);
    g_free(options->format);
    g_free(options->password_file);
    g_free(options);
}

replica_options *replica_options_copy(const replica_options *options)
{
    replica_options *copy = g_memdup2(options, sizeof *options);
    copy->name = g_strdup(options->name);
    copy->source = g_strdup(options->source);
    copy->path = g_strdup(options->path);
    copy->format = g_strdup(options->format);
    copy->password_file = g_strdup(options->password_file);
    return copy;
}

static void replica_options_destroy(void *options)
{
    replica_options_free(options);
}

disk_options *disk_options_new(void)
{
    disk_options *options = g_new0(disk_options, 1);
    options->replicas = g_ptr_array_new_with_free_func(replica_options_destroy);
    options->allow_dirs = g_ptr_array_new_with_free_func(g_free);
    return options;
}

void disk_options_free(disk_options *options)
{
    if (!options)
        return;
    g_free(options->name);
    g_free(options->file);
    g_free(options->alias);
    g_free(options->state_dir);
    g_free(options->state_name);
    g_ptr_array_unref(options->replicas);
    g_ptr_array_unref(options->allow_dirs);
    g_free(options);
}

static const replica_options *nth(const disk_options *options, unsigned i)
{
    return g_ptr_array_index(options->replicas, i);
}

static bool refuse_repairs(const char *reason, GError **error)
{
    g_set_error(
        error, DISK_ERROR, DISK_ERROR_OPTIONS,
        "on-divergence=repair needs a disk that can be written to%s%s (mount it with "
        "on-divergence=log)",
        reason ? ": " : "", reason ? reason : "");
    return false;
}

static bool check_repairs(const disk_options *options, GError **error)
{
    unsigned n = options->replicas->len;
    if (!options->on_divergence_repair)
        return true;
    if (options->read_only)
        return refuse_repairs(NULL, error);
    if (options->threshold == 0 || 2 * options->threshold > n)
        return true;
    g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                "on-divergence=repair needs a majority, and %u of %u is none (give a "
                "threshold of %u or more)",
                options->threshold, n, n / 2 + 1);
    return false;
}

static bool check_options(const disk_options *options, GError **error)
{
    unsigned n = options->replicas->len;
    if (n < 1 || n > VOTE_REPLICAS_MAX) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "%u replicas (a disk has between 1 and %u)", n, VOTE_REPLICAS_MAX);
        return false;
    }
    if (options->threshold > INT_MAX) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "Parameter 'vote-threshold' expects a value >= 1");
        return false;
    }
    if (options->threshold > n) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "threshold may not exceed children count (%u of %u)",
                    options->threshold, n);
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < i; k++) {
            if (g_strcmp0(nth(options, i)->name, nth(options, k)->name) != 0)
                continue;
            g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                        "two replicas are named '%s'", nth(options, i)->name);
            return false;
        }
    }
    return check_repairs(options, error) && disk_pattern_check(options, error);
}

/* A directory that cannot be found now makes its replica fail to open, which says why. */
static path_policy *make_policy(const disk *d, const disk_options *options,
                                GError **error)
{
    path_policy *policy = path_policy_new();
    for (unsigned i = 0; i < d->n; i++) {
        const char *path = nth(options, i)->path;
        if (!chain_is_remote(path))
            path_policy_add_image(policy, path, NULL);
    }
    for (unsigned i = 0; i < options->allow_dirs->len; i++)
        if (!path_policy_add_dir(policy, g_ptr_array_index(options->allow_dirs, i),
                                 error)) {
            path_policy_free(policy);
            return NULL;
        }
    return policy;
}

chain *disk_open_chain(const replica_options *replica, const path_policy *policy,
                       bool writable, GError **error)
{
    chain_options wanted = {
        .path = replica->path,
        .format = replica->format,
        .decoder = (chain_decoder)replica->decoder,
        .writable = writable,
        .password_file = replica->password_file,
        .timeout_ms = replica->timeout_ms,
        .policy = policy,
    };
    chain *c = chain_open(&wanted, error);
    if (!c)
        g_prefix_error(error, "replica '%s': ", replica->name);
    return c;
}

chain *disk_set_chain(disk *d, unsigned i, chain *c)
{
    disk_replica *replica = &d->replicas[i];
    g_rw_lock_writer_lock(&d->attach_lock);
    chain *old = replica->chain;
    replica->chain = c;
    if (c) {
        replica->file = g_intern_string(chain_get_layer(c, 0)->filename);
        replica->format = g_intern_string(chain_get_layer(c, 0)->format);
        replica->decoder = g_intern_string(chain_get_layer(c, 0)->decoder);
    }
    g_rw_lock_writer_unlock(&d->attach_lock);
    return old;
}

/* Without this, every replica that can be written keeps a writer's lock for nothing. */
static bool reopen_read_only(disk *d, GError **error)
{
    d->writable = false;
    for (unsigned i = 0; i < d->n; i++) {
        if (!d->replicas[i].chain || !chain_writable(d->replicas[i].chain))
            continue;
        chain_close(disk_set_chain(d, i, NULL));
        chain *c = disk_open_chain(d->replicas[i].options, d->policy, false, error);
        if (!c)
            return false;
        disk_set_chain(d, i, c);
    }
    return true;
}

/* Of the first replica that says one. */
static void set_read_only_reason(disk *d, unsigned i, const char *reason)
{
    if (!d->read_only_reason)
        d->read_only_reason =
            g_strdup_printf("replica '%s': %s", d->replicas[i].name, reason);
}

/* It is left out: the others are enough, and the operator wants that. */
static void leave_out(disk *d, unsigned i, const GError *why)
{
    const char *before = d->degraded_reason;
    char *reason =
        g_strdup_printf("%s%s%s", before ? before : "", before ? "; " : "", why->message);
    g_free(d->degraded_reason);
    d->degraded_reason = reason;
    g_mutex_lock(&d->state_lock);
    replica_transition(d, i, REPLICA_EVENT_LOST);
    g_mutex_unlock(&d->state_lock);
}

static bool open_chains(disk *d, const disk_options *options, GError **error)
{
    bool all_writable = true;
    unsigned opened = 0;
    g_autoptr(GError) first = NULL;
    for (unsigned i = 0; i < d->n; i++) {
        g_autoptr(GError) why = NULL;
        chain *c =
            disk_open_chain(d->replicas[i].options, d->policy, !options->read_only, &why);
        if (!c) {
            leave_out(d, i, why);
            if (!first)
                first = g_steal_pointer(&why);
            if (!options->degraded_warn)
                break;
            continue;
        }
        opened++;
        disk_set_chain(d, i, c);
        if (options->read_only || chain_writable(c))
            continue;
        set_read_only_reason(d, i, chain_read_only_reason(c));
        all_writable = false;
    }
    if (first && (opened < d->threshold || !options->degraded_warn)) {
        g_propagate_error(error, g_steal_pointer(&first));
        return false;
    }
    d->writable = !options->read_only && all_writable;
    return all_writable || reopen_read_only(d, error);
}

static void set_sizes_error(const disk *d, GError **error)
{
    const disk_replica *first = NULL, *other = NULL;
    for (unsigned i = 0; i < d->n && !other; i++) {
        const disk_replica *replica = &d->replicas[i];
        if (replica->chain && !first)
            first = replica;
        else if (replica->chain && chain_size(replica->chain) != chain_size(first->chain))
            other = replica;
    }
    g_set_error(error, DISK_ERROR, DISK_ERROR_SIZES,
                "replica '%s': has %" G_GUINT64_FORMAT
                " bytes where replica '%s' has %" G_GUINT64_FORMAT
                " (all must be equal; see 'qemu-img resize')",
                other->name, chain_size(other->chain), first->name,
                chain_size(first->chain));
}

/* Two sizes may be those of a resize that a crash cut off; the record tells (open_state). */
static bool check_chains(disk *d, GError **error)
{
    chain *chains[VOTE_REPLICAS_MAX] = {0};
    unsigned n = 0;
    for (unsigned i = 0; i < d->n; i++) {
        chains[n] = d->replicas[i].chain;
        n += chains[n] != NULL;
    }
    if (!chain_check_distinct(chains, n, error))
        return false;
    uint64_t size = chain_size(chains[0]), other = size;
    for (unsigned i = 1; i < n; i++) {
        uint64_t its = chain_size(chains[i]);
        if (other == size && d->writable)
            other = its;
        if (its == size || its == other)
            continue;
        set_sizes_error(d, error);
        return false;
    }
    atomic_init(&d->size, MAX(size, other));
    d->other_size = MIN(size, other);
    return true;
}

/* A replica that cannot be made ready, say because its refcounts are beyond repair, can be
 * read all the same. */
static bool begin_writing(disk *d, GError **error)
{
    for (unsigned i = 0; d->writable && i < d->n; i++) {
        g_autoptr(GError) refused = NULL;
        chain *c = d->replicas[i].chain;
        if (!c || chain_begin_writing(c, &refused))
            continue;
        set_read_only_reason(d, i, refused->message);
        return reopen_read_only(d, error) && check_chains(d, error);
    }
    return true;
}

static void replica_init(disk_replica *replica, const disk_options *options, unsigned i)
{
    replica_options *copy = replica_options_copy(nth(options, i));
    if (copy->decoder < 0)
        copy->decoder = (int)options->decoder;
    if (!copy->timeout_ms)
        copy->timeout_ms = options->timeout_ms;
    replica->name = g_strdup(copy->name);
    replica->source = g_intern_string(copy->source);
    replica->options = copy;
    replica->timeout_ms = copy->timeout_ms ? copy->timeout_ms : DISK_TIMEOUT_DEFAULT_MS;
    replica->format = copy->format ? g_intern_string(copy->format) : "";
    replica->decoder = "";
}

static disk *disk_new(const disk_options *options, journal *records)
{
    disk *d = g_new0(disk, 1);
    d->name = g_strdup(options->name);
    d->file = g_strdup(options->file);
    d->n = options->replicas->len;
    d->threshold = options->threshold ? options->threshold : d->n / 2 + 1;
    d->read_pattern = options->read_pattern;
    d->blkverify = options->blkverify;
    d->journal = records;
    d->offline = options->offline;
    d->range_lock = rangelock_new();
    d->scrub = scrub_new();
    g_mutex_init(&d->state_lock);
    g_cond_init(&d->recorded);
    g_mutex_init(&d->record_lock);
    g_mutex_init(&d->flush_turns.lock);
    g_cond_init(&d->flush_turns.gathered);
    g_mutex_init(&d->mark_lock);
    g_rw_lock_init(&d->attach_lock);
    g_mutex_init(&d->rejoin_lock);
    g_cond_init(&d->rejoin_wake);
    d->replicas = g_new0(disk_replica, d->n);
    for (unsigned i = 0; i < d->n; i++)
        replica_init(&d->replicas[i], options, i);
    atomic_init(&d->in_sync, disk_all_replicas(d));
    atomic_init(&d->partly, 0);
    atomic_init(&d->removed, 0);
    return d;
}

/* Why replicas have two sizes: no resize is on record. */
static bool is_unexplained(const GError *error)
{
    return g_error_matches(error, STATE_ERROR, STATE_ERROR_SIZE) ||
           g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_BROKEN) ||
           g_error_matches(error, STATE_ERROR, STATE_ERROR_VOID_OTHER);
}

/* What is recorded of the replicas, and what follows from it. */
static bool open_state(disk *d, const disk_options *options, GError **error)
{
    bool whole;
    g_autoptr(GError) refused = NULL;
    bool opened = disk_state_open(d, options, &refused);
    uint64_t from, to;
    bool explained = opened ? d->store && state_get_resize(d->store, &from, &to)
                            : !is_unexplained(refused);
    if (d->other_size != disk_size(d) && !explained) {
        set_sizes_error(d, error);
        return false;
    }
    if (!opened) {
        g_propagate_error(error, g_steal_pointer(&refused));
        return false;
    }
    if (!disk_admit(d, options, &whole, error))
        return false;
    if (!whole && d->writable)
        return reopen_read_only(d, error) && check_chains(d, error);
    return disk_state_begin(d, error);
}

/* What was forced is there to be looked at; else what cannot be done is not promised. */
static bool begin_repairing(disk *d, const disk_options *options, GError **error)
{
    d->on_divergence_repair = options->on_divergence_repair && d->writable;
    if (d->on_divergence_repair == options->on_divergence_repair || options->force)
        return true;
    return refuse_repairs(d->read_only_reason, error);
}

disk *disk_open(const disk_options *options, journal *records, GError **error)
{
    if (!check_options(options, error))
        return NULL;
    disk *d = disk_new(options, records);
    d->policy = make_policy(d, options, error);
    if (d->policy && open_chains(d, options, error) && check_chains(d, error) &&
        open_state(d, options, error) && begin_writing(d, error) &&
        disk_resize_resume(d, error) && begin_repairing(d, options, error)) {
        if (!d->writable)
            disk_state_end(d);
        if (disk_members(d) & ~disk_takers(d))
            disk_wait_for_all(d);
        if (!d->offline)
            disk_worker_start(d);
        for (unsigned i = 0; i < d->n; i++)
            disk_rejoin_start(d, i);
        return d;
    }
    disk_free(d, true);
    return NULL;
}
