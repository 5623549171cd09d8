#include "fuse/mapfile.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The lines that are no comment, without the first of them (the current position). */
static char *body(const char *map)
{
    g_auto(GStrv) lines = g_strsplit(map, "\n", -1);
    GString *text = g_string_new(NULL);
    bool position = false;
    for (unsigned i = 0; lines[i]; i++) {
        if (lines[i][0] == '#' || lines[i][0] == 0)
            continue;
        if (position)
            g_string_append_printf(text, "%s\n", lines[i]);
        position = true;
    }
    return g_string_free(text, FALSE);
}

static void assert_body(uint64_t size, char filler, const mapfile_block *blocks, size_t n,
                        const char *expected)
{
    g_autofree char *map = mapfile_format(size, filler, blocks, n, "test");
    g_autofree char *got = body(map);
    cr_assert_str_eq(got, expected);
}

Test(mapfile, no_blocks_is_one_line_of_filler)
{
    assert_body(0x100000, '?', NULL, 0, "0x00000000  0x00100000  ?\n");
}

Test(mapfile, gaps_are_filled_before_between_and_after)
{
    const mapfile_block blocks[] = {{512, 512, '/'}, {2048, 512, '-'}};
    assert_body(4096, '?', blocks, 2,
                "0x00000000  0x00000200  ?\n"
                "0x00000200  0x00000200  /\n"
                "0x00000400  0x00000400  ?\n"
                "0x00000800  0x00000200  -\n"
                "0x00000A00  0x00000600  ?\n");
}

Test(mapfile, blocks_that_fill_the_domain_leave_no_gap)
{
    const mapfile_block blocks[] = {{0, 512, '-'}, {512, 512, '+'}};
    assert_body(1024, '?', blocks, 2,
                "0x00000000  0x00000200  -\n0x00000200  0x00000200  +\n");
}

Test(mapfile, neighbours_of_one_status_are_merged)
{
    const mapfile_block blocks[] = {{0, 512, '/'}, {512, 512, '/'}, {1024, 512, '?'}};
    assert_body(4096, '?', blocks, 3,
                "0x00000000  0x00000400  /\n0x00000400  0x00000C00  ?\n");
}

Test(mapfile, blocks_are_cut_at_the_size)
{
    const mapfile_block blocks[] = {{512, 4096, '/'}, {8192, 512, '-'}};
    assert_body(1000, '+', blocks, 2,
                "0x00000000  0x00000200  +\n0x00000200  0x000001E8  /\n");
}

Test(mapfile, size_zero_has_no_line)
{
    const mapfile_block blocks[] = {{0, 512, '/'}};
    assert_body(0, '?', blocks, 1, "");
}

Test(mapfile, offsets_beyond_32_bits)
{
    const mapfile_block blocks[] = {{UINT64_C(1) << 40, 512, '-'}};
    assert_body(UINT64_C(1) << 41, '?', blocks, 1,
                "0x00000000  0x10000000000  ?\n"
                "0x10000000000  0x00000200  -\n"
                "0x10000000200  0xFFFFFFFE00  ?\n");
}

Test(mapfile, a_comment_stays_one_line)
{
    g_autofree char *map = mapfile_format(512, '?', NULL, 0, "disk\nvm1\r");
    cr_assert_not_null(strstr(map, "\n# disk vm1 \n"));
}

static void assert_taken(uint64_t size, const mapfile_block *blocks, size_t n)
{
    g_autofree char *map = mapfile_format(size, '?', blocks, n, "test");
    g_autofree char *path = support_path("map");
    support_save(path, map, strlen(map));
    support_run("ddrescuelog -t map >report 2>&1");
}

Test(mapfile, ddrescuelog_takes_it)
{
    if (support_try("which ddrescuelog >/dev/null 2>&1") != 0)
        cr_skip_test("no ddrescuelog");
    const mapfile_block blocks[] = {{512, 512, '/'}, {2048, 512, '-'}, {4096, 512, '+'}};
    assert_taken(0, NULL, 0);
    assert_taken(1, NULL, 0);
    assert_taken(1000000, blocks, 3);
    assert_taken(UINT64_C(1) << 62, blocks, 3);
}

Test(mapfile, ddrescuelog_reads_back_what_was_meant)
{
    if (support_try("which ddrescuelog >/dev/null 2>&1") != 0)
        cr_skip_test("no ddrescuelog");
    const mapfile_block blocks[] = {{512, 512, '/'}, {2048, 1024, '-'}};
    assert_taken(1 << 20, blocks, 2);
    g_autofree char *bad = support_output("ddrescuelog --list-blocks=- map");
    cr_assert_str_eq(bad, "4\n5\n");
    g_autofree char *differing = support_output("ddrescuelog --list-blocks=/ map");
    cr_assert_str_eq(differing, "1\n");
}
