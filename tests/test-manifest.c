/* Manifests: what is written can be read back, and nothing else is believed. */
#include "fuse/manifest.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>

static const uint8_t sums[2][JOURNAL_DIGEST_SIZE] = {{1, 0xab}, {2, 0xcd}};

/* Three ranges of 1,000 bytes and one of 1; the second is unknown. */
static char *manifest_make(void)
{
    char *path = support_path("m.manifest");
    FILE *stream = fopen(path, "w");
    cr_assert_not_null(stream);
    manifest_write_header(stream, 3001, 1000);
    manifest_write_range(stream, 0, 1000, sums[0]);
    manifest_write_range(stream, 1000, 1000, NULL);
    manifest_write_range(stream, 2000, 1000, sums[1]);
    manifest_write_range(stream, 3000, 1, sums[0]);
    fclose(stream);
    return path;
}

Test(manifest, what_is_written_is_read_back)
{
    g_autofree char *path = manifest_make();
    manifest_reader *r = manifest_reader_open(path, NULL);
    cr_assert_not_null(r);
    cr_assert_eq(manifest_reader_size(r), 3001u);
    cr_assert_eq(manifest_reader_range(r), 1000u);
    cr_assert_eq(manifest_reader_compare(r, 0, 1000, sums[0]), MANIFEST_EQUAL);
    cr_assert_eq(manifest_reader_compare(r, 1000, 1000, sums[0]), MANIFEST_UNKNOWN);
    cr_assert_eq(manifest_reader_compare(r, 2000, 1000, sums[0]), MANIFEST_DIFFERENT);
    cr_assert_eq(manifest_reader_compare(r, 3000, 1, sums[0]), MANIFEST_EQUAL);
    manifest_reader_free(r);
}

Test(manifest, the_text_is_as_documented)
{
    g_free(manifest_make());
    g_autofree char *text = support_output("head -n 6 m.manifest | cut -c 1-40");
    cr_assert_str_eq(text, "quorumfs-manifest 1\nsize 3001\nrange 1000\ndigest sha256\n"
                           "0 1000 01ab00000000000000000000000000000\n1000 1000 -\n");
}

Test(manifest, a_range_elsewhere_is_not_compared)
{
    g_autofree char *path = manifest_make();
    manifest_reader *r = manifest_reader_open(path, NULL);
    cr_assert_not_null(r);
    cr_assert_eq(manifest_reader_compare(r, 1000, 1000, sums[0]), MANIFEST_CHANGED);
    cr_assert_eq(manifest_reader_compare(r, 0, 999, sums[0]), MANIFEST_CHANGED);
    manifest_reader_free(r);
}

Test(manifest, an_empty_disk_has_a_manifest_too)
{
    support_run(
        "printf 'quorumfs-manifest 1\\nsize 0\\nrange 512\\ndigest sha256\\n' >e");
    g_autofree char *path = support_path("e");
    manifest_reader *r = manifest_reader_open(path, NULL);
    cr_assert_not_null(r);
    cr_assert_eq(manifest_reader_size(r), 0u);
    manifest_reader_free(r);
}

static void assert_refused(const char *edit, const char *says)
{
    g_autofree char *path = manifest_make();
    support_run("%s", edit);
    g_autoptr(GError) error = NULL;
    manifest_reader *r = manifest_reader_open(path, &error);
    cr_assert_null(r, "accepted after: %s", edit);
    cr_assert(strstr(error->message, says), "'%s' does not say '%s'", error->message,
              says);
    cr_assert_null(strchr(error->message, '\n'));
}

Test(manifest, O3_nothing_but_a_whole_manifest_is_accepted)
{
    assert_refused("rm m.manifest", "No such file");
    assert_refused(": >m.manifest", "line 1: not a manifest");
    assert_refused("head -c 5000 /dev/urandom | tr '\\n' x >m.manifest",
                   "not a manifest");
    assert_refused("sed -i '1s/1/2/' m.manifest", "version");
    assert_refused("sed -i '2s/3001/4611686018427387905/' m.manifest", "header");
    assert_refused("sed -i '2s/3001/-3001/' m.manifest", "header");
    assert_refused("sed -i '3s/1000/0/' m.manifest", "header");
    assert_refused("sed -i '4s/256/1/' m.manifest", "header");
    assert_refused("sed -i '$d' m.manifest", "ends too early");
    assert_refused("sed -i '6d' m.manifest", "line 6: broken range");
    assert_refused("sed -i '5s/ab/ag/' m.manifest", "line 5: broken range");
    assert_refused("sed -i '5s/ab/a/' m.manifest", "line 5: broken range");
    assert_refused("sed -i '6s/1000 -/999 -/' m.manifest", "line 6: broken range");
    assert_refused("sed -i '7s/^/ /' m.manifest", "line 7: broken range");
    assert_refused("echo more >>m.manifest", "after the last range");
    assert_refused("printf '%200s' x >>m.manifest", "after the last range");
    assert_refused("truncate -s -1 m.manifest", "ends too early");
}
