/*
 * disk-admit.c: whether enough replicas are in sync for a disk to be opened (O5), after
 * their records were loaded.
 *
 * Where somewhere the quorum is missing, force makes the rest readable and no more. Writes
 * would reach the stale replicas too, and then no replica holds all that the others do: the
 * one that somebody copies over them as the good one might lack what was written since.
 * Read-only, the record stays, and the same verdict is given as often as it is asked for.
 */
#include "quorum/disk-internal.h"

static bool has_quorum(disk *d)
{
    g_mutex_lock(&d->state_lock);
    bool enough = disk_quorum_everywhere(d, disk_takers(d), 0, MAX(1, disk_size(d)));
    g_mutex_unlock(&d->state_lock);
    return enough;
}

/* "'b', 'c'" */
static char *name_stale(const disk *d)
{
    GString *names = g_string_new(NULL);
    uint64_t in_sync = atomic_load(&d->in_sync);
    for (unsigned i = 0; i < d->n; i++)
        if (!disk_has_bit(in_sync, i))
            g_string_append_printf(names, "%s'%s'", names->len ? ", " : "",
                                   d->replicas[i].name);
    return g_string_free(names, FALSE);
}

static void add_reason(disk *d, const char *why)
{
    const char *before = d->degraded_reason;
    char *reason = before ? g_strdup_printf("%s; %s", before, why) : g_strdup(why);
    g_free(d->degraded_reason);
    d->degraded_reason = reason;
}

static bool refuse(const char *why, const char *hint, GError **error)
{
    g_set_error(error, DISK_ERROR, DISK_ERROR_STALE, "%s (%s)", why, hint);
    return false;
}

static bool admit_without_quorum(disk *d, bool force, GError **error)
{
    g_autofree char *stale = name_stale(d);
    g_autofree char *why =
        g_strdup_printf("too few replicas are in sync for a threshold of %u: %s missed "
                        "changes, or changed while they were not mounted",
                        d->threshold, stale);
    if (!force)
        return refuse(
            why,
            "'quorumfs repair --from REPLICA' makes all like the good one; --force "
            "mounts it read-only, without what lacks a quorum",
            error);
    add_reason(d, why);
    add_reason(d, "what lacks a quorum is EIO");
    if (d->writable)
        d->read_only_reason = g_strdup("it lacks a quorum somewhere, and was forced");
    return true;
}

static bool admit_few(disk *d, const disk_options *options, unsigned in_sync,
                      GError **error)
{
    g_autofree char *stale = name_stale(d);
    g_autofree char *why =
        g_strdup_printf("%u of %u replicas are in sync, min-replicas is %u: %s missed "
                        "changes, changed while not mounted, or cannot be opened",
                        in_sync, d->n, options->min_replicas, stale);
    if (!options->degraded_warn && !options->force)
        return refuse(why, "-o degraded=warn mounts it, and they catch up", error);
    add_reason(d, why);
    return true;
}

bool disk_admit(disk *d, const disk_options *options, bool *ret_whole, GError **error)
{
    *ret_whole = options->offline || has_quorum(d);
    if (options->offline)
        return true;
    if (!*ret_whole)
        return admit_without_quorum(d, options->force, error);
    unsigned in_sync = disk_set_size(atomic_load(&d->in_sync));
    return in_sync >= options->min_replicas || admit_few(d, options, in_sync, error);
}
