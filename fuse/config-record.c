/*
 * config-record.c: which record each disk has (quorum/state-find.h).
 *
 * The directory that is named after the set has it as long as nobody moves, renames or
 * exchanges a replica. Else a record is used where it was found, in the directory of the set as
 * it was once; it is not moved, so that nothing can happen to it on the way. Journal and socket
 * are in the set's own.
 */
#include "fuse/config-internal.h"
#include "quorum/state-find.h"
#include <stdlib.h>
#include <string.h>

typedef struct wanted {
    unsigned n;
    state_shape shape;
    const char *names[VOTE_REPLICAS_MAX];
    char *sources[VOTE_REPLICAS_MAX];
    identity identities[VOTE_REPLICAS_MAX];
} wanted;

/* As the record has it: the real path, or what is shown of a server. */
static char *source_of(const replica_options *replica)
{
    if (chain_is_remote(replica->path))
        return path_printable(replica->path);
    char *real = realpath(replica->path, NULL);
    char *source = g_strdup(real ? real : replica->path);
    free(real);
    return source;
}

/* O1: what a guest wrote into a raw disk is no mark. */
static void look_at(const replica_options *replica, identity *ret)
{
    if (chain_is_remote(replica->path))
        identity_set_remote(ret, 0);
    else
        identity_look(replica->path, chain_names_qcow2(replica->path, replica->format),
                      ret);
}

static void wanted_init(wanted *w, const disk_options *d)
{
    *w = (wanted){.n = d->replicas->len};
    for (unsigned i = 0; i < w->n; i++) {
        const replica_options *replica = g_ptr_array_index(d->replicas, i);
        w->names[i] = replica->name;
        w->sources[i] = source_of(replica);
        look_at(replica, &w->identities[i]);
    }
    w->shape = (state_shape){.n = w->n,
                             .threshold = 1,
                             .names = w->names,
                             .sources = (const char *const *)w->sources,
                             .identities = w->identities};
}

static void wanted_clear(wanted *w)
{
    for (unsigned i = 0; i < w->n; i++)
        g_free(w->sources[i]);
}

static void G_GNUC_PRINTF(3, 4)
    add_note(GPtrArray *notes, const disk_options *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_ptr_array_add(notes, g_strdup_printf("disk '%s': %s", d->name, text));
}

/* What the set's own record cannot know. */
static void take_notes(disk_options *d, const state_found *found, GPtrArray *notes)
{
    for (unsigned i = 0; i < d->replicas->len; i++) {
        replica_options *replica = g_ptr_array_index(d->replicas, i);
        replica->behind = found->behind >> i & 1;
    }
    const replica_options *shared = g_ptr_array_index(d->replicas, found->shared);
    if (found->elsewhere)
        add_note(
            notes, d,
            "replica '%s' is also part of the set recorded in %s; most of that is not "
            "here, so this one has a record of its own",
            shared->name, found->elsewhere);
    if (found->cut)
        add_note(notes, d, "only %u directories were searched for its record",
                 STATE_FIND_DIRS);
}

/* O5: replicas of which nothing is known must not outvote one that is known to be right. */
static bool check_strangers(const disk_options *d, const state_found *found,
                            GError **error)
{
    if (!found->elsewhere || !found->strangers || d->read_only || d->force)
        return true;
    const replica_options *shared = g_ptr_array_index(d->replicas, found->shared);
    g_set_error(
        error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
        "disk '%s': replica '%s' is part of the set recorded in %s, most of which "
        "is not here; the others might outvote it (mount that set, or with -o ro; to "
        "make a new set of these, "
        "'quorumfs repair --from REPLICA' and mount with -o state-dir= of a new "
        "directory)",
        d->name, shared->name, found->elsewhere);
    return false;
}

bool config_find_record(disk_options *d, const char *state_dir, GPtrArray *notes,
                        GError **error)
{
    wanted w;
    state_found found;
    g_autofree char *base = g_path_get_dirname(state_dir);
    g_free(d->state_dir);
    d->state_dir = g_strdup(state_dir);
    g_clear_pointer(&d->state_name, g_free);
    if (d->replicas->len > VOTE_REPLICAS_MAX || d->replicas->len == 0)
        return true; /* refused later */
    wanted_init(&w, d);
    bool ok = state_find(base, state_dir, d->name, &w.shape, &found, error);
    wanted_clear(&w);
    if (!ok) {
        g_prefix_error(error, "disk '%s': ", d->name);
        return false;
    }
    if (found.dir) {
        g_free(d->state_dir);
        d->state_dir = g_steal_pointer(&found.dir);
        d->state_name = g_steal_pointer(&found.disk);
    } else {
        take_notes(d, &found, notes);
        ok = check_strangers(d, &found, error);
    }
    state_found_clear(&found);
    return ok;
}
