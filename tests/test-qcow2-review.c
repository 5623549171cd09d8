/*
 * Writing to qcow2 images that lie about themselves, and after calls that failed: what must
 * not become of the header, of tables, and of bytes that nobody wrote.
 */
#include "tests/crash-file.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-write-support.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#define COPIED_BIT ((uint64_t)1 << 63)

static void patch(uint64_t at, const void *bytes, size_t length)
{
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(pwrite(fd, bytes, length, (off_t)at), (ssize_t)length);
    g_close(fd, NULL);
}

static void patch_word(uint64_t at, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    patch(at, &value, sizeof value);
}

static uint64_t word_at(uint64_t at)
{
    uint64_t value;
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(pread(fd, &value, sizeof value, (off_t)at), (ssize_t)sizeof value);
    g_close(fd, NULL);
    return GUINT64_FROM_BE(value);
}

/* The table that the header's field at `field` places moves to `to`, uncounted. */
static void move_table(uint64_t field, uint64_t to, uint64_t file_size)
{
    g_autofree char *path = support_path("%s", file);
    patch_word(to, word_at(word_at(field)));
    patch_word(field, to);
    cr_assert_eq(truncate(path, (off_t)file_size), 0);
}

static void assert_header(void)
{
    cr_assert_eq(word_at(0), 0x514649fb00000003u, "the header is gone");
}

/* What the open did not reach, for which an image has to be large. */
static image *open_unchecked(void)
{
    qcow2_header header;
    qcow2_check check;
    uint64_t budget = 0;
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert(qcow2_header_read(fd, path, &header, NULL));
    cr_assert(qcow2_check_tables(fd, 0, &header, path, &budget, &check, NULL));
    image *im = qcow2_open_writable(fd, -1, &header, path, NULL);
    cr_assert_not_null(im);
    qcow2_header_clear(&header);
    begin(im);
    return im;
}

/* ---- Images that lie ------------------------------------------------------------------ */

Test(qcow2_review, I7_uncounted_l1_table_moves)
{
    make("s=32k; create -o cluster_size=512");
    move_table(40, MIB, 2 * MIB);
    image *im = open_written();
    image_resize(im, 4 * MIB);
    image_flush(im);
    image_close(im);
    assert_header();
}

Test(qcow2_review, O3_refcount_table_beyond_its_own_reach_moves)
{
    make("s=32k; create -o cluster_size=512");
    move_table(48, 1024 * MIB, 1025 * MIB);
    image *im = open_written();
    image_resize(im, 4 * MIB);
    image_flush(im);
    image_close(im);
    assert_header();
}

/* Half as much again would be more than 8 MiB, a little more is not. The table reaches to
 * 24 GiB, where the file ends, a hole but for its first megabytes. */
Test(qcow2_review, refcount_table_grows_up_to_its_limit)
{
    const uint8_t clusters[4] = {0, 0, 0x30, 0};
    make("s=32k; create -o cluster_size=512,refcount_bits=64");
    patch(56, clusters, sizeof clusters);
    move_table(48, 64 * MIB, 24 * 1024 * (uint64_t)MIB);
    image *im = open_written();
    cr_assert_eq(image_resize(im, 4 * MIB), 0);
    write_pattern(im, 3 * MIB, 64 * KIB, 1);
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    assert_header();
    im = open_unchecked();
    assert_pattern(im, 3 * MIB, 64 * KIB, 1);
    image_close(im);
}

/* Its L1 table is at 0 and has no entries: the header is there, and stays protected. */
Test(qcow2_review, I7_header_of_an_image_that_had_no_size)
{
    make("s=0; create");
    cr_assert_eq(word_at(40), 0);
    patch(word_at(word_at(48)), "\0\0", 2);
    image *im = open_written();
    cr_assert_eq(image_resize(im, 4 * MIB), 0);
    g_autofree uint8_t *buf = g_malloc0(4096);
    cr_assert_eq(image_write(im, buf, 0, 4096), -EIO);
    image_close(im);
    assert_header();
}

Test(qcow2_review, I7_what_an_entry_names_is_not_punched_where_a_table_lies)
{
    make("s=256k; compress -o cluster_size=64k");
    uint64_t l2 = word_at(word_at(40)) & ~COPIED_BIT;
    cr_assert(word_at(l2) & ((uint64_t)1 << 62));
    patch_word(l2, (uint64_t)1 << 62 | 0x200);
    image *im = open_unchecked();
    cr_assert_eq(image_discard(im, 0, 64 * KIB), 0);
    image_flush(im);
    cr_assert_eq(image_flush(im), -EIO);
    image_close(im);
    assert_header();
}

/* A table that is ours alone, though its L1 entry does not say so: a copy takes its place,
 * and where it was there may be data. */
Test(qcow2_review, I7_freed_l2_table_is_given_out)
{
    make("create -o cluster_size=512; io $i 'write -P 1 0 32k'");
    uint64_t l1 = word_at(40);
    patch_word(l1, word_at(l1) & ~COPIED_BIT);
    image *im = open_written();
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(image_discard(im, 0, 32 * KIB), 0);
        cr_assert_eq(image_flush(im), 0);
        write_pattern(im, 0, 64 * KIB, i);
        cr_assert_eq(image_flush(im), 0);
    }
    close_clean(im);
}

/* ---- Calls that fail ------------------------------------------------------------------ */

typedef struct l1_watch {
    uint64_t seed;
    unsigned states;
} l1_watch;

static void check_state(void *user, crash_kind kind)
{
    l1_watch *watch = user;
    (void)kind;
    g_autofree char *path = support_path("crashed");
    for (unsigned i = 0; i < 40; i++, watch->states++) {
        crash_state_save(0, path, CRASH_SOME, &watch->seed);
        qcow2_fsck fsck = qcow2_fsck_run(path);
        cr_assert_null(fsck.error, "%s", fsck.error);
    }
}

/* Two L1 entries in different sectors: the first is written, the second fails. The next
 * flush may not take the first table for one that nobody finds. */
Test(qcow2_review, I3_l1_entries_of_a_flush_that_failed)
{
    l1_watch watch = {.seed = support_seed()};
    make("create -o cluster_size=512");
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    image *im = open_written();
    crash_watch(fd);
    unsigned failed = 0;
    for (unsigned at = 1; at < 12; at++) {
        uint64_t guest = at * 64 * KIB;
        write_pattern(im, guest, 512, at);
        write_pattern(im, guest + 2 * MIB, 512, at);
        crash_set_fault((crash_fault){.kinds = CRASH_WRITE, .at = at, .error = EIO});
        failed += image_flush(im) == -EIO;
        crash_set_fault((crash_fault){0});
        for (unsigned i = 1; i < 40; i++)
            write_pattern(im, guest + i * 512, 512, at);
        crash_set_hook(check_state, &watch);
        cr_assert_eq(image_flush(im), 0);
        crash_set_hook(NULL, NULL);
    }
    cr_assert_gt(failed, 3);
    cr_assert_gt(watch.states, 0);
    crash_reset();
    image_close(im);
    g_close(fd, NULL);
}

/* W3: what was not written successfully does not come to light by a write beside it. */
Test(qcow2_review, W3_failed_write_to_a_data_file_stays_unseen)
{
    make("create -o data_file=$i.data; truncate -s 0 $i.data");
    image *im = open_written();
    g_autofree char *path = support_path("%s.data", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    crash_watch(fd);
    g_autofree uint8_t *buf = g_malloc(32 * KIB);
    memset(buf, 7, 32 * KIB);
    crash_set_fault(
        (crash_fault){.kinds = CRASH_WRITE, .at = 1, .error = EIO, .tear = 99});
    cr_assert_eq(image_write(im, buf, 0, 32 * KIB), -EIO);
    cr_assert_eq(crash_fault_hits(), 1);
    crash_reset();
    assert_zero(im, 0, 32 * KIB);
    write_pattern(im, 48 * KIB, 512, 1);
    assert_zero(im, 0, 32 * KIB);
    image_close(im);
    g_close(fd, NULL);
}

/* What a snapshot keeps is not freed by a flush: however much of it was overwritten, no
 * write has to wait for one. */
Test(qcow2_review, clusters_of_a_snapshot_cause_no_early_flush)
{
    make("s=80M; create -o cluster_size=2M; io $i 'write -P 1 0 80M'; snapshot one");
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    image *im = open_written();
    write_pattern(im, 0, 512, 1);
    crash_watch(fd);
    crash_set_fault(
        (crash_fault){.kinds = CRASH_SYNC, .at = 1, .error = EIO, .for_ever = true});
    for (unsigned i = 1; i < 36; i++)
        write_pattern(im, i * 2 * MIB, 512, i);
    cr_assert_eq(image_discard(im, 74 * MIB, 6 * MIB), 0);
    write_pattern(im, 0, 512, 2);
    cr_assert_eq(crash_fault_hits(), 0);
    crash_reset();
    close_clean(im);
    g_close(fd, NULL);
}

/* COPIED, but counted twice, as a crash of others may leave it: not written in place. */
Test(qcow2_review, COPIED_is_believed_only_of_a_refcount_of_1)
{
    make("create; io $i 'write -P 1 0 128k'");
    uint64_t l1 = word_at(word_at(40)), l2 = l1 & ~COPIED_BIT;
    uint64_t data = word_at(l2) & ~COPIED_BIT, block = word_at(word_at(48));
    cr_assert(word_at(l2) & COPIED_BIT);
    patch(block + data / (64 * KIB) * 2, "\0\2", 2);
    image *im = open_written();
    write_pattern(im, 4096, 512, 1);
    cr_assert_neq(host_of(im, 0), data);
    cr_assert_eq(image_flush(im), 0);
    assert_pattern(im, 4096, 512, 1);
    image_close(im);
    cr_assert_eq(word_at(data + 4096), 0x0101010101010101);

    patch(block + (l2 / (64 * KIB)) * 2, "\0\2", 2);
    im = open_written();
    write_pattern(im, MIB, 512, 2);
    image_close(im);
    cr_assert_neq(word_at(word_at(40)), l1);
    assert_header();

    data = word_at((word_at(word_at(40)) & ~COPIED_BIT) + 8) & ~COPIED_BIT;
    patch(block + data / (64 * KIB) * 2, "\0\0", 2);
    im = open_written();
    g_autofree uint8_t *buf = g_malloc0(4096);
    cr_assert_eq(image_write(im, buf, 64 * KIB, 4096), -EIO);
    image_close(im);
    cr_assert(word_at(72) & 2, "not marked corrupt");
}

/* The free cluster lies behind more slices than are looked at under the lock. */
Test(qcow2_review, free_cluster_is_found_far_away)
{
    make("create -o cluster_size=512,preallocation=metadata; io $i 'write -P 1 0 3M' "
         "'discard 2M 512'");
    uint64_t end = (uint64_t)file_stat().st_size;
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    image *im = open_written();
    crash_watch(fd);
    cr_assert_eq(image_discard(im, 3 * MIB, 512), 0);
    crash_set_fault((crash_fault){.kinds = CRASH_READ, .at = 7, .error = EIO});
    g_autofree uint8_t *buf = g_malloc0(512);
    cr_assert_eq(image_write(im, buf, 2 * MIB, 512), -EIO);
    cr_assert_eq(crash_fault_hits(), 1);
    crash_reset();
    write_pattern(im, 2 * MIB, 512, 1);
    cr_assert_lt(host_of(im, 2 * MIB), end);
    close_clean(im);
    g_close(fd, NULL);
}

/* Writes change the file; what was decompressed stays for a moment all the same. */
Test(qcow2_review, decompressed_clusters_stay_while_others_are_written)
{
    make("s=2M; compress -o cluster_size=64k");
    g_autofree char *path = support_path("%s", file);
    g_autofree uint8_t *buf = g_malloc(4096);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    image *im = open_written();
    crash_watch(fd);
    bool kept = false;
    for (unsigned i = 0; i < 100 && !kept; i++) {
        cr_assert_eq(image_read(im, buf, MIB, 4096), 0);
        write_pattern(im, 64 * KIB, 4096, i);
        crash_set_fault((crash_fault){.kinds = CRASH_READ, .at = 1, .error = EIO});
        kept = image_read(im, buf, MIB, 4096) == 0 && crash_fault_hits() == 0;
        crash_set_fault((crash_fault){0});
    }
    cr_assert(kept);
    crash_reset();
    close_clean(im);
    g_close(fd, NULL);
}

/* A data file is punched in as few calls as there are runs, not under the lock. */
Test(qcow2_review, neighbours_in_a_data_file_are_punched_at_once)
{
    make("create -o data_file=$i.data; io $i 'write -P 5 0 4M'");
    g_autofree char *path = support_path("%s.data", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat full, left;
    image *im = open_written();
    fstat(fd, &full);
    crash_watch(fd);
    crash_set_fault((crash_fault){.kinds = CRASH_PUNCH, .at = 4, .error = ENOTSUP});
    cr_assert_eq(image_discard(im, MIB, MIB), 0);
    cr_assert_eq(image_discard(im, 0, 3 * MIB), 0); /* two runs */
    cr_assert_eq(crash_fault_hits(), 0);
    cr_assert_eq(image_discard(im, 3 * MIB, 512 * KIB), 0);
    cr_assert_eq(crash_fault_hits(), 1);
    crash_reset();
    assert_zero(im, 0, 3 * MIB + 512 * KIB);
    fstat(fd, &left);
    cr_assert_leq(left.st_blocks + 3 * MIB / 512, full.st_blocks);
    close_clean(im);
    g_close(fd, NULL);
}

/* ---- Threads -------------------------------------------------------------------------- */

typedef struct reader {
    image *im;
    uint64_t offset;
    atomic_bool *stop;
} reader;

static void *read_on(void *user)
{
    const reader *r = user;
    g_autofree uint8_t *buf = g_malloc(64 * KIB);
    while (!atomic_load(r->stop))
        cr_assert_eq(image_read(r->im, buf, r->offset, 64 * KIB), 0);
    return NULL;
}

typedef struct early {
    image *im;
    uint64_t offset;
} early;

static void count_syncs(void *user, crash_kind kind)
{
    *(unsigned *)user += kind == CRASH_SYNC;
}

static void *write_one(void *user)
{
    const early *e = user;
    write_pattern(e->im, e->offset, 512, 9);
    return NULL;
}

/* A flush is under way while so much is freed that the next change has to flush first: all
 * threads that see it wait for one flush, not each for one of its own. */
Test(qcow2_review, early_flush_is_one_for_all_threads)
{
    make("s=96M; create -o cluster_size=2M; io $i 'write -P 1 0 96M'");
    g_autofree char *path = support_path("%s", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    image *im = open_written();
    image_flush_state flush = {0};
    io_list list = {0};
    pthread_t threads[8];
    early todo[8];
    unsigned syncs = 0; /* two of this flush, one or two of the next */
    write_pattern(im, 0, 512, 1);
    cr_assert_eq(image_flush_step(im, &flush, 0, &list), 1);
    cr_assert_eq(image_discard(im, 0, 80 * MIB), 0);
    for (unsigned i = 0; i < 8; i++) {
        todo[i] = (early){im, 80 * MIB + i * 4096};
        cr_assert_eq(pthread_create(&threads[i], NULL, write_one, &todo[i]), 0);
    }
    crash_watch(fd);
    crash_set_hook(count_syncs, &syncs);
    do {
        io_list_run(&list);
        io_list_clear(&list);
    } while (image_flush_step(im, &flush, 0, &list) == 1);
    io_list_free(&list);
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    cr_assert_leq(syncs, 4);
    crash_reset();
    for (unsigned i = 0; i < 8; i++)
        assert_pattern(im, todo[i].offset, 512, 9);
    close_clean(im);
    g_close(fd, NULL);
}

/* Compressed clusters are read all the time: a flush that frees one ends nevertheless. */
Test(qcow2_review, W4_flush_is_not_starved_by_readers)
{
    make("s=2M; compress -o cluster_size=64k");
    image *im = open_written();
    atomic_bool stop = false;
    pthread_t threads[4];
    reader readers[4];
    for (unsigned i = 0; i < 4; i++) {
        readers[i] = (reader){im, (16 + i) * 64 * KIB, &stop};
        cr_assert_eq(pthread_create(&threads[i], NULL, read_on, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        write_pattern(im, i * 64 * KIB, 64 * KIB, i);
        cr_assert_eq(image_flush(im), 0);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    close_clean(im);
}
