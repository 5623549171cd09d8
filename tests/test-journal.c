/*
 * test-journal.c: the divergence journal (R4). Every line of every file is read back with
 * jansson, strictly.
 */
#include "quorum/journal.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static journal *open_journal(const char *path, uint64_t max_size, journal_clock now)
{
    GError *error = NULL;
    journal *j = journal_open(path, max_size, now, &error);
    cr_assert_not_null(j, "%s", error ? error->message : "");
    return j;
}

/* All lines of a file as a JSON array; fails the test if one is not an object. */
static json_t *parse_lines(const char *text, size_t length)
{
    json_t *lines = json_array();
    while (length > 0) {
        const char *newline = memchr(text, '\n', length);
        cr_assert_not_null(newline, "the last line is torn");
        json_error_t error;
        json_t *line =
            json_loadb(text, (size_t)(newline - text), JSON_REJECT_DUPLICATES, &error);
        cr_assert(json_is_object(line), "%s in: %.*s", error.text, (int)(newline - text),
                  text);
        json_array_append_new(lines, line);
        length -= (size_t)(newline + 1 - text);
        text = newline + 1;
    }
    return lines;
}

static json_t *load_lines(const char *path)
{
    size_t length;
    g_autofree uint8_t *text = support_load(path, &length);
    return parse_lines((const char *)text, length);
}

static json_int_t number(const json_t *lines, size_t i, const char *name)
{
    json_t *value = json_object_get(json_array_get(lines, i), name);
    cr_assert(json_is_integer(value), "line %zu has no %s", i, name);
    return json_integer_value(value);
}

static const char *text_of(const json_t *lines, size_t i, const char *name)
{
    const char *value =
        json_string_value(json_object_get(json_array_get(lines, i), name));
    return value ? value : "(none)";
}

/* A read on which c differs from a and b; different offsets make different records. */
static int append_at(journal *j, uint64_t offset)
{
    static const char *const winners[] = {"a", "b"};
    journal_loser loser = {.replica = "c", .has_sha256 = true};
    journal_record record = {.event = JOURNAL_DIVERGENCE,
                             .disk = "vm1",
                             .op = "read",
                             .offset = offset,
                             .length = 512,
                             .winner_replicas = winners,
                             .n_winner_replicas = 2,
                             .winner_has_sha256 = true,
                             .losers = &loser,
                             .n_losers = 1,
                             .action = "served"};
    memset(record.winner_sha256, 0xab, JOURNAL_DIGEST_SIZE);
    memset(loser.sha256, 0x01, JOURNAL_DIGEST_SIZE);
    return journal_append(j, &record);
}

/* 2026-11-21T21:52:42.000000007Z and a second more each time. */
static atomic_ullong ticks;
static uint64_t test_clock(void)
{
    return (1795297962u + atomic_fetch_add(&ticks, 1)) * 1000000000ull + 7;
}

Test(journal, R4_a_record_has_all_members_by_name)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, test_clock);
    cr_assert_eq(append_at(j, 1ull << 62), 0);
    journal_close(j);
    size_t length;
    g_autofree char *text = (char *)support_load(path, &length);
    const char *expected =
        "{\"time\":\"2026-11-21T21:52:42.000000007Z\",\"event\":\"divergence\","
        "\"disk\":\"vm1\",\"op\":\"read\",\"offset\":4611686018427387904,\"length\":512,"
        "\"winner\":{\"replicas\":[\"a\",\"b\"],\"sha256\":"
        "\"abababababababababababababababababababababababababababababababab\"},"
        "\"losers\":[{\"replica\":\"c\",\"sha256\":"
        "\"0101010101010101010101010101010101010101010101010101010101010101\"}],"
        "\"action\":\"served\",\"count\":                   1}\n";
    cr_assert_str_eq(text, expected, "%s", text);
    json_decref(parse_lines(text, length));
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
}

Test(journal, R4_members_that_say_nothing_are_left_out)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, test_clock);
    journal_loser loser = {.replica = "b", .error = EIO};
    journal_record record = {
        .event = JOURNAL_REPLICA_ERROR, .losers = &loser, .n_losers = 1, .error = ENOSPC};
    cr_assert_eq(journal_append(j, &record), 0);
    journal_close(j);
    size_t length;
    g_autofree char *text = (char *)support_load(path, &length);
    cr_assert_not_null(strstr(text, "Z\",\"event\":\"replica-error\",\"offset\":0,"
                                    "\"length\":0,\"losers\":[{\"replica\":\"b\","
                                    "\"errno\":5}],\"errno\":28,\"count\":"),
                       "%s", text);
}

Test(journal, R4_events_have_the_surfaces_names)
{
    static const char *const names[] = {"divergence",
                                        "quorum-failure",
                                        "replica-error",
                                        "replica-state",
                                        "reconcile",
                                        "repair",
                                        "job"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        cr_assert_str_eq(journal_event_name((journal_event)i), names[i]);
}

Test(journal, R4_digest_is_sha256)
{
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf};
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    journal_digest("abc", 3, digest);
    cr_assert_eq(memcmp(digest, abc, sizeof abc), 0);
}

Test(journal, R4_the_same_again_is_a_count_in_place)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    struct stat before, after;
    append_at(j, 0);
    append_at(j, 512);
    append_at(j, 1024);
    stat(path, &before);
    for (unsigned i = 0; i < 1233; i++)
        cr_assert_eq(append_at(j, 512), 0);
    stat(path, &after);
    cr_assert_eq(before.st_size, after.st_size);
    json_t *lines = load_lines(path); /* at once: nothing is kept back until close */
    cr_assert_eq(json_array_size(lines), 3);
    cr_assert_eq(number(lines, 0, "count"), 1);
    cr_assert_eq(number(lines, 1, "count"), 1234);
    cr_assert_eq(number(lines, 2, "count"), 1);
    json_decref(lines);
    journal_close(j);
}

/* Whatever tells two records apart makes a record of its own, and nothing else does. */
Test(journal, R4_identity)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    static const char *const ab[] = {"a", "b"}, *const a_b[] = {"a,b"};
    journal_loser c1 = {.replica = "c", .has_sha256 = true, .sha256 = {1}};
    journal_loser c2 = {.replica = "c", .has_sha256 = true, .sha256 = {2}};
    journal_loser failed = {.replica = "c", .error = EIO};
    journal_loser failed_else = {.replica = "c", .error = ENXIO};
    const journal_record base = {.event = JOURNAL_DIVERGENCE,
                                 .disk = "d",
                                 .op = "read",
                                 .length = 512,
                                 .winner_replicas = ab,
                                 .n_winner_replicas = 2,
                                 .winner_has_sha256 = true,
                                 .losers = &c1,
                                 .n_losers = 1,
                                 .action = "served"};
    journal_record records[12];
    for (unsigned i = 0; i < G_N_ELEMENTS(records); i++)
        records[i] = base;
    records[1].event = JOURNAL_RECONCILE;
    records[2].disk = "e";
    records[3].op = "scrub";
    records[4].offset = 512;
    records[5].length = 1024;
    records[6].winner_sha256[31] = 1;
    records[7].winner_replicas = a_b;
    records[7].n_winner_replicas = 1;
    records[8].losers = &c2;
    records[9].losers = &failed;
    records[10].losers = &failed_else;
    records[11].action = "logged";
    for (unsigned round = 0; round < 3; round++)
        for (unsigned i = 0; i < G_N_ELEMENTS(records); i++)
            cr_assert_eq(journal_append(j, &records[i]), 0);
    journal_close(j);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), G_N_ELEMENTS(records));
    for (unsigned i = 0; i < G_N_ELEMENTS(records); i++)
        cr_assert_eq(number(lines, i, "count"), 3);
    json_decref(lines);
}

Test(journal, R4_hostile_names_stay_inside_their_string)
{
    static const char *const names[] = {
        "\"},{\"event\":\"job\"", "back\\slash\\", "new\nline\r\ttab",   "\x01\x1f\x7f",
        "\xff\xfe\xc0\xaf",       "\xed\xa0\x80",  "\xf0\x9f\x92\xbe ü", "",
        "\xe2\x80\xa8",
    };
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        journal_loser loser = {.replica = names[i], .error = EIO};
        journal_record record = {.event = JOURNAL_JOB,
                                 .disk = names[i],
                                 .op = names[i],
                                 .winner_replicas = &names[i],
                                 .n_winner_replicas = 1,
                                 .losers = &loser,
                                 .n_losers = 1,
                                 .action = names[i]};
        cr_assert_eq(journal_append(j, &record), 0);
    }
    journal_close(j);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), G_N_ELEMENTS(names));
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *valid = g_utf8_make_valid(names[i], -1);
        cr_assert_str_eq(text_of(lines, i, "disk"), valid);
        cr_assert_str_eq(text_of(lines, i, "action"), valid);
        cr_assert_str_eq(text_of(lines, i, "event"), "job");
    }
    json_decref(lines);
}

Test(journal, R4_a_torn_last_line_is_cut_off)
{
    static const struct {
        const char *tail;
        size_t length;
    } tails[] = {
        {"{\"time\":\"2026", 13},
        {"{", 1},
        {"\0\0\0\0", 4},
        {"{\"ti\0\0\0}\n", 9},
        {"{\"ti\0\0\0}\n\0\n{\"time", 17},
        {"", 0},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(tails); i++) {
        g_autofree char *path = support_path("torn%u.jsonl", i);
        journal *j = open_journal(path, 0, NULL);
        append_at(j, 0);
        append_at(j, 512);
        journal_close(j);
        FILE *file = fopen(path, "a");
        fwrite(tails[i].tail, 1, tails[i].length, file);
        fclose(file);
        j = open_journal(path, 0, NULL);
        append_at(j, 1024);
        journal_close(j);
        json_t *lines = load_lines(path);
        cr_assert_eq(json_array_size(lines), 3, "tail %u", i);
        cr_assert_eq(number(lines, 2, "offset"), 1024);
        json_decref(lines);
    }
}

/* Every length to which a crash can cut the file. */
Test(journal, R4_any_truncation_leaves_whole_lines)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    append_at(j, 0);
    append_at(j, 512);
    journal_close(j);
    size_t length;
    g_autofree uint8_t *text = support_load(path, &length);
    for (size_t cut = 0; cut <= length; cut += 7) {
        support_save(path, text, cut);
        journal_close(open_journal(path, 0, NULL));
        json_t *lines = load_lines(path);
        cr_assert_eq(json_array_size(lines), cut < length / 2 ? 0 : cut < length ? 1 : 2);
        json_decref(lines);
    }
}

/* A torn line longer than what is read at once. */
Test(journal, R4_a_long_torn_line_is_cut_off)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    append_at(j, 0);
    journal_close(j);
    g_autofree char *junk = g_strnfill(100000, 'x');
    FILE *file = fopen(path, "a");
    fputs(junk, file);
    fclose(file);
    journal_close(open_journal(path, 0, NULL));
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 1);
    json_decref(lines);
    support_save(path, junk, 100000);
    journal_close(open_journal(path, 0, NULL));
    struct stat st;
    stat(path, &st);
    cr_assert_eq(st.st_size, 0);
}

Test(journal, R4_a_new_session_appends_and_counts_anew)
{
    g_autofree char *path = support_path("j.jsonl");
    for (unsigned session = 0; session < 3; session++) {
        journal *j = open_journal(path, 0, NULL);
        append_at(j, 0);
        append_at(j, 0);
        journal_close(j);
    }
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 3);
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(number(lines, i, "count"), 2);
    json_decref(lines);
}

Test(journal, R4_a_killed_daemon_loses_nothing)
{
    g_autofree char *path = support_path("j.jsonl");
    pid_t child = fork();
    if (child == 0) {
        journal *j = open_journal(path, 0, NULL);
        for (unsigned i = 0; i < 100; i++)
            append_at(j, 512 * (i % 50));
        kill(getpid(), SIGKILL);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status));
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 50);
    cr_assert_eq(number(lines, 49, "count"), 2);
    json_decref(lines);
}

Test(journal, R4_rotates_by_size)
{
    g_autofree char *path = support_path("j.jsonl");
    g_autofree char *old = support_path("j.jsonl.1");
    journal *j = open_journal(path, 4096, NULL);
    json_int_t last = -1, rotations = 0;
    for (unsigned i = 0; i < 100; i++) {
        cr_assert_eq(append_at(j, i * 512), 0);
        cr_assert_eq(append_at(j, i * 512), 0);
        struct stat st;
        stat(path, &st);
        cr_assert_leq(st.st_size, 4096);
        json_t *lines = load_lines(path);
        if (json_array_size(lines) == 1 && i > 0) {
            json_t *before = load_lines(old);
            size_t n = json_array_size(before);
            cr_assert_eq(number(before, n - 1, "offset"), (json_int_t)(i - 1) * 512);
            cr_assert_eq(number(before, 0, "offset"), last + 512); /* no gap, no repeat */
            last = number(before, n - 1, "offset");
            rotations++;
            json_decref(before);
        } else if (i == 0) {
            last = -512;
        }
        cr_assert_eq(number(lines, json_array_size(lines) - 1, "count"), 2);
        json_decref(lines);
    }
    cr_assert_geq(rotations, 4);
    /* What was recorded in the rotated file is a new record here. */
    append_at(j, 0);
    json_t *lines = load_lines(path);
    cr_assert_eq(number(lines, json_array_size(lines) - 1, "offset"), 0);
    cr_assert_eq(number(lines, json_array_size(lines) - 1, "count"), 1);
    json_decref(lines);
    journal_close(j);
}

Test(journal, R4_a_record_larger_than_the_limit_is_kept)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 64, NULL);
    cr_assert_eq(append_at(j, 0), 0);
    cr_assert_eq(append_at(j, 512), 0);
    journal_close(j);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 1);
    cr_assert_eq(number(lines, 0, "offset"), 512);
    json_decref(lines);
}

Test(journal, R4_rotation_that_fails_loses_nothing)
{
    g_autofree char *path = support_path("j.jsonl");
    support_run("mkdir -p j.jsonl.1/full"); /* the rename fails */
    journal *j = open_journal(path, 1024, NULL);
    for (unsigned i = 0; i < 20; i++)
        cr_assert_eq(append_at(j, i * 512), 0);
    cr_assert_eq(journal_lost(j), 0);
    journal_close(j);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 20);
    json_decref(lines);
    cr_assert_neq(support_try("test -e j.jsonl.new"), 0);
}

Test(journal, R4_reopen_after_the_file_was_moved)
{
    g_autofree char *path = support_path("j.jsonl");
    g_autofree char *moved = support_path("moved");
    journal *j = open_journal(path, 0, NULL);
    append_at(j, 0);
    cr_assert_eq(journal_reopen(j), 0); /* not moved: nothing changes */
    append_at(j, 0);
    cr_assert_eq(rename(path, moved), 0);
    append_at(j, 0);
    append_at(j, 512);
    cr_assert_eq(journal_reopen(j), 0);
    append_at(j, 512);
    json_t *lines = load_lines(moved);
    cr_assert_eq(json_array_size(lines), 2);
    cr_assert_eq(number(lines, 0, "count"), 3);
    json_decref(lines);
    lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 1);
    cr_assert_eq(number(lines, 0, "offset"), 512);
    cr_assert_eq(number(lines, 0, "count"), 1);
    json_decref(lines);
    journal_close(j);
}

/* Not by SIGHUP and by the book, but people do it. */
Test(journal, R4_goes_on_after_the_file_was_emptied_or_cut)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    for (uint64_t i = 0; i < 4; i++)
        append_at(j, i * 512);
    cr_assert_eq(truncate(path, 0), 0);
    gsize length;
    g_autofree char *text = journal_snapshot(j, &length, NULL);
    cr_assert_str_eq(text, "");
    append_at(j, 512);
    append_at(j, 512);
    append_at(j, 4096);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 2);
    cr_assert_eq(number(lines, 0, "offset"), 512);
    cr_assert_eq(number(lines, 0, "count"), 2);
    json_decref(lines);

    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(truncate(path, st.st_size - 5), 0);
    append_at(j, 4096);
    lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 2);
    cr_assert_eq(number(lines, 1, "offset"), 4096);
    json_decref(lines);
    cr_assert_eq(journal_lost(j), 0);
    journal_close(j);
}

Test(journal, R4_goes_on_after_the_file_was_deleted)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    append_at(j, 0);
    cr_assert_eq(unlink(path), 0);
    append_at(j, 0);
    append_at(j, 0);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 1);
    cr_assert_eq(number(lines, 0, "count"), 2);
    json_decref(lines);
    journal_close(j);
}

Test(journal, R4_a_second_journal_on_the_file_is_refused)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    GError *error = NULL;
    cr_assert_null(journal_open(path, 0, NULL, &error));
    cr_assert_not_null(strstr(error->message, "in use by another quorumfs"));
    g_clear_error(&error);
    journal_close(j);
    journal_close(open_journal(path, 0, NULL));
}

Test(journal, R4_errors_of_opening_name_the_file)
{
    GError *error = NULL;
    g_autofree char *missing = support_path("no/j.jsonl");
    cr_assert_null(journal_open(missing, 0, NULL, &error));
    cr_assert_not_null(strstr(error->message, "no/j.jsonl: No such file or directory"));
    g_clear_error(&error);
    support_run("mkfifo fifo");
    g_autofree char *fifo = support_path("fifo");
    cr_assert_null(journal_open(fifo, 0, NULL, &error));
    cr_assert_not_null(strstr(error->message, "fifo: not a regular file"));
    g_clear_error(&error);
    journal_close(NULL);
}

static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* The file cannot grow beyond the limit: as on a full disk, the last write is short. */
Test(journal, R4_a_full_disk_is_counted_and_announced)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    unsigned written = 0, lost = 0;
    limit_file_size(3000);
    for (unsigned i = 0; i < 30; i++) {
        int result = append_at(j, i * 512);
        cr_assert(result == 0 || result == -EFBIG, "%d", result);
        written += result == 0;
        lost += result < 0;
    }
    cr_assert_gt(written, 3);
    cr_assert_gt(lost, 3);
    cr_assert_eq(journal_lost(j), lost);
    cr_assert_eq(append_at(j, 0), 0); /* a repeat needs no room */
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), written); /* and no torn line */
    cr_assert_eq(number(lines, 0, "count"), 2);
    json_decref(lines);

    limit_file_size(1 << 20);
    cr_assert_eq(append_at(j, 1 << 20), 0);
    cr_assert_eq(append_at(j, 2 << 20), 0);
    cr_assert_eq(journal_lost(j), lost);
    journal_close(j);
    lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), written + 3);
    cr_assert_str_eq(text_of(lines, written, "event"), "records-lost");
    cr_assert_eq(number(lines, written, "count"), lost);
    cr_assert_eq(number(lines, written, "errno"), EFBIG);
    cr_assert_eq(number(lines, written + 1, "offset"), 1 << 20);
    json_decref(lines);
}

Test(journal, R4_a_gap_is_announced_before_a_repeat_and_at_close)
{
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    append_at(j, 0);
    limit_file_size(400);
    cr_assert_eq(append_at(j, 512), -EFBIG);
    limit_file_size(1 << 20);
    cr_assert_eq(append_at(j, 0), 0);
    json_t *lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 2);
    cr_assert_eq(number(lines, 0, "count"), 2);
    cr_assert_eq(number(lines, 1, "count"), 1);
    cr_assert_str_eq(text_of(lines, 1, "event"), "records-lost");
    json_decref(lines);
    limit_file_size(600);
    cr_assert_eq(append_at(j, 1024), -EFBIG);
    cr_assert_eq(append_at(j, 1536), -EFBIG);
    limit_file_size(1 << 20);
    journal_close(j);
    lines = load_lines(path);
    cr_assert_eq(json_array_size(lines), 3);
    cr_assert_eq(number(lines, 2, "count"), 2);
    cr_assert_str_eq(text_of(lines, 2, "event"), "records-lost");
    json_decref(lines);
}

Test(journal, R4_a_really_full_file_system)
{
    if (support_try("mkdir full && mount -t tmpfs -o size=64k none full 2>/dev/null"))
        cr_skip_test("cannot mount a tmpfs");
    g_autofree char *path = support_path("full/j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    unsigned written = 0, lost = 0;
    for (unsigned i = 0; i < 400; i++) {
        int result = append_at(j, i * 512);
        written += result == 0;
        lost += result == -ENOSPC;
    }
    cr_assert_eq(written + lost, 400);
    cr_assert_gt(lost, 0);
    cr_assert_eq(journal_lost(j), lost);
    support_run("mount -o remount,size=1m full");
    cr_assert_eq(append_at(j, 1 << 20), 0);
    journal_close(j);
    json_t *lines = load_lines(path);
    json_int_t announced = 0;
    for (size_t i = 0; i < json_array_size(lines); i++)
        if (strcmp(text_of(lines, i, "event"), "records-lost") == 0)
            announced += number(lines, i, "count");
    json_decref(lines);
    support_run("umount full");
    cr_assert_eq(announced, lost);
}

/* 262,144 records are remembered; the one before that is forgotten, not dropped. */
Test(journal, R4_the_table_is_bounded)
{
    enum { REMEMBERED = 262144 };
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 1u << 30, NULL);
    for (unsigned i = 0; i <= REMEMBERED; i++) {
        journal_record record = {.event = JOURNAL_JOB, .offset = i};
        cr_assert(journal_append(j, &record) == 0);
    }
    struct stat full, again;
    stat(path, &full);
    journal_record second = {.event = JOURNAL_JOB, .offset = 1};
    journal_append(j, &second);
    stat(path, &again);
    cr_assert_eq(full.st_size, again.st_size);
    journal_record first = {.event = JOURNAL_JOB, .offset = 0};
    journal_append(j, &first);
    stat(path, &again);
    cr_assert_gt(again.st_size, full.st_size);
    journal_close(j);
}

typedef struct audience {
    GMutex mutex;
    GPtrArray *lines;
} audience;

static void hear(void *opaque, const char *line)
{
    audience *a = opaque;
    g_mutex_lock(&a->mutex);
    g_ptr_array_add(a->lines, g_strdup(line));
    g_mutex_unlock(&a->mutex);
}

Test(journal, R4_the_listener_hears_each_record)
{
    g_autofree char *path = support_path("j.jsonl");
    audience a = {.lines = g_ptr_array_new_with_free_func(g_free)};
    journal *j = open_journal(path, 0, NULL);
    journal_set_listener(j, hear, &a);
    for (unsigned i = 0; i < 10; i++)
        append_at(j, i / 2 * 512);
    cr_assert_eq(a.lines->len, 10);
    for (unsigned i = 0; i < 10; i++) {
        json_t *line = json_loads(g_ptr_array_index(a.lines, i), 0, NULL);
        cr_assert_eq(json_integer_value(json_object_get(line, "offset")), i / 2 * 512);
        cr_assert_eq(json_integer_value(json_object_get(line, "count")), 1 + i % 2);
        cr_assert_null(strchr(g_ptr_array_index(a.lines, i), '\n'));
        json_decref(line);
    }
    g_ptr_array_unref(a.lines);
    journal_close(j);
}

/* Threads append, sync, take snapshots and rotate at once; nothing is lost or torn. */
enum { THREADS = 4, APPENDS = 2000, DISTINCT = 300 };
typedef struct appender {
    journal *j;
    uint64_t seed;
    atomic_uint *failures;
} appender;

static gpointer appender_run(gpointer data)
{
    appender *a = data;
    for (unsigned i = 0; i < APPENDS; i++) {
        uint64_t r = support_random(&a->seed);
        if (append_at(a->j, r % DISTINCT * 512) != 0)
            atomic_fetch_add(a->failures, 1);
        if (r >> 32 & 0xff)
            continue;
        gsize length;
        g_autofree char *text = journal_snapshot(a->j, &length, NULL);
        if (!text || (length > 0 && text[length - 1] != '\n') ||
            journal_sync(a->j) != 0 || journal_reopen(a->j) != 0)
            atomic_fetch_add(a->failures, 1);
    }
    return NULL;
}

Test(journal, R4_threads_append_at_once)
{
    uint64_t seed = support_seed();
    g_autofree char *path = support_path("j.jsonl");
    journal *j = open_journal(path, 0, NULL);
    atomic_uint failures = 0;
    appender appenders[THREADS];
    GThread *threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        appenders[i] = (appender){j, support_random(&seed), &failures};
        threads[i] = g_thread_new("append", appender_run, &appenders[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        g_thread_join(threads[i]);
    cr_assert_eq(atomic_load(&failures), 0);
    gsize length;
    g_autofree char *text = journal_snapshot(j, &length, NULL);
    json_t *lines = parse_lines(text, length);
    cr_assert_leq(json_array_size(lines), DISTINCT);
    json_int_t total = 0;
    for (size_t i = 0; i < json_array_size(lines); i++)
        total += number(lines, i, "count");
    cr_assert_eq(total, THREADS * APPENDS);
    json_decref(lines);
    journal_close(j);
}
