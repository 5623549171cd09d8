/*
 * state-find.c: see state-find.h.
 *
 * How well a record knows a replica, in points:
 *   3  it is as recorded (generation.h)
 *   2  the same file or image, changed; or one that cannot be looked at, by its source
 *   1  another file at the recorded path
 *   0  not at all, or its mark says that it belongs to another set since
 * Points are added, so that of two records of a set the later one wins: of what was written
 * since, the earlier one knows only that it changed.
 *
 * Directories and files that are not ours alone are passed over: what is written there is
 * trusted.
 */
#include "quorum/state-find.h"
#include "quorum/state-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 256u /* looked at in one directory */

/* One record, as good as it is for the replicas that are looked for. */
typedef struct candidate {
    char *dir, *disk;
    unsigned points, known; /* `known`: replicas with any */
    bool half;              /* at least half of its replicas are known */
    bool exact;             /* all of its replicas are known, and there are no others */
    bool certain;           /* exact, and all are as recorded */
} candidate;

typedef struct search {
    const char *dir, *disk; /* preferred */
    const state_shape *shape;
    candidate best, second; /* `second`: as good as the best */
    state_found *found;
    unsigned behind_points;
} search;

static void candidate_clear(candidate *c)
{
    g_free(c->dir);
    g_free(c->disk);
    *c = (candidate){0};
}

/* ---- One record ------------------------------------------------------------------------- */

static bool is_ours(int fd, mode_t type)
{
    struct stat st;
    return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == type &&
           st.st_uid == geteuid() && (st.st_mode & 022) == 0;
}

static bool load_facts(int dir_fd, const char *name, state_facts *ret_facts)
{
    int fd =
        openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return false;
    g_autofree uint8_t *slot = g_malloc(STATE_SLOT_MAX);
    g_autofree state_facts *facts = g_new(state_facts, 1);
    bool any = false;
    for (unsigned k = 0; k < 2 && is_ours(fd, S_IFREG); k++) {
        if (file_read_full(fd, slot, STATE_SLOT_MAX, k * STATE_SLOT_MAX) != 0 ||
            state_decode_slot(slot, facts) != STATE_SLOT_VALID)
            continue;
        if (!any || facts->sequence > ret_facts->sequence)
            *ret_facts = *facts;
        any = true;
    }
    close(fd);
    return any;
}

/* What was not looked at, the data file and the size of a server's disk, is as recorded. */
static identity complete(const identity *recorded, const identity *now)
{
    identity full = *now;
    full.has_data = recorded->has_data;
    full.data = recorded->data;
    if (now->kind == IDENTITY_REMOTE)
        full.top.size = recorded->top.size;
    return full;
}

static unsigned points_of(const state_facts *facts, unsigned k, const identity *now)
{
    const state_replica *record = &facts->replicas[k].record;
    const identity full = complete(&record->identity, now);
    generation_record recorded = {.identity = &record->identity,
                                  .clean = facts->clean,
                                  .replica = record->number,
                                  .generation = facts->generation};
    memcpy(recorded.set_id, facts->set_id, sizeof recorded.set_id);
    generation_verdict verdict = generation_compare(&recorded, &full);
    bool own = memcmp(now->mark.set_id, facts->set_id, sizeof facts->set_id) == 0 &&
               now->mark.replica == record->number;
    if (generation_trusted(verdict))
        return 3;
    if (now->kind == IDENTITY_NONE)
        return 2;
    if (verdict == GENERATION_SET)
        return 0;
    return own || identity_same_file(&record->identity, now) ? 2 : 1;
}

/* A record that is not this set's may still know that a replica missed changes. */
static void note_elsewhere(search *s, const state_facts *facts, const int *map,
                           const char *dir, const char *disk)
{
    bool good = false, strangers = false;
    for (unsigned i = 0; i < s->shape->n; i++) {
        strangers |= map[i] < 0;
        if (map[i] < 0)
            continue;
        const identity *now = &s->shape->identities[i];
        unsigned points = points_of(facts, (unsigned)map[i], now);
        const state_replica *record = &facts->replicas[map[i]].record;
        if (points == 3 && record->state != STATE_IN_SYNC)
            s->found->behind |= UINT64_C(1) << i;
        good |=
            points == 3 && record->state == STATE_IN_SYNC && now->kind != IDENTITY_REMOTE;
        strangers |= points < 3;
        if (points <= s->behind_points || points < 2)
            continue;
        s->behind_points = points;
        s->found->shared = i;
        g_free(s->found->elsewhere);
        s->found->elsewhere = state_path(dir, disk);
    }
    s->found->strangers |= good && strangers;
}

static bool is_preferred(const search *s, const candidate *c)
{
    return strcmp(c->dir, s->dir) == 0 && strcmp(c->disk, s->disk) == 0;
}

/* -1: a is worse; 0: as good; 1: better. */
static int compare(const search *s, const candidate *a, const candidate *b)
{
    if (a->points != b->points)
        return a->points > b->points ? 1 : -1;
    if (a->exact != b->exact)
        return a->exact ? 1 : -1;
    return is_preferred(s, a) - is_preferred(s, b);
}

static void enter(search *s, candidate *c)
{
    int order = s->best.dir ? compare(s, c, &s->best) : 1;
    if (order < 0) {
        candidate_clear(c);
    } else if (order == 0) {
        candidate_clear(&s->second);
        s->second = *c;
    } else {
        candidate_clear(&s->second);
        candidate_clear(&s->best);
        s->best = *c;
    }
}

static void look_at(search *s, int dir_fd, const char *dir, const char *name)
{
    int map[VOTE_REPLICAS_MAX];
    g_autofree state_facts *facts = g_new(state_facts, 1);
    if (!load_facts(dir_fd, name, facts))
        return;
    candidate c = {.dir = g_strdup(dir),
                   .disk = g_strndup(name, strlen(name) - strlen(".state"))};
    if (state_match(facts, s->shape, map) == 0) {
        candidate_clear(&c);
        return;
    }
    for (unsigned i = 0; i < s->shape->n; i++) {
        unsigned points =
            map[i] < 0 ? 0 : points_of(facts, (unsigned)map[i], &s->shape->identities[i]);
        c.points += points;
        c.known += points > 0;
    }
    c.half = c.known > 0 && 2 * c.known >= facts->n;
    c.exact = c.known == facts->n && c.known == s->shape->n;
    c.certain = c.exact && c.points == 3 * c.known;
    if (c.half) {
        enter(s, &c);
        return;
    }
    note_elsewhere(s, facts, map, c.dir, c.disk);
    candidate_clear(&c);
}

/* ---- All of them ------------------------------------------------------------------------ */

static int open_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && is_ours(fd, S_IFDIR))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Whatever directory the names come from, they are opened in the one that was checked. */
static void look_into(search *s, const char *dir)
{
    int fd = open_dir(dir);
    GDir *names = fd >= 0 ? g_dir_open(dir, 0, NULL) : NULL;
    const char *name;
    for (unsigned k = 0; k < FILES_MAX && names && (name = g_dir_read_name(names)); k++)
        if (g_str_has_suffix(name, ".state") && name[0] != '.')
            look_at(s, fd, dir, name);
    if (names)
        g_dir_close(names);
    if (fd >= 0)
        close(fd);
}

static void look_everywhere(search *s, const char *base)
{
    GDir *names = g_dir_open(base, 0, NULL);
    const char *name;
    for (unsigned seen = 0; names && (name = g_dir_read_name(names)); seen++) {
        s->found->cut = seen == STATE_FIND_DIRS;
        if (s->found->cut)
            break;
        g_autofree char *dir = g_build_filename(base, name, NULL);
        look_into(s, dir);
    }
    if (names)
        g_dir_close(names);
}

static void look_at_preferred(search *s)
{
    g_autofree char *name = g_strdup_printf("%s.state", s->disk);
    int fd = open_dir(s->dir);
    if (fd < 0)
        return;
    look_at(s, fd, s->dir, name);
    close(fd);
}

/* What was noted on the way counts only where nothing was found. */
static bool conclude(search *s, GError **error)
{
    state_found *found = s->found;
    if (s->second.dir) {
        g_set_error(error, STATE_ERROR, STATE_ERROR_TWO,
                    "its replicas are recorded as parts of two sets, %s/%s.state and "
                    "%s/%s.state (mount the replicas of one of them, or begin anew with "
                    "-o state-dir=)",
                    s->best.dir, s->best.disk, s->second.dir, s->second.disk);
        return false;
    }
    if (s->best.dir) {
        state_found_clear(found);
        found->dir = g_steal_pointer(&s->best.dir);
        found->disk = g_steal_pointer(&s->best.disk);
    }
    return true;
}

bool state_find(const char *base, const char *dir, const char *disk,
                const state_shape *shape, state_found *ret_found, GError **error)
{
    *ret_found = (state_found){0};
    search s = {.dir = dir, .disk = disk, .shape = shape, .found = ret_found};
    look_at_preferred(&s);
    if (!s.best.certain) {
        candidate_clear(&s.best);
        state_found_clear(ret_found);
        s.behind_points = 0;
        look_everywhere(&s, base);
    }
    bool ok = conclude(&s, error);
    candidate_clear(&s.best);
    candidate_clear(&s.second);
    if (!ok)
        state_found_clear(ret_found);
    return ok;
}

void state_found_clear(state_found *found)
{
    g_free(found->dir);
    g_free(found->disk);
    g_free(found->elsewhere);
    *found = (state_found){0};
}
