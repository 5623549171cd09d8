/*
 * Many threads write one qcow2 image at once: different sectors of the same clusters, which
 * none of them found allocated, and whole clusters that come and go. Nobody's write is lost,
 * what nobody writes stays as it was, and qemu-img check finds nothing.
 */
#include "tests/chain-support.h"
#include "tests/qcow2-model.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

enum { WRITERS = 3, SECTOR = 512, IMAGES = 2 };

/* What the threads share. A writer owns the sectors whose number leaves its own number when
 * divided by WRITERS + 1; nobody owns the last kind, which readers look at. */
typedef struct rig {
    chain *disks[IMAGES]; /* written to alike */
    unsigned count;       /* of them */
    uint64_t start, sectors;
    uint8_t *initial[IMAGES]; /* of the whole disks */
    uint64_t *tags;           /* of each sector's pattern; 0: initial */
    uint64_t sizes[IMAGES];
    atomic_bool done;
    atomic_uint failures;
} rig;

typedef struct worker {
    rig *r;
    unsigned number;
    uint64_t seed;
    unsigned rounds;
} worker;

static void failed(rig *r, const char *what, uint64_t offset, int result)
{
    if (atomic_fetch_add(&r->failures, 1) < 5)
        g_printerr("%s at %" PRIu64 ": %s\n", what, offset,
                   result ? g_strerror(-result) : "other bytes");
}

/* As the disk does it: all prepared in one order, run together, all finished. */
static int write_all(rig *r, io_list *list, const void *buf, uint64_t offset,
                     size_t length)
{
    image_change *changes[IMAGES] = {0};
    int results[IMAGES] = {0}, result = 0;
    io_list_clear(list);
    for (unsigned i = 0; i < r->count; i++)
        results[i] =
            chain_prepare_write(r->disks[i], buf, offset, length, i, list, &changes[i]);
    io_list_run(list);
    for (size_t i = 0; i < list->count; i++)
        if (list->ops[i].result != 0)
            results[list->ops[i].owner] = list->ops[i].result;
    for (unsigned i = 0; i < r->count; i++) {
        if (changes[i])
            results[i] = chain_finish_write(r->disks[i], changes[i], results[i]);
        result = result ? result : results[i];
    }
    return result;
}

static int flush_all(rig *r, io_list *list)
{
    image_flush_state states[IMAGES] = {0};
    int steps[IMAGES] = {1, 1}, result = 0;
    for (;;) {
        bool more = false;
        io_list_clear(list);
        for (unsigned i = 0; i < r->count; i++) {
            if (steps[i] == 1)
                steps[i] = chain_flush_step(r->disks[i], &states[i], i, list);
            more |= steps[i] == 1;
            result = steps[i] < 0 ? steps[i] : result;
        }
        if (!more)
            return result;
        io_list_run(list);
        for (unsigned i = 0; i < r->count; i++)
            states[i].result = 0;
        for (size_t i = 0; i < list->count; i++)
            if (list->ops[i].result != 0)
                states[list->ops[i].owner].result = list->ops[i].result;
    }
}

static void expected(const rig *r, unsigned disk, uint64_t sector, uint64_t tag,
                     uint8_t *buf)
{
    if (tag == 0)
        memcpy(buf, r->initial[disk] + sector * SECTOR, SECTOR);
    else if (tag == 1)
        memset(buf, 0, SECTOR);
    else
        support_pattern(buf, SECTOR, sector * SECTOR, tag);
}

static void check_sector(rig *r, uint64_t sector, uint64_t tag)
{
    uint8_t got[SECTOR], wanted[SECTOR];
    for (unsigned i = 0; i < r->count; i++) {
        int result = chain_read(r->disks[i], got, sector * SECTOR, SECTOR);
        expected(r, i, sector, tag, wanted);
        if (result != 0 || memcmp(got, wanted, SECTOR) != 0)
            failed(r, "read", sector * SECTOR, result);
    }
}

static uint64_t own_sector(worker *w)
{
    uint64_t groups = w->r->sectors / (WRITERS + 1);
    return w->r->start + support_random(&w->seed) % groups * (WRITERS + 1) + w->number;
}

static void *write_sectors(void *data)
{
    worker *w = data;
    rig *r = w->r;
    io_list list = {0};
    for (unsigned i = 0; i < w->rounds; i++) {
        uint8_t buf[SECTOR];
        uint64_t sector = own_sector(w);
        uint64_t tag = 2 + support_random(&w->seed) % 1000000;
        support_pattern(buf, SECTOR, sector * SECTOR, tag);
        int result = write_all(r, &list, buf, sector * SECTOR, SECTOR);
        if (result != 0)
            failed(r, "write", sector * SECTOR, result);
        r->tags[sector] = tag;
        sector = own_sector(w);
        check_sector(r, sector, r->tags[sector]);
    }
    io_list_free(&list);
    return NULL;
}

static void *read_sectors(void *data)
{
    worker *w = data;
    while (!atomic_load(&w->r->done))
        check_sector(w->r, own_sector(w), 0);
    return NULL;
}

static void *flush_again_and_again(void *data)
{
    worker *w = data;
    io_list list = {0};
    do {
        int result = flush_all(w->r, &list);
        if (result != 0)
            failed(w->r, "flush", 0, result);
    } while (!atomic_load(&w->r->done));
    io_list_free(&list);
    return NULL;
}

static uint64_t size_of(const rig *r)
{
    return r->count == 1 ? r->sizes[0] : MIN(r->sizes[0], r->sizes[1]);
}

static void open_disk(rig *r, const char *variant, uint64_t *ret_cluster)
{
    g_autoptr(GError) error = NULL;
    unsigned i = r->count++;
    const qcow2_variant *v = qcow2_variant_find(variant);
    chain_options options = {
        .format = "qcow2", .decoder = CHAIN_DECODER_NATIVE, .writable = true};
    g_autofree char *name = g_strdup_printf("%u.qcow2", i);
    cr_assert_not_null(v, "%s", variant);
    qcow2_variant_create(v, name);
    r->disks[i] = must_open(name, &options);
    cr_assert(chain_begin_writing(r->disks[i], &error), "%s: %s", variant,
              error ? error->message : "");
    r->sizes[i] = chain_size(r->disks[i]);
    r->initial[i] = g_malloc(r->sizes[i]);
    cr_assert_eq(chain_read(r->disks[i], r->initial[i], 0, r->sizes[i]), 0);
    *ret_cluster = MAX(*ret_cluster, v->cluster_size);
}

static void close_disks(rig *r)
{
    for (unsigned i = 0; i < r->count; i++) {
        g_autofree char *name = g_strdup_printf("%u.qcow2", i);
        chain_close(r->disks[i]);
        qcow2_assert_clean(name, name);
        size_t length = 0;
        g_autofree uint8_t *bytes = qcow2_qemu_content(name, NULL, &length);
        for (uint64_t sector = 0; sector < length / SECTOR; sector++) {
            uint8_t wanted[SECTOR];
            uint64_t tag = sector < size_of(r) / SECTOR ? r->tags[sector] : 0;
            expected(r, i, sector, tag, wanted);
            cr_assert_eq(memcmp(bytes + sector * SECTOR, wanted, SECTOR), 0,
                         "%s: sector %" PRIu64, name, sector);
        }
        qcow2_variant_remove(name);
        g_free(r->initial[i]);
    }
    g_free(r->tags);
}

static void run_threads(rig *r, void *(*writer)(void *), unsigned rounds, uint64_t *seed)
{
    pthread_t threads[WRITERS + 2];
    worker workers[WRITERS + 2];
    for (unsigned i = 0; i < WRITERS + 2; i++) {
        workers[i] = (worker){r, i, support_random(seed), rounds};
        pthread_create(&threads[i], NULL,
                       i < WRITERS    ? writer
                       : i == WRITERS ? read_sectors
                                      : flush_again_and_again,
                       &workers[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&r->done, true);
    pthread_join(threads[WRITERS], NULL);
    pthread_join(threads[WRITERS + 1], NULL);
    cr_assert_eq(r->failures, 0, "%u failures", r->failures);
}

/* `second` NULL: on one image alone. */
static void sectors_of_shared_clusters(const char *first, const char *second,
                                       uint64_t *seed)
{
    rig r = {0};
    uint64_t cluster = 0;
    open_disk(&r, first, &cluster);
    if (second)
        open_disk(&r, second, &cluster);
    uint64_t size = size_of(&r);
    r.tags = g_new0(uint64_t, size / SECTOR);
    /* So few clusters that the threads meet in them, from somewhere on the disk. */
    uint64_t part = MIN(size, MAX(8 * cluster, (uint64_t)65536)) / SECTOR;
    for (unsigned pass = 0; pass < 3; pass++) {
        uint64_t parts = size / SECTOR / part;
        r.start = support_random(seed) % parts * part;
        r.start -= r.start % (WRITERS + 1);
        r.sectors = part;
        r.done = false;
        /* Sectors that this pass only reads must not have been written in another. */
        for (uint64_t i = r.start; i < r.start + part; i++)
            if (r.tags[i] != 0)
                r.sectors = 0;
        if (r.sectors > 0)
            run_threads(&r, write_sectors, qcow2_model_many(250), seed);
    }
    close_disks(&r);
}

static const char *const alone[] = {"plain", "c512",   "c4k-r4",  "ext",  "ext-raw",
                                    "data",  "on-raw", "lazy",    "zlib", "snap",
                                    "c2M",   "deep",   "c512-r64"};

Test(qcow2_write_threads, writes_to_one_new_cluster_lose_nothing)
{
    uint64_t seed = support_seed();
    for (size_t i = 0; i < G_N_ELEMENTS(alone); i++)
        sectors_of_shared_clusters(alone[i], NULL, &seed);
}

Test(qcow2_write_threads, several_images_are_written_in_one_submission)
{
    static const char *const pairs[][2] = {
        {"plain", "c512"}, {"on-raw", "ext"}, {"c4k", "lazy"}, {"snap", "data"}};
    uint64_t seed = support_seed();
    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++)
        sectors_of_shared_clusters(pairs[i][0], pairs[i][1], &seed);
}

/* Whole groups of sectors of its own: written, zeroed, discarded. A group is a cluster, half
 * of one, or two. */
typedef struct span {
    uint64_t first, count;
} span;

static span own_span(worker *w, uint64_t length)
{
    uint64_t total = size_of(w->r) / SECTOR / length / WRITERS;
    uint64_t group = support_random(&w->seed) % total * WRITERS + w->number;
    return (span){group * length, length};
}

static int change_span(worker *w, io_list *list, span s, uint64_t tag, uint8_t *buf)
{
    rig *r = w->r;
    if (tag != 1) {
        for (uint64_t i = 0; i < s.count; i++)
            support_pattern(buf + i * SECTOR, SECTOR, (s.first + i) * SECTOR, tag);
        return write_all(r, list, buf, s.first * SECTOR, s.count * SECTOR);
    }
    bool discard = support_random(&w->seed) % 2;
    for (unsigned i = 0; i < r->count; i++) {
        int result = (discard ? chain_discard : chain_write_zeroes)(
            r->disks[i], s.first * SECTOR, s.count * SECTOR);
        if (result != 0)
            return result;
    }
    return 0;
}

static void *change_spans(void *data)
{
    worker *w = data;
    rig *r = w->r;
    io_list list = {0};
    g_autofree uint8_t *buf = g_malloc(r->sectors * SECTOR);
    for (unsigned i = 0; i < w->rounds; i++) {
        span s = own_span(w, r->sectors);
        uint64_t tag =
            support_random(&w->seed) % 3 ? 2 + support_random(&w->seed) % 999 : 1;
        int result = change_span(w, &list, s, tag, buf);
        if (result != 0)
            failed(r, "change", s.first * SECTOR, result);
        for (uint64_t j = 0; j < s.count; j++)
            r->tags[s.first + j] = tag;
        s = own_span(w, r->sectors);
        uint64_t sector = s.first + support_random(&w->seed) % s.count;
        check_sector(r, sector, r->tags[sector]);
    }
    io_list_free(&list);
    return NULL;
}

/* Clusters are allocated and freed by all threads at the same time. */
static void clusters_come_and_go(const char *variant, uint64_t sectors, uint64_t *seed)
{
    rig r = {0};
    uint64_t cluster = 0;
    pthread_t threads[WRITERS + 1];
    worker workers[WRITERS + 1];
    open_disk(&r, variant, &cluster);
    r.tags = g_new0(uint64_t, r.sizes[0] / SECTOR);
    r.sectors = sectors;
    for (unsigned i = 0; i < WRITERS + 1; i++) {
        workers[i] = (worker){&r, i, support_random(seed), qcow2_model_many(200)};
        pthread_create(&threads[i], NULL,
                       i < WRITERS ? change_spans : flush_again_and_again, &workers[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&r.done, true);
    pthread_join(threads[WRITERS], NULL);
    cr_assert_eq(r.failures, 0, "%s: %u failures", variant, r.failures);
    close_disks(&r);
}

Test(qcow2_write_threads, clusters_come_and_go_at_once)
{
    static const struct {
        const char *variant;
        uint64_t sectors;
    } rows[] = {{"plain", 128},  {"plain", 64},   {"plain", 256},  {"c512", 1},
                {"c512-r64", 3}, {"ext-raw", 32}, {"ext-raw", 16}, {"on-raw", 64},
                {"zstd-4k", 8},  {"lazy", 100},   {"data", 128},   {"snap-512", 2},
                {"data-raw", 64}};
    uint64_t seed = support_seed();
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        clusters_come_and_go(rows[i].variant, rows[i].sectors, &seed);
}
