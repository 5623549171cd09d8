/* The picture: well-formed whatever it is about, and every mark can be seen. */
#include "fuse/svg.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static unsigned count(const char *text, const char *what)
{
    unsigned n = 0;
    while ((text = strstr(text, what))) {
        n++;
        text += strlen(what);
    }
    return n;
}

static void assert_well_formed(const char *text)
{
    g_autofree char *path = support_path("picture.svg");
    support_save(path, text, strlen(text));
    support_run("python3 -c 'import xml.dom.minidom; "
                "xml.dom.minidom.parse(\"picture.svg\")'");
}

Test(svg, one_sector_of_a_large_disk_can_be_seen)
{
    svg_report *report = svg_report_new("vm1", (uint64_t)1 << 40);
    cr_assert_eq(svg_report_add_bar(report, "a", "/a.qcow2"), 0u);
    cr_assert_eq(svg_report_add_bar(report, "b", "/b.qcow2"), 1u);
    svg_report_mark(report, 1, (uint64_t)1 << 39, 512, SVG_MARK_DIFFERS);
    g_autofree char *text = svg_report_format(report, (uint64_t)1 << 40, "summary");
    assert_well_formed(text);
    cr_assert_not_null(strstr(text, "<rect class='differs' x='509' y='181' width='3'"));
    cr_assert_not_null(strstr(text, "512 bytes differ"));
    cr_assert_eq(count(text, "class='differs'"), 2u, "one mark and its legend");
    cr_assert_eq(count(text, "not verified"), 0u);
    svg_report_free(report);
}

Test(svg, marks_at_both_ends_stay_inside)
{
    svg_report *report = svg_report_new("vm1", 1 << 30);
    svg_report_add_bar(report, "a", "");
    svg_report_mark(report, 0, 0, 512, SVG_MARK_NO_MAJORITY);
    svg_report_mark(report, 0, (1 << 30) - 512, 512, SVG_MARK_UNREADABLE);
    g_autofree char *text = svg_report_format(report, 1 << 30, "");
    cr_assert_not_null(strstr(text, "<rect class='nomajority' x='30' "));
    cr_assert_not_null(strstr(text, "<rect class='unreadable' x='987' "));
    svg_report_free(report);
}

Test(svg, a_range_over_many_columns_is_one_rectangle)
{
    svg_report *report = svg_report_new("vm1", 960 * 512);
    svg_report_add_bar(report, "a", "");
    svg_report_mark(report, 0, 100 * 512, 300 * 512, SVG_MARK_DIFFERS);
    g_autofree char *text = svg_report_format(report, 960 * 512, "");
    cr_assert_not_null(
        strstr(text, "<rect class='differs' x='130' y='124' width='300' height='22'>"));
    svg_report_free(report);
}

Test(svg, what_was_not_verified_is_hatched)
{
    svg_report *report = svg_report_new("vm1", 1 << 20);
    svg_report_add_bar(report, "a", "");
    g_autofree char *text = svg_report_format(report, 1 << 19, "interrupted");
    assert_well_formed(text);
    cr_assert_not_null(strstr(text, "<rect class='todo' x='510' y='124' width='480'"));
    svg_report_free(report);
}

Test(svg, names_cannot_break_it)
{
    char nasty[400];
    for (unsigned i = 0; i < sizeof nasty - 1; i++)
        nasty[i] = (char)(i % 255 + 1);
    nasty[sizeof nasty - 1] = '\0';
    svg_report *report = svg_report_new(nasty, 4096);
    svg_report_add_bar(report, "</svg>", nasty);
    svg_report_add_bar(report, "'\"&<>]]>\xef\xbf\xbf", "\xff\xfe");
    g_autofree char *text = svg_report_format(report, 4096, nasty);
    assert_well_formed(text);
    svg_report_free(report);
}

/* Sizes at which columns are narrower than a byte, odd, or enormous. */
Test(svg, any_size_and_any_range)
{
    uint64_t seed = support_seed();
    const uint64_t sizes[] = {0, 1, 511, 959, 961, 123456789, (uint64_t)1 << 62};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        svg_report *report = svg_report_new("vm1", sizes[i]);
        svg_report_add_bar(report, "a", "");
        for (unsigned k = 0; sizes[i] && k < 50; k++) {
            uint64_t offset = support_random(&seed) % sizes[i];
            uint64_t length = 1 + support_random(&seed) % (sizes[i] - offset);
            svg_report_mark(report, 0, offset, length,
                            (svg_mark)(support_random(&seed) % SVG_MARKS));
        }
        g_autofree char *text = svg_report_format(report, sizes[i] / 2, "");
        if (i % 3 == 0)
            assert_well_formed(text);
        svg_report_free(report);
    }
}
