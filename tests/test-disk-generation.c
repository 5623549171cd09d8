/*
 * test-disk-generation.c: a disk of qcow2 replicas that were put back, exchanged, copied and
 * moved while it was closed or after a crash (O5), and what every moment of a session leaves
 * behind if it is the last one (W6).
 */
#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB  (1u << 20)
#define SIZE (2u * MIB)
#define N    3u

typedef struct set {
    const char *names[4]; /* of the replicas' files */
    unsigned n, threshold;
    bool read_only, degraded;
    journal *journal;
    disk *disk;
} set;

static void set_new(set *s)
{
    *s = (set){.names = {"a.qcow2", "b.qcow2", "c.qcow2"}, .n = N, .threshold = 2};
    support_run(
        "mkdir state; for r in a b c; do qemu-img create -q -f qcow2 $r.qcow2 %u; "
        "done",
        SIZE);
}

static disk *open_disk(set *s, GError **error)
{
    char *paths[4];
    for (unsigned i = 0; i < s->n; i++)
        paths[i] = support_path("%s", s->names[i]);
    disk_options *options = disk_rig_options(paths, s->n, "qcow2");
    options->threshold = s->threshold;
    options->read_only = s->read_only;
    options->degraded_warn = s->degraded;
    options->state_dir = support_path("state");
    disk *d = disk_open(options, s->journal, error);
    disk_options_free(options);
    for (unsigned i = 0; i < s->n; i++)
        g_free(paths[i]);
    return d;
}

/* A journal of its own for each opening. */
static void set_open(set *s)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = support_path("journal");
    unlink(path);
    s->journal = journal_open(path, 0, NULL, &error);
    cr_assert_not_null(s->journal);
    s->disk = open_disk(s, &error);
    cr_assert_not_null(s->disk, "%s", error ? error->message : "no error");
}

static void set_close(set *s)
{
    cr_assert_eq(disk_close(g_steal_pointer(&s->disk)), 0);
    journal_close(g_steal_pointer(&s->journal));
}

static void set_write(set *s, uint8_t byte)
{
    uint8_t data[4096];
    memset(data, byte, sizeof data);
    cr_assert_eq(disk_write(s->disk, 0, sizeof data, data), 0);
    cr_assert_eq(disk_flush(s->disk), 0);
}

static void session(set *s, uint8_t byte)
{
    set_open(s);
    set_write(s, byte);
    set_close(s);
}

/* A process that opens the disk, writes, and ends without closing anything. */
static void crash(set *s, uint8_t byte)
{
#if defined __SANITIZE_THREAD__
    cr_skip_test("no threads after a fork of a process that had some");
#endif
    pid_t child = fork();
    if (child == 0) {
        uint8_t data[4096];
        memset(data, byte, sizeof data);
        s->journal = NULL;
        disk *d = open_disk(s, NULL);
        _exit(!d || disk_write(d, 0, sizeof data, data) != 0 || disk_flush(d) != 0);
    }
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static char *said(void)
{
    return support_output("jq -r 'select(.op == \"open\") | .action' journal");
}

/* The disk is opened: what the journal says of it, "" for nothing, and of whom it says that
 * he is stale as a whole. */
static void expect_open(set *s, const char *says, const char *stale)
{
    set_open(s);
    disk_worker_stop(s->disk);
    g_autofree char *text = said();
    g_autofree char *who = support_output(
        "jq -j 'select(.op == \"open\" and .errno == %d) | .losers[].replica' journal",
        ESTALE);
    cr_assert(*says ? strstr(text, says) != NULL : *text == '\0', "'%s' is not in '%s'",
              says, text);
    cr_assert_str_eq(who, stale);
}

static void expect_byte(set *s, uint8_t byte)
{
    const void *data;
    cr_assert_eq(disk_read(s->disk, 0, 4096, &data), 0);
    cr_assert_eq(((const uint8_t *)data)[0], byte, "%d", ((const uint8_t *)data)[0]);
    cr_assert_eq(((const uint8_t *)data)[4095], byte);
}

static void catch_up(set *s)
{
    while (disk_resync_step(s->disk))
        ;
    cr_assert_eq(atomic_load(&s->disk->in_sync), disk_all_replicas(s->disk));
}

/* All hold the same, QEMU finds nothing to complain of, and the next open says nothing. */
static void expect_healed(set *s, uint8_t byte)
{
    catch_up(s);
    set_close(s);
    for (unsigned i = 0; i < s->n; i++)
        support_run("qemu-img check -q -f qcow2 %s && "
                    "qemu-img compare -q -f qcow2 -F qcow2 %s %s",
                    s->names[i], s->names[0], s->names[i]);
    expect_open(s, "", "");
    expect_byte(s, byte);
    set_close(s);
}

/* ---- Closed cleanly ---- */

Test(disk_generation, O5_a_disk_that_is_only_read_leaves_its_images_alone)
{
    set s;
    set_new(&s);
    support_run("sha256sum *.qcow2 > before");
    for (unsigned k = 0; k < 2; k++) {
        expect_open(&s, "", "");
        expect_byte(&s, 0);
        cr_assert_eq(disk_flush(s.disk), 0);
        set_close(&s);
    }
    support_run("sha256sum -c --quiet before");
}

Test(disk_generation, O5_an_old_copy_is_stale)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("cp -a b.qcow2 old");
    session(&s, 2);
    support_run("cp -a old b.qcow2"); /* the same inode */
    expect_open(&s, "is an older copy of itself: in-sync -> stale", "b");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
    session(&s, 3);
    support_run("mv old b.qcow2");
    expect_open(&s, "is an older copy of itself: in-sync -> stale", "b");
    expect_healed(&s, 3);
}

Test(disk_generation, O5_a_copy_taken_in_a_session_is_stale)
{
    set s;
    set_new(&s);
    set_open(&s);
    set_write(&s, 1);
    support_run("cp -a b.qcow2 hot");
    set_write(&s, 2);
    set_close(&s);
    support_run("mv hot b.qcow2");
    expect_open(&s, "taken while it was in use: in-sync -> stale", "b");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

Test(disk_generation, O5_an_empty_image_is_filled)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("qemu-img create -q -f qcow2 c.qcow2 %u", SIZE);
    expect_open(&s, "was made anew: in-sync -> stale", "c");
    expect_byte(&s, 1);
    expect_healed(&s, 1);
}

Test(disk_generation, O5_an_image_of_another_set_is_stale)
{
    set s, t;
    set_new(&s);
    session(&s, 1);
    support_run("mkdir first; mv *.qcow2 state first");
    set_new(&t);
    session(&t, 2);
    support_run("mv -f first/a.qcow2 first/c.qcow2 .; mv -f first/state/* state");
    expect_open(&s, "was written to as part of another set: in-sync -> stale", "b");
    expect_byte(&s, 1);
    expect_healed(&s, 1);
}

/* A record of its own, where nothing is known of the others: they say it themselves. */
Test(disk_generation, O5_without_a_record_the_marks_tell_who_is_behind)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("cp -a c.qcow2 old");
    session(&s, 2);
    support_run("mv old c.qcow2; rm state/*");
    expect_open(&s, "missed a session by the marks of the others: in-sync -> stale", "c");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

Test(disk_generation, O5_copies_that_kept_everything_are_recognised)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("cp -a b.qcow2 new && mv new b.qcow2"); /* another inode */
    expect_open(&s, "is a true copy of the file that is recorded: as recorded", "");
    set_close(&s);
    support_run("for r in a b c; do cp -a $r.qcow2 copy-$r; rm $r.qcow2; done");
    s.names[0] = "copy-c"; /* moved, renamed, and in another order */
    s.names[1] = "copy-a";
    s.names[2] = "copy-b";
    expect_open(&s, "is a true copy of the file that is recorded: as recorded", "");
    expect_byte(&s, 1);
    expect_healed(&s, 1);
}

/* qemu-img keeps the mark, so the times must tell. */
Test(disk_generation, O5_a_copy_that_was_changed_is_stale)
{
    static const char *const changes[] = {
        "qemu-io -f qcow2 -c 'write -P 9 0 4k' x >/dev/null",
        "qemu-img rebase -u -f qcow2 -b '' x",
        "qemu-img amend -f qcow2 -o lazy_refcounts=on x",
        "qemu-img snapshot -c s x",
        "qemu-img resize -q -f qcow2 x +1M; qemu-img resize -q -f qcow2 --shrink x 2M",
        "touch x",
    };
    set s;
    set_new(&s);
    session(&s, 1);
    for (unsigned k = 0; k < G_N_ELEMENTS(changes); k++) {
        support_run("cp -a b.qcow2 x; %s; mv x b.qcow2", changes[k]);
        expect_open(&s, "is another file, and may be older", "b");
        expect_byte(&s, 1);
        expect_healed(&s, 1);
        support_run("mv b.qcow2 x; ln x b.qcow2; %s", changes[k]);
        expect_open(&s, "changed behind our back", "b");
        expect_healed(&s, 1);
        support_run("rm x");
    }
}

Test(disk_generation, O5_a_neighbour_is_no_replica_twice)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("cp -a a.qcow2 c.qcow2");
    expect_open(&s, "is a copy of another replica of the set: in-sync -> stale", "c");
    expect_healed(&s, 1);
}

Test(disk_generation, O5_all_changed_is_void)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("for r in a b c; do qemu-io -f qcow2 -c 'write -P 7 0 4k' $r.qcow2; done "
                ">/dev/null");
    expect_open(&s, "recorded state is void: every replica was changed", "");
    expect_byte(&s, 7);
    set_close(&s);
}

/* Times that prove nothing, but marks that fit: what is recorded of them stays. */
Test(disk_generation, O5_all_moved_keep_their_record)
{
    set s;
    set_new(&s);
    session(&s, 1);
    set_open(&s);
    disk_worker_stop(s.disk);
    fault_add((fault){.chain = disk_chain(s.disk, 2), .kind = FAULT_WRITE, .error = EIO});
    set_write(&s, 2);
    fault_clear();
    set_close(&s);
    support_run("for r in a b c; do cp $r.qcow2 x; mv x $r.qcow2; done");
    expect_open(&s, "all replicas were moved: recorded state is kept", "");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

/* ---- Membership ---- */

Test(disk_generation, O5_one_exchanged_is_filled)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("qemu-img create -q -f qcow2 d.qcow2 %u", SIZE);
    s.names[1] = "d.qcow2";
    expect_open(&s, "is new in the set: in-sync -> stale", "b");
    expect_byte(&s, 1);
    expect_healed(&s, 1);
    session(&s, 2);
    s.names[1] = "b.qcow2"; /* it has been forgotten */
    expect_open(&s, "is new in the set: in-sync -> stale", "b");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

Test(disk_generation, O5_a_set_that_grows_and_shrinks_keeps_its_record)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("qemu-img create -q -f qcow2 d.qcow2 %u", SIZE);
    s.names[3] = "d.qcow2";
    s.n = 4;
    s.threshold = 3;
    expect_open(&s, "is new in the set: in-sync -> stale", "d");
    expect_healed(&s, 1);
    session(&s, 2);
    s.n = 2;
    s.threshold = 2;
    expect_open(&s, "", "");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

/* A slip of the pen, or a look at some of them: the record still has all of them after it. */
Test(disk_generation, O5_a_mount_that_is_refused_or_only_reads_forgets_nobody)
{
    set s;
    set_new(&s);
    s.threshold = 3;
    session(&s, 1);
    support_run("qemu-img create -q -f qcow2 d.qcow2 %u", SIZE);
    for (unsigned k = 0; k < 3; k++) {
        g_autoptr(GError) error = NULL;
        s.names[1] = k == 1 ? "c.qcow2" : "d.qcow2";
        s.n = k == 1 ? 2 : 3;
        s.threshold = k == 0 ? 3 : 2;
        s.read_only = k > 0;
        s.disk = open_disk(&s, &error);
        if (k == 0)
            cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_STALE));
        else
            set_close(&s);
        s = (set){.names = {"a.qcow2", "b.qcow2", "c.qcow2"}, .n = N, .threshold = 2};
        expect_open(&s, "", "");
        expect_byte(&s, 1);
        set_close(&s);
    }
}

/* Out of reach behind a link that leads nowhere: it is still the one that is recorded. */
Test(disk_generation, O5_who_is_absent_is_not_forgotten)
{
    set s;
    set_new(&s);
    support_run("ln -s c.qcow2 link");
    s.names[2] = "link";
    session(&s, 1);
    support_run("mv c.qcow2 away");
    s.degraded = true;
    set_open(&s);
    set_write(&s, 2);
    set_close(&s);
    support_run("mv away c.qcow2");
    set_open(&s);
    g_autofree char *text = said();
    cr_assert_str_eq(text, "");
    disk_worker_stop(s.disk);
    expect_byte(&s, 2);
    expect_healed(&s, 2);
}

/* a is what is left of the record, and was changed; the others are new: nobody is trusted but
 * it, and not d and e because they are two. */
Test(disk_generation, O5_new_replicas_do_not_outvote_the_last_old_one)
{
    set s;
    set_new(&s);
    s.n = 2;
    session(&s, 1);
    support_run(
        "qemu-img create -q -f qcow2 d.qcow2 %u; cp d.qcow2 e.qcow2; touch a.qcow2",
        SIZE);
    s.names[1] = "d.qcow2";
    s.names[2] = "e.qcow2";
    s.n = 3;
    s.threshold = 1;
    expect_open(&s, "recorded state is void", "bc");
    expect_byte(&s, 1);
    set_close(&s);
}

/* ---- After a crash ---- */

Test(disk_generation, O5_after_a_crash_an_old_copy_is_stale)
{
    set s;
    set_new(&s);
    session(&s, 1);
    support_run("cp -a b.qcow2 old");
    crash(&s, 2);
    support_run("cat old > b.qcow2"); /* the same inode, and times tell nothing */
    expect_open(&s, "is an older copy of itself: in-sync -> stale", "b");
    expect_byte(&s, 2);
    expect_healed(&s, 2);
    crash(&s, 3);
    support_run("qemu-img create -q -f qcow2 new %u; cat new > b.qcow2", SIZE);
    expect_open(&s, "was made anew: in-sync -> stale", "b");
    expect_healed(&s, 3);
}

Test(disk_generation, W6_after_a_crash_all_are_recognised)
{
    set s;
    set_new(&s);
    crash(&s, 1); /* the first session of all */
    expect_open(&s, "", "");
    expect_byte(&s, 1);
    set_close(&s);
    for (uint8_t k = 2; k < 5; k++)
        crash(&s, k);
    expect_open(&s, "", "");
    expect_byte(&s, 4);
    expect_healed(&s, 4);
}

/* ---- Every moment of a session ---- */

#define FILES (N + 1)
static const char *const files[FILES] = {"a.qcow2", "b.qcow2", "c.qcow2",
                                         "state/disk.state"};

/* The world when a sync began or had ended. */
typedef struct moment {
    uint8_t *bytes[FILES];
    size_t length[FILES];
    struct timespec mtime[FILES];
    uint8_t acknowledged; /* the byte of the last write that was */
    bool in_session;      /* some write of this session was */
} moment;

static GArray *moments; /* of moment; NULL: nobody looks */
static uint8_t acknowledged;
static bool in_session;

/* Syncs run on several threads. */
static void look(void)
{
    static GMutex lock;
    g_mutex_lock(&lock);
    moment m = {.acknowledged = acknowledged, .in_session = in_session};
    for (unsigned k = 0; k < FILES; k++) {
        struct stat st;
        g_autofree char *path = support_path("%s", files[k]);
        m.bytes[k] = support_load(path, &m.length[k]);
        cr_assert_eq(stat(path, &st), 0);
        m.mtime[k] = st.st_mtim;
    }
    g_array_append_val(moments, m);
    g_mutex_unlock(&lock);
}

/* In place: the same inodes. */
static void put_back(const moment *m, unsigned k)
{
    g_autofree char *path = support_path("%s", files[k]);
    struct timespec times[2] = {m->mtime[k], m->mtime[k]};
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    cr_assert_eq(write(fd, m->bytes[k], m->length[k]), (ssize_t)m->length[k]);
    close(fd);
    cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

int __real_file_sync(int fd);
int __wrap_file_sync(int fd);
int __wrap_file_sync(int fd)
{
    if (moments)
        look();
    int result = __real_file_sync(fd);
    if (moments)
        look();
    return result;
}

static void watch_session(set *s)
{
    moments = g_array_new(FALSE, FALSE, sizeof(moment));
    in_session = false;
    set_open(s);
    disk_worker_stop(s->disk);
    for (unsigned k = 0; k < 2; k++) {
        set_write(s, (uint8_t)(acknowledged + 1));
        acknowledged++;
        in_session = true;
    }
    look();
    set_close(s);
    look();
}

static void moment_clear(moment *m)
{
    for (unsigned k = 0; k < FILES; k++)
        g_free(m->bytes[k]);
}

/* Nobody is taken for another; and one that is put back from before the session is found out
 * as soon as a write of the session was acknowledged. */
static void check_moment(set *s, const moment *m, const moment *before, unsigned at)
{
    for (unsigned k = 0; k < FILES; k++)
        put_back(m, k);
    set_open(s);
    disk_worker_stop(s->disk);
    g_autofree char *text = said();
    cr_assert_str_eq(text, "", "moment %u: %s", at, text);
    const uint8_t *data;
    cr_assert_eq(disk_read(s->disk, 0, 4096, (const void **)&data), 0);
    cr_assert(data[0] == m->acknowledged || data[0] == m->acknowledged + 1,
              "moment %u: %d", at, data[0]);
    set_close(s);
    for (unsigned old = 0; old < N && m->in_session; old++) {
        for (unsigned k = 0; k < FILES; k++)
            put_back(m, k);
        put_back(before, old);
        set_open(s);
        disk_worker_stop(s->disk);
        g_autofree char *found = said();
        cr_assert_not_null(strstr(found, "in-sync -> stale"), "moment %u, %u: '%s'", at,
                           old, found);
        set_close(s);
    }
}

static unsigned check_moments(set *s)
{
    g_autoptr(GArray) all = g_steal_pointer(&moments);
    moment last = g_array_index(all, moment, all->len - 1);
    for (unsigned k = 0; k < all->len; k++)
        check_moment(s, &g_array_index(all, moment, k), &g_array_index(all, moment, 0),
                     k);
    for (unsigned k = 0; k < FILES; k++)
        put_back(&last, k);
    unsigned n = all->len;
    for (unsigned k = 0; k < n; k++)
        moment_clear(&g_array_index(all, moment, k));
    return n;
}

Test(disk_generation, W6_any_moment_of_a_session_may_be_the_last)
{
    set s;
    set_new(&s);
    set_open(&s);
    set_close(&s);
    for (unsigned k = 0; k < 2; k++) { /* marks are put in, and then renewed */
        watch_session(&s);
        unsigned n = check_moments(&s);
        cr_assert_gt(n, 20, "%u moments", n);
    }
}
