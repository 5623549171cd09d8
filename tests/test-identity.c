/*
 * test-identity.c: which file a replica is, and whether it was changed behind our back (O5).
 */
#include "quorum/identity.h"
#include "tests/chain-support.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const chain_options plain = {.decoder = CHAIN_DECODER_NATIVE};

static identity read_identity(const char *name)
{
    identity found;
    GError *error = NULL;
    chain *c = must_open(name, &plain);
    identity_source *source = identity_source_open(c, &error);
    cr_assert_not_null(source, "%s", error ? error->message : "");
    chain_close(c);
    cr_assert_eq(identity_read(source, true, &found), 0);
    identity_source_close(source);
    return found;
}

static identity_verdict verdict_after(const char *name, const identity *was, bool clean)
{
    identity now = read_identity(name);
    return identity_compare(was, &now, clean);
}

/* `command` is run between two looks at the image; the verdicts after a clean close and after a
 * crash. */
static void assert_verdicts(const char *name, const char *command, identity_verdict clean,
                            identity_verdict unclean)
{
    identity was = read_identity(name);
    support_run("%s", command);
    identity_verdict got = verdict_after(name, &was, true);
    cr_assert_eq(got, clean, "%s: %s", command, identity_verdict_name(got));
    got = verdict_after(name, &was, false);
    cr_assert_eq(got, unclean, "after a crash: %s: %s", command,
                 identity_verdict_name(got));
}

Test(identity, O5_an_untouched_file_is_the_same)
{
    support_run("truncate -s 1M a.raw; qemu-img create -q -f qcow2 b.qcow2 1M");
    assert_verdicts("a.raw", "cat a.raw >/dev/null", IDENTITY_SAME, IDENTITY_SAME);
    assert_verdicts("b.qcow2", "cat b.qcow2 >/dev/null", IDENTITY_SAME, IDENTITY_SAME);
}

Test(identity, O5_what_changes_a_file_is_seen)
{
    support_run("truncate -s 1M a.raw; qemu-img create -q -f qcow2 b.qcow2 1M");
    assert_verdicts("a.raw", "touch a.raw", IDENTITY_CHANGED, IDENTITY_SAME);
    assert_verdicts("a.raw", "truncate -s 2M a.raw", IDENTITY_CHANGED, IDENTITY_SAME);
    assert_verdicts("a.raw", "echo x | dd of=a.raw conv=notrunc 2>/dev/null",
                    IDENTITY_CHANGED, IDENTITY_SAME);
    assert_verdicts("b.qcow2", "qemu-io -f qcow2 -c 'write 0 4k' b.qcow2 >/dev/null",
                    IDENTITY_CHANGED, IDENTITY_SAME);
    assert_verdicts("b.qcow2", "qemu-img resize -q b.qcow2 2M", IDENTITY_CHANGED,
                    IDENTITY_SAME);
}

Test(identity, O5_another_inode_is_another_file)
{
    support_run("truncate -s 1M a.raw");
    assert_verdicts("a.raw", "cp -p a.raw copy; mv copy a.raw", IDENTITY_OTHER,
                    IDENTITY_OTHER);
    assert_verdicts("a.raw", "truncate -s 1M new; mv new a.raw", IDENTITY_OTHER,
                    IDENTITY_OTHER);
}

Test(identity, O5_moving_a_file_and_chmod_do_not_change_it)
{
    support_run("truncate -s 1M a.raw");
    identity was = read_identity("a.raw");
    support_run("chmod 0600 a.raw; mkdir other; mv a.raw other/z.raw");
    identity_verdict got = verdict_after("other/z.raw", &was, true);
    cr_assert(got == IDENTITY_TOUCHED, "%s", identity_verdict_name(got));
    cr_assert_eq(verdict_after("other/z.raw", &was, false), IDENTITY_SAME);
}

Test(identity, O5_a_header_is_compared_when_the_times_are_set_back)
{
    support_run("qemu-img create -q -f qcow2 b.qcow2 1M");
    assert_verdicts("b.qcow2",
                    "touch -r b.qcow2 stamp; qemu-img amend -q -f qcow2 -o "
                    "lazy_refcounts=on b.qcow2; touch -r stamp b.qcow2",
                    IDENTITY_CHANGED, IDENTITY_SAME);
}

Test(identity, O5_a_data_file_counts)
{
    support_run("qemu-img create -q -f qcow2 -o data_file=d.raw b.qcow2 1M");
    identity was = read_identity("b.qcow2");
    cr_assert(was.has_data);
    assert_verdicts("b.qcow2", "touch d.raw", IDENTITY_CHANGED, IDENTITY_SAME);
    assert_verdicts("b.qcow2", "cp d.raw e.raw; mv e.raw d.raw", IDENTITY_OTHER,
                    IDENTITY_OTHER);
}

Test(identity, O5_a_name_that_leads_elsewhere_is_refused)
{
    support_run("truncate -s 1M a.raw; truncate -s 1M b.raw");
    chain *c = must_open("a.raw", &plain);
    support_run("mv b.raw a.raw");
    g_autoptr(GError) error = NULL;
    cr_assert_null(identity_source_open(c, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED));
    chain_close(c);
}

Test(identity, O5_what_opening_changes_is_left_out)
{
    uint8_t header[IDENTITY_HEADER] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    uint8_t first[32], second[32];
    header[23] = 16;
    identity_digest_header(header, sizeof header, first);
    header[79] ^= 3; /* dirty, corrupt */
    header[95] ^= 7; /* autoclear */
    identity_digest_header(header, sizeof header, second);
    cr_assert_eq(memcmp(first, second, sizeof first), 0);
    header[79] ^= 4;
    identity_digest_header(header, sizeof header, second);
    cr_assert_neq(memcmp(first, second, sizeof first), 0);
    header[79] ^= 4;
    header[4000] = 1;
    identity_digest_header(header, sizeof header, second);
    cr_assert_neq(memcmp(first, second, sizeof first), 0);
    header[4000] = 0;
    header[7] = 2; /* no such fields: what stands there counts */
    identity_digest_header(header, sizeof header, first);
    header[95] ^= 7;
    identity_digest_header(header, sizeof header, second);
    cr_assert_neq(memcmp(first, second, sizeof first), 0);
    header[23] = 9; /* what follows the first cluster does not */
    identity_digest_header(header, sizeof header, first);
    header[600] = 1;
    identity_digest_header(header, sizeof header, second);
    cr_assert_eq(memcmp(first, second, sizeof first), 0);
}

Test(identity, O5_device_numbers_change_with_a_reboot)
{
    identity was = {.kind = IDENTITY_FILE, .top = {1, 2, 3, 4, 5, 6}}, now = was;
    now.top.dev = 9;
    cr_assert_eq(identity_compare(&was, &now, false), IDENTITY_SAME);
    now.top.birth_ns = 0;
    cr_assert_eq(identity_compare(&was, &now, false), IDENTITY_OTHER);
    now = was;
    now.top.birth_ns++;
    cr_assert_eq(identity_compare(&was, &now, false), IDENTITY_OTHER);
    now = was;
    now.kind = IDENTITY_DEVICE;
    cr_assert_eq(identity_compare(&was, &now, true), IDENTITY_OTHER);
    was.kind = IDENTITY_NONE;
    cr_assert_eq(identity_compare(&was, &was, true), IDENTITY_OTHER);
    identity_set_remote(&was, 512);
    identity_set_remote(&now, 1024);
    cr_assert_eq(identity_compare(&was, &was, true), IDENTITY_SAME);
    cr_assert_eq(identity_compare(&was, &now, true), IDENTITY_CHANGED);
    cr_assert_eq(identity_compare(&was, &now, false), IDENTITY_SAME);
}

/* The mark is the image's, and the header's digest covers it. */
Test(identity, O5_a_mark_is_part_of_what_an_image_is)
{
    support_run("qemu-img create -q -f qcow2 b.qcow2 1M");
    identity was = read_identity("b.qcow2");
    g_autofree char *path = support_path("b.qcow2");
    qcow2_mark mark = {.present = true, .replica = 5, .generation = 6, .clean = true};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(qcow2_mark_write(fd, &mark), 0);
    close(fd);
    identity now = read_identity("b.qcow2");
    cr_assert(!was.mark.present && qcow2_mark_equal(&now.mark, &mark));
    cr_assert(memcmp(was.header, now.header, sizeof was.header) != 0);
    cr_assert_eq(identity_compare(&was, &now, true), IDENTITY_CHANGED);
}

/* Without a chain: the same, and nothing that is no image is even opened. */
Test(identity, O5_a_look_by_name_sees_the_same)
{
    support_run(
        "qemu-img create -q -f qcow2 b.qcow2 1M; mkfifo fifo; truncate -s 1M a.raw");
    identity was = read_identity("b.qcow2"), now;
    g_autofree char *path = support_path("b.qcow2");
    identity_look(path, true, &now);
    cr_assert_eq(identity_compare(&was, &now, true), IDENTITY_SAME);
    cr_assert(identity_same_file(&was, &now) && identity_same_content(&was, &now));
    static const char *const others[] = {"fifo", "nothing", "."};
    for (unsigned i = 0; i < G_N_ELEMENTS(others); i++) {
        g_autofree char *other = support_path("%s", others[i]);
        identity_look(other, true, &now);
        cr_assert_eq(now.kind, IDENTITY_NONE);
    }
    g_autofree char *raw = support_path("a.raw");
    identity_look(raw, false, &now);
    cr_assert(now.kind == IDENTITY_FILE && !now.has_header && !now.mark.present);
    cr_assert(!identity_same_file(&was, &now));
}
