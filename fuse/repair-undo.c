/*
 * repair-undo.c: see repair-undo.h.
 *
 * Only what still is as the repair left it is touched: each range must hold what the repair
 * wrote, or, if a crash or an earlier undoing came between, what it held before. All of that is
 * checked on all disks before the first byte is put back, and again for each range when
 * its turn comes. The last record goes first, so that what was overwritten twice ends as it
 * was; in the first pass such a range is not looked at but for its last record.
 */
#include "fuse/repair-undo.h"
#include "fuse/cli.h"
#include "fuse/interrupt.h"
#include "quorum/offline.h"
#include "quorum/rangeset.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

typedef struct undoing {
    repair_set *set;
    disk_options *options;
    undo_reader *reader;
    disk *d; /* while it is open */
    unsigned map[VOTE_REPLICAS_MAX];
    uint8_t *buffer; /* of UNDO_LENGTH_MAX */
    uint64_t wanted; /* bytes that are to be put back */
    uint64_t unreadable;
    uint64_t done[VOTE_REPLICAS_MAX]; /* bytes put back, by replica of the disk */
} undoing;

static void undoing_free(void *opaque)
{
    undoing *u = opaque;
    undo_reader_free(u->reader);
    g_free(u->buffer);
    g_free(u);
}

static const char *replica_name(const undoing *u, unsigned i)
{
    const replica_options *replica = g_ptr_array_index(u->options->replicas, i);
    return replica->name;
}

/* ---- Checking ------------------------------------------------------------------------ */

typedef enum standing {
    HOLDS_NEW,   /* what the repair wrote */
    HOLDS_OLD,   /* what was there before */
    HOLDS_OTHER, /* or cannot be read */
} standing;

static standing look(undoing *u, const undo_record *record)
{
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    chain *c = disk_chain(u->d, u->map[record->replica]);
    if (chain_read(c, u->buffer, record->offset, record->length) < 0)
        return HOLDS_OTHER;
    journal_digest(u->buffer, record->length, digest);
    if (memcmp(digest, record->new_sha256, sizeof digest) == 0)
        return HOLDS_NEW;
    bool old =
        !record->unreadable && memcmp(digest, record->old_sha256, sizeof digest) == 0;
    return old ? HOLDS_OLD : HOLDS_OTHER;
}

static bool say_changed(const undoing *u, const undo_record *record, const char *what)
{
    cli_error("disk '%s': replica '%s' holds something else at %" PRIu64 "+%zu than the "
              "repair wrote: it was changed since (%s)",
              u->options->name, replica_name(u, u->map[record->replica]), record->offset,
              record->length, what);
    return false;
}

static bool get_record(const undoing *u, size_t k, undo_record *ret_record)
{
    if (undo_reader_get(u->reader, k, ret_record) == 0)
        return true;
    cli_error("disk '%s': the saved blocks changed while they were being read",
              u->options->name);
    return false;
}

static bool check_records(undoing *u)
{
    rangeset later[VOTE_REPLICAS_MAX] = {0};
    bool good = true;
    for (size_t k = undo_reader_count(u->reader); k-- > 0 && good;) {
        undo_record record;
        good = get_record(u, k, &record);
        if (!good || record.unreadable) {
            u->unreadable += good ? record.length : 0;
            continue;
        }
        if (rangeset_add(&later[record.replica], record.offset, record.length) <
            record.length) {
            u->wanted += record.length;
            continue;
        }
        standing now = look(u, &record);
        u->wanted += now == HOLDS_NEW ? record.length : 0;
        if (now == HOLDS_OTHER)
            good = say_changed(u, &record, "nothing was put back");
    }
    for (unsigned i = 0; i < VOTE_REPLICAS_MAX; i++)
        rangeset_clear(&later[i]);
    return good;
}

static bool check_disk(undoing *u)
{
    g_autoptr(GError) error = NULL;
    undo_disk about;
    bool good = false;
    u->d = repair_set_look(u->set, u->options, &error);
    if (u->d) {
        repair_set_about(u->d, &about);
        good = undo_reader_match(u->reader, &about, u->map, &error);
    }
    if (!good)
        cli_error("%s", error->message);
    if (good && disk_offline_unreconciled(u->d) > 0) {
        cli_error("disk '%s': its last session ended without a close, and regions are to "
                  "be made equal first (repair it, or mount it once)",
                  u->options->name);
        good = false;
    }
    good = good && check_records(u);
    disk_close(g_steal_pointer(&u->d));
    return good;
}

/* ---- Putting back -------------------------------------------------------------------- */

static void tell_journal(const undoing *u, journal *records, const undo_record *record)
{
    const char *name = replica_name(u, u->map[record->replica]);
    journal_loser loser = {.replica = name, .has_sha256 = true};
    journal_record told = {.event = JOURNAL_REPAIR,
                           .disk = u->options->name,
                           .op = "undo",
                           .offset = record->offset,
                           .length = record->length,
                           .winner_replicas = &name,
                           .n_winner_replicas = 1,
                           .winner_has_sha256 = true,
                           .losers = &loser,
                           .n_losers = 1,
                           .action = "put back"};
    memcpy(told.winner_sha256, record->old_sha256, sizeof told.winner_sha256);
    memcpy(loser.sha256, record->new_sha256, sizeof loser.sha256);
    journal_append(records, &told);
}

static int put_back_record(undoing *u, const undo_record *record)
{
    unsigned i = u->map[record->replica];
    int r = undo_reader_old(u->reader, record, u->buffer);
    for (size_t at = 0; at < record->length && r == 0; at += DISK_REQUEST_MAX) {
        size_t length = MIN(DISK_REQUEST_MAX, record->length - at);
        r = disk_offline_put_back(u->d, i, record->offset + at, u->buffer + at, length,
                                  record->stale);
    }
    if (r < 0)
        cli_error("disk '%s': replica '%s' at %" PRIu64 "+%zu: %s (some was put back; "
                  "the same command goes on)",
                  u->options->name, replica_name(u, i), record->offset, record->length,
                  g_strerror(-r));
    return r;
}

static bool put_back_records(undoing *u, journal *records)
{
    for (size_t k = undo_reader_count(u->reader); k-- > 0;) {
        undo_record record;
        if (interrupt_signal || !get_record(u, k, &record))
            return false;
        standing now = record.unreadable ? HOLDS_OLD : look(u, &record);
        if (now == HOLDS_OLD)
            continue;
        if (now == HOLDS_OTHER)
            return say_changed(u, &record, "what came after it was put back");
        if (put_back_record(u, &record) < 0)
            return false;
        u->done[u->map[record.replica]] += record.length;
        tell_journal(u, records, &record);
    }
    return true;
}

static bool put_back_disk(undoing *u)
{
    g_autoptr(GError) error = NULL;
    journal *records;
    u->d = repair_set_begin(u->set, u->options, &records, &error);
    if (!u->d) {
        cli_error("%s", error->message);
        return false;
    }
    bool good = put_back_records(u, records);
    int closed = repair_set_end(g_steal_pointer(&u->d), records);
    if (closed < 0)
        cli_error("disk '%s': the last flush failed: %s", u->options->name,
                  g_strerror(-closed));
    return good && closed == 0;
}

/* ---- All disks ----------------------------------------------------------------------- */

/* Of one disk, if that was repaired; false after an error line. */
static bool add_disk(repair_set *set, const char *id, disk_options *options,
                     GPtrArray *all)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = repair_set_undo_path(set, id, options->name);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return true;
    undo_reader *reader = undo_reader_open(path, &error);
    if (!reader) {
        cli_error("%s", error->message);
        return false;
    }
    undoing *u = g_new0(undoing, 1);
    u->set = set;
    u->options = options;
    u->reader = reader;
    u->buffer = g_malloc(UNDO_LENGTH_MAX);
    g_ptr_array_add(all, u);
    return true;
}

static void print_result(const undoing *u, bool dry_run)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < u->options->replicas->len; i++)
        if (u->done[i] > 0)
            g_string_append_printf(text, "%s%s %" PRIu64 " bytes", text->len ? ", " : "",
                                   replica_name(u, i), u->done[i]);
    if (dry_run && u->wanted > 0)
        g_string_append_printf(text, "%" PRIu64 " bytes", u->wanted);
    const char *what = dry_run ? "would be put back" : "put back";
    if (text->len == 0)
        printf("%s: nothing to put back, all is as it was", u->options->name);
    else
        printf("%s: %s: %s", u->options->name, what, text->str);
    if (u->unreadable > 0)
        printf("; could not be read before the repair, and stay: %" PRIu64 " bytes",
               u->unreadable);
    putchar('\n');
    g_string_free(text, TRUE);
}

/* Part of a path, and nothing else. */
static bool is_id(const char *id)
{
    size_t length = strspn(id, "0123456789abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ-");
    return length > 0 && length < 64 && id[length] == '\0';
}

static bool find_disks(repair_set *set, const char *id, GPtrArray *all)
{
    const GPtrArray *disks = set->config->disks;
    bool good = is_id(id);
    for (guint i = 0; i < disks->len && good; i++)
        if (!add_disk(set, id, disks->pdata[i], all))
            return false;
    if (all->len > 0)
        return true;
    cli_error("no saved blocks '%s' of these images in %s (quorumfs repair --undo list "
              "tells which there are)",
              id, set->dir);
    return false;
}

int repair_undo(repair_set *set, const char *id, bool dry_run)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func(undoing_free);
    if (!find_disks(set, id, all))
        return CLI_UNREACHABLE;
    for (guint i = 0; i < all->len; i++)
        if (!check_disk(all->pdata[i]))
            return CLI_UNREACHABLE;
    for (guint i = 0; i < all->len; i++) {
        undoing *u = all->pdata[i];
        bool good = dry_run || u->wanted == 0 || put_back_disk(u);
        if (good || interrupt_signal)
            print_result(u, dry_run);
        if (!good)
            return interrupt_signal ? 128 + interrupt_signal : CLI_UNREACHABLE;
    }
    return CLI_OK;
}

/* ---- Listing ------------------------------------------------------------------------- */

static bool list_disk(const char *path, const char *id, const char *name)
{
    g_autoptr(GError) error = NULL;
    uint64_t bytes[VOTE_REPLICAS_MAX] = {0};
    undo_reader *reader = undo_reader_open(path, &error);
    if (!reader) {
        cli_error("%s", error->message);
        return false;
    }
    for (size_t k = 0; k < undo_reader_count(reader); k++) {
        undo_record record;
        if (undo_reader_get(reader, k, &record) == 0)
            bytes[record.replica] += record.length;
    }
    printf("%s %s:", id, name);
    const undo_disk *about = undo_reader_about(reader);
    for (unsigned i = 0, any = 0; i < about->n; i++)
        if (bytes[i] > 0)
            printf("%s %s %" PRIu64 " bytes", any++ ? "," : "", about->names[i],
                   bytes[i]);
    putchar('\n');
    undo_reader_free(reader);
    return true;
}

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a directory, sorted; empty if it is not there. */
static GPtrArray *list_names(const char *dir)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    GDir *d = g_dir_open(dir, 0, NULL);
    const char *name;
    while (d && (name = g_dir_read_name(d)))
        g_ptr_array_add(names, g_strdup(name));
    if (d)
        g_dir_close(d);
    g_ptr_array_sort(names, compare_names);
    return names;
}

int repair_undo_list(const repair_set *set)
{
    int code = CLI_OK;
    g_autofree char *all = repair_set_undo_path(set, NULL, NULL);
    g_autoptr(GPtrArray) ids = list_names(all);
    for (guint i = 0; i < ids->len; i++)
        for (guint k = 0; k < set->config->disks->len; k++) {
            const char *id = ids->pdata[i];
            const disk_options *options = set->config->disks->pdata[k];
            g_autofree char *path = repair_set_undo_path(set, id, options->name);
            if (g_file_test(path, G_FILE_TEST_EXISTS) &&
                !list_disk(path, id, options->name))
                code = CLI_UNREACHABLE;
        }
    return code;
}
