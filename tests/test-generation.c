/*
 * test-generation.c: every row of the table atop quorum/generation.c (O5).
 */
#include "quorum/generation.h"
#include <criterion/criterion.h>
#include <string.h>

#define SET      "0123456789abcde"
#define SECONDS  INT64_C(1000000000)
#define NUMBER   77u
#define SESSION  5u
#define AT_CLOSE true
#define CRASHED  false

static qcow2_mark mark_of(uint64_t generation, bool clean)
{
    return (qcow2_mark){.present = true,
                        .set_id = SET,
                        .replica = NUMBER,
                        .generation = generation,
                        .clean = clean};
}

/* A qcow2 image as it was recorded after that session. */
static identity image_of(qcow2_mark mark)
{
    return (identity){.kind = IDENTITY_FILE,
                      .top = {.dev = 1,
                              .ino = 10,
                              .birth_ns = 3,
                              .size = 4096,
                              .mtime_ns = 7 * SECONDS + 13,
                              .ctime_ns = 7 * SECONDS + 14},
                      .has_header = true,
                      .header = {1, 2, 3},
                      .mark = mark};
}

static generation_verdict compare(const identity *recorded, bool clean,
                                  const identity *now)
{
    const generation_record record = {.identity = recorded,
                                      .clean = clean,
                                      .set_id = SET,
                                      .replica = NUMBER,
                                      .generation = SESSION};
    return generation_compare(&record, now);
}

static void expect(generation_verdict got, generation_verdict expected, bool trusted,
                   int line)
{
    cr_assert_eq(got, expected, "line %d: %s, not %s", line, generation_reason(got),
                 generation_reason(expected));
    cr_assert_eq(generation_trusted(got), trusted, "line %d", line);
}
#define TRUSTED(got, verdict) expect(got, GENERATION_##verdict, true, __LINE__)
#define STALE(got, verdict)   expect(got, GENERATION_##verdict, false, __LINE__)

typedef void change_fn(identity *now);

static void nothing(identity *now)
{
    (void)now;
}
static void rename_file(identity *now)
{
    now->top.ctime_ns += 5;
}
static void write_to(identity *now)
{
    now->top.mtime_ns++;
}
static void other_inode(identity *now)
{
    now->top.ino = 11;
    now->top.birth_ns = 99;
    now->top.ctime_ns += 5;
}
static void other_inode_and_time(identity *now)
{
    other_inode(now);
    write_to(now);
}
static change_fn *const anything[] = {nothing, rename_file, write_to, other_inode,
                                      other_inode_and_time};

/* Whatever the file says, a mark that is not right decides; after a close and after a crash. */
static void mark_decides(identity recorded, qcow2_mark found, generation_verdict verdict,
                         int line)
{
    for (unsigned k = 0; k < G_N_ELEMENTS(anything); k++) {
        identity now = image_of(found);
        anything[k](&now);
        expect(compare(&recorded, AT_CLOSE, &now), verdict, false, line);
        expect(compare(&recorded, CRASHED, &now), verdict, false, line);
    }
}
#define MARK_DECIDES(recorded, found, verdict)                                           \
    mark_decides(recorded, found, GENERATION_##verdict, __LINE__)

Test(generation, O5_a_mark_that_is_wrong_decides)
{
    identity closed = image_of(mark_of(SESSION, true));
    qcow2_mark found = mark_of(SESSION, true);
    found.set_id[3] ^= 1;
    MARK_DECIDES(closed, found, SET);
    found = mark_of(SESSION, true);
    found.replica++;
    MARK_DECIDES(closed, found, NEIGHBOUR);
    MARK_DECIDES(closed, mark_of(SESSION - 1, true), OLDER);
    MARK_DECIDES(closed, mark_of(SESSION - 2, false), OLDER);
    MARK_DECIDES(closed, mark_of(SESSION + 1, true), NEWER);
    MARK_DECIDES(closed, (qcow2_mark){0}, UNMARKED);
    MARK_DECIDES(closed, (qcow2_mark){.present = true}, UNMARKED); /* damaged */
}

Test(generation, O5_what_has_no_record_is_new)
{
    identity none = {0}, now = image_of(mark_of(SESSION, true));
    STALE(compare(&none, AT_CLOSE, &now), NEW);
    STALE(compare(&none, CRASHED, &now), NEW);
}

Test(generation, O5_after_a_clean_close)
{
    identity closed = image_of(mark_of(SESSION, true)), now = closed;
    TRUSTED(compare(&closed, AT_CLOSE, &now), RECORDED);
    rename_file(&now);
    TRUSTED(compare(&closed, AT_CLOSE, &now), RECORDED);
    now = image_of(mark_of(SESSION, false));
    STALE(compare(&closed, AT_CLOSE, &now), UNCLEAN);
    now = closed;
    write_to(&now);
    STALE(compare(&closed, AT_CLOSE, &now), CHANGED);
    now = closed;
    now.top.size += 512;
    STALE(compare(&closed, AT_CLOSE, &now), CHANGED);
    now = closed;
    now.header[0] ^= 1;
    STALE(compare(&closed, AT_CLOSE, &now), CHANGED);
}

Test(generation, O5_a_copy_is_believed_if_it_kept_everything)
{
    identity closed = image_of(mark_of(SESSION, true)), now = closed;
    closed.has_data = now.has_data = true;
    closed.data = now.data = closed.top;
    other_inode(&now);
    now.data.ino = 12;
    TRUSTED(compare(&closed, AT_CLOSE, &now), COPY);
    STALE(compare(&closed, CRASHED, &now), MOVED);
    identity worse = now;
    write_to(&worse);
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
    worse = now;
    worse.top.mtime_ns = 7 * SECONDS; /* by a tool that keeps seconds */
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
    worse = now;
    worse.top.size++;
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
    worse = now;
    worse.header[5] ^= 1;
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
    worse = now;
    worse.data.mtime_ns++;
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
    worse = now;
    worse.has_data = false;
    STALE(compare(&closed, AT_CLOSE, &worse), MOVED);
}

/* It was stale itself when the disk was closed: its mark does not say that it was whole. */
Test(generation, O5_a_copy_of_a_stale_replica_is_not_believed)
{
    identity closed = image_of(mark_of(SESSION, false)), now = closed;
    TRUSTED(compare(&closed, AT_CLOSE, &now), RECORDED);
    other_inode(&now);
    STALE(compare(&closed, AT_CLOSE, &now), MOVED);
}

Test(generation, O5_a_device_has_no_times_to_prove_a_copy)
{
    identity closed = image_of(mark_of(SESSION, true));
    closed.kind = IDENTITY_DEVICE;
    closed.top = (identity_file){.dev = 8, .size = 1 << 20};
    identity now = closed;
    TRUSTED(compare(&closed, AT_CLOSE, &now), RECORDED);
    now.top.dev = 9;
    STALE(compare(&closed, AT_CLOSE, &now), MOVED);
}

Test(generation, O5_without_a_mark_the_file_decides)
{
    identity raw = image_of((qcow2_mark){0}), now = raw;
    raw.has_header = now.has_header = false;
    TRUSTED(compare(&raw, AT_CLOSE, &now), RECORDED);
    TRUSTED(compare(&raw, CRASHED, &now), RECORDED);
    other_inode(&now);
    STALE(compare(&raw, AT_CLOSE, &now), FILE);
    STALE(compare(&raw, CRASHED, &now), FILE);
    now = raw;
    write_to(&now);
    STALE(compare(&raw, AT_CLOSE, &now), CHANGED);
    TRUSTED(compare(&raw, CRASHED, &now), RECORDED);
    now.mark = mark_of(SESSION, true);
    now.mark.set_id[0] ^= 1;
    STALE(compare(&raw, AT_CLOSE, &now), SET);
}

/* W6. Between the record that a session begins and the one that its marks are written, images
 * have the mark from before or this session's; between the end's marks and its record, either
 * of this session's. */
Test(generation, W6_after_a_crash_either_side_of_a_step_is_right)
{
    identity before = image_of(mark_of(SESSION - 2, true)), now = before;
    TRUSTED(compare(&before, CRASHED, &now), RECORDED);
    now.mark = mark_of(SESSION, false);
    write_to(&now);
    TRUSTED(compare(&before, CRASHED, &now), RECORDED);
    now.mark = mark_of(SESSION - 1, true);
    STALE(compare(&before, CRASHED, &now), OLDER);

    identity marked = image_of(mark_of(SESSION, false));
    now = marked;
    TRUSTED(compare(&marked, CRASHED, &now), RECORDED);
    now.mark.clean = true;
    TRUSTED(compare(&marked, CRASHED, &now), RECORDED);
    now.mark = mark_of(SESSION - 2, true);
    STALE(compare(&marked, CRASHED, &now), OLDER);

    identity earlier =
        image_of(mark_of(SESSION - 1, false)); /* the set was reshaped since */
    now.mark = mark_of(SESSION - 1, true);
    TRUSTED(compare(&earlier, CRASHED, &now), RECORDED);

    identity foreign =
        image_of(mark_of(9, true)); /* as it was found on the first mount */
    foreign.mark.set_id[0] ^= 1;
    now = foreign;
    TRUSTED(compare(&foreign, CRASHED, &now), RECORDED);
    now.mark = mark_of(SESSION, false);
    TRUSTED(compare(&foreign, CRASHED, &now), RECORDED);
}

Test(generation, O5_marks_alone_tell_who_is_behind)
{
    identity now[4];
    for (unsigned i = 0; i < 4; i++)
        now[i] = image_of(mark_of(SESSION, true));
    cr_assert_eq(generation_behind(now, 4, 3), 0);
    now[2].mark.generation--;
    cr_assert_eq(generation_behind(now, 4, 3), 4);
    now[3].mark.clean = false;
    cr_assert_eq(generation_behind(now, 4, 2), 12);
    cr_assert_eq(generation_behind(now, 4, 3), 0); /* too few to be sure of */
    now[1].mark.set_id[0] ^= 1;
    cr_assert_eq(generation_behind(now, 4, 1), 12);
    cr_assert_eq(generation_behind(now, 4, 2), 0);
    for (unsigned i = 0; i < 4; i++)
        now[i].mark = (qcow2_mark){.present = i == 1};
    cr_assert_eq(generation_behind(now, 4, 1), 0);
}
