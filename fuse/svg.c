/*
 * svg.c: the picture is counted into columns first and drawn once, at the end.
 *
 * Every column of a bar counts the bytes in it that carry each mark. Neighbouring columns
 * with the same strongest mark are one rectangle; one that is narrower than MARK_WIDTH is
 * widened and stands out above and below its bar, because a single bad sector of a large
 * disk is what people look for.
 */
#include "fuse/svg.h"
#include <inttypes.h>
#include <string.h>

#define MARGIN      30
#define BAR_HEIGHT  22
#define ROW_HEIGHT  62
#define ROWS_TOP    124
#define MARK_WIDTH  3
#define MARK_OVER   5
#define TEXT_MAX    96  /* characters */
#define SUMMARY_MAX 140 /* of the summary, which has two lines */

typedef struct svg_bar {
    char *name, *detail;
    uint64_t total[SVG_MARKS];
    uint64_t columns[SVG_COLUMNS][SVG_MARKS];
} svg_bar;

struct svg_report {
    char *title;
    uint64_t size;
    GPtrArray *bars; /* of svg_bar* */
};

static const struct {
    const char *class, *legend, *brief;
} marks[SVG_MARKS] = {
    [SVG_MARK_DIFFERS] = {"differs", "differs from the majority", "differ"},
    [SVG_MARK_NO_MAJORITY] = {"nomajority", "no majority", "without majority"},
    [SVG_MARK_UNREADABLE] = {"unreadable", "unreadable", "unreadable"},
    [SVG_MARK_MANIFEST] = {"manifest", "differs from the manifest", "not as in manifest"},
};

/* The strongest first: what hides the others in a column that has several. */
static const svg_mark strength[SVG_MARKS] = {SVG_MARK_NO_MAJORITY, SVG_MARK_UNREADABLE,
                                             SVG_MARK_MANIFEST, SVG_MARK_DIFFERS};

static const char style[] =
    "<style>\n"
    "svg{background:#fff;color:#1d2430;font-family:system-ui,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,sans-serif;font-size:13px}\n"
    "text{fill:currentColor}.title{font-size:20px;font-weight:600}.name{font-weight:600}"
    "\n"
    ".soft{opacity:.7}.mono{font-family:ui-monospace,Menlo,Consolas,monospace;"
    "font-size:12px}\n"
    ".bar{fill:#cfe9da}.todo{fill:url(#todo)}.frame{fill:none;stroke:#8a93a3}\n"
    ".tick{stroke:#8a93a3}.differs{fill:#f08c00}.nomajority{fill:#c2185b}"
    ".unreadable{fill:#343a46}.manifest{fill:#7048e8}.hatch{stroke:#9aa3b2}"
    ".ground{fill:#f1f3f6}\n"
    "@media (prefers-color-scheme:dark){svg{background:#14181f;color:#e6e9ef}"
    ".bar{fill:#1f4d3a}.unreadable{fill:#f1f3f6}.nomajority{fill:#ff4d8d}"
    ".manifest{fill:#a78bfa}.ground{fill:#222833}}\n"
    "</style>\n";

/* Text that may stand in XML: valid UTF-8, no control characters, escaped, and shortened
 * in the middle, since the ends of a path tell most. */
static char *xml_text(const char *text, glong max)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    GString *plain = g_string_new(NULL);
    glong length = g_utf8_strlen(valid, -1), i = 0;
    for (const char *c = valid; *c; c = g_utf8_next_char(c), i++) {
        if (length > max && i == max / 3) {
            g_string_append(plain, "\u2026");
            c = g_utf8_offset_to_pointer(valid, length - (max - max / 3 - 1));
        }
        gunichar character = g_utf8_get_char(c);
        bool bad = g_unichar_iscntrl(character) || (character & 0xfffe) == 0xfffe;
        g_string_append_unichar(plain, bad ? 0xfffd : character);
    }
    char *escaped = g_markup_escape_text(plain->str, (gssize)plain->len);
    g_string_free(plain, TRUE);
    return escaped;
}

static void bar_free(gpointer opaque)
{
    svg_bar *bar = opaque;
    g_free(bar->name);
    g_free(bar->detail);
    g_free(bar);
}

svg_report *svg_report_new(const char *title, uint64_t size)
{
    svg_report *report = g_new0(svg_report, 1);
    report->title = xml_text(title, TEXT_MAX);
    report->size = size;
    report->bars = g_ptr_array_new_with_free_func(bar_free);
    return report;
}

void svg_report_free(svg_report *report)
{
    if (!report)
        return;
    g_free(report->title);
    g_ptr_array_free(report->bars, TRUE);
    g_free(report);
}

unsigned svg_report_add_bar(svg_report *report, const char *name, const char *detail)
{
    svg_bar *bar = g_new0(svg_bar, 1);
    bar->name = xml_text(name, TEXT_MAX / 4);
    bar->detail = xml_text(detail, TEXT_MAX * 2 / 3);
    g_ptr_array_add(report->bars, bar);
    return report->bars->len - 1;
}

static unsigned column_of(const svg_report *report, uint64_t offset)
{
    return (unsigned)((unsigned __int128)offset * SVG_COLUMNS / report->size);
}

/* The first byte of a column; that of column SVG_COLUMNS is the disk's end. */
static uint64_t column_start(const svg_report *report, unsigned column)
{
    unsigned __int128 scaled = (unsigned __int128)report->size * column;
    return (uint64_t)((scaled + SVG_COLUMNS - 1) / SVG_COLUMNS);
}

void svg_report_mark(svg_report *report, unsigned number, uint64_t offset,
                     uint64_t length, svg_mark mark)
{
    svg_bar *bar = g_ptr_array_index(report->bars, number);
    if (offset >= report->size)
        return;
    uint64_t end = offset + MIN(length, report->size - offset);
    bar->total[mark] += end - offset;
    while (offset < end) {
        unsigned column = column_of(report, offset);
        uint64_t next = MIN(end, MAX(column_start(report, column + 1), offset + 1));
        bar->columns[column][mark] += next - offset;
        offset = next;
    }
}

/* SVG_MARKS: none. */
static svg_mark column_mark(const svg_bar *bar, unsigned column)
{
    for (unsigned i = 0; i < SVG_MARKS; i++) {
        if (bar->columns[column][strength[i]])
            return strength[i];
    }
    return SVG_MARKS;
}

static void draw_run(GString *out, const svg_report *report, const svg_bar *bar, int y,
                     unsigned from, unsigned to, svg_mark mark)
{
    uint64_t bytes = 0;
    for (unsigned i = from; i < to; i++)
        bytes += bar->columns[i][mark];
    unsigned width = MAX(to - from, MARK_WIDTH);
    unsigned x = MIN(from - MIN(from, (width - (to - from)) / 2), SVG_COLUMNS - width);
    int over = to - from < MARK_WIDTH ? MARK_OVER : 0;
    g_string_append_printf(
        out,
        "<rect class='%s' x='%u' y='%d' width='%u' height='%d'><title>"
        "%s: %" PRIu64 " bytes between %" PRIu64 " and %" PRIu64 "</title></rect>\n",
        marks[mark].class, MARGIN + x, y - over, width, BAR_HEIGHT + 2 * over,
        marks[mark].legend, bytes, column_start(report, from), column_start(report, to));
}

static void draw_totals(GString *out, const svg_bar *bar, int y)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < SVG_MARKS; i++) {
        if (bar->total[i])
            g_string_append_printf(text, "%s%" PRIu64 " bytes %s", text->len ? ", " : "",
                                   bar->total[i], marks[i].brief);
    }
    g_string_append_printf(out,
                           "<text class='mono' x='%u' y='%d' text-anchor='end'>"
                           "%s</text>\n",
                           MARGIN + SVG_COLUMNS, y, text->len ? text->str : "agrees");
    g_string_free(text, TRUE);
}

static void draw_bar(GString *out, const svg_report *report, const svg_bar *bar, int y,
                     uint64_t done)
{
    g_string_append_printf(out,
                           "<text x='%d' y='%d'><tspan class='name'>%s</tspan><tspan "
                           "class='soft' dx='10'>%s</tspan></text>\n",
                           MARGIN, y - 10, bar->name, bar->detail);
    draw_totals(out, bar, y - 10);
    g_string_append_printf(out,
                           "<rect class='bar' x='%d' y='%d' width='%u' height='%d'/>\n",
                           MARGIN, y, SVG_COLUMNS, BAR_HEIGHT);
    if (done < report->size) {
        unsigned from = column_of(report, done);
        g_string_append_printf(out,
                               "<rect class='todo' x='%u' y='%d' width='%u' "
                               "height='%d'><title>not verified</title></rect>\n",
                               MARGIN + from, y, SVG_COLUMNS - from, BAR_HEIGHT);
    }
    g_string_append_printf(out,
                           "<rect class='frame' x='%d.5' y='%d.5' width='%u' "
                           "height='%d'/>\n",
                           MARGIN - 1, y - 1, SVG_COLUMNS + 1, BAR_HEIGHT + 1);
    for (unsigned from = 0; from < SVG_COLUMNS;) {
        svg_mark mark = column_mark(bar, from);
        unsigned to = from + 1;
        while (to < SVG_COLUMNS && column_mark(bar, to) == mark)
            to++;
        if (mark != SVG_MARKS)
            draw_run(out, report, bar, y, from, to, mark);
        from = to;
    }
}

/* A size in the largest unit in which it is a whole number of tenths or so. */
static char *size_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t whole = bytes;
    while (whole >= 1024 && unit + 1 < G_N_ELEMENTS(units)) {
        whole /= 1024;
        unit++;
    }
    if (bytes == whole << (10 * unit))
        return g_strdup_printf("%" PRIu64 " %s", whole, units[unit]);
    return g_strdup_printf("%.1f %s", (double)bytes / (double)((uint64_t)1 << 10 * unit),
                           units[unit]);
}

static void draw_tick(GString *out, const svg_report *report, uint64_t at, int y)
{
    unsigned x = at < report->size ? column_of(report, at) : SVG_COLUMNS;
    const char *anchor = x == 0 ? "start" : x == SVG_COLUMNS ? "end" : "middle";
    g_autofree char *label = size_text(at);
    g_string_append_printf(out,
                           "<line class='tick' x1='%u' x2='%u' y1='%d' y2='%d'/><text "
                           "class='mono soft' x='%u' y='%d' text-anchor='%s'>%s</text>\n",
                           MARGIN + x, MARGIN + x, y, y + 6, MARGIN + x, y + 20, anchor,
                           label);
}

/* At multiples of a power of two, four to eight of them, and at the end. */
static void draw_axis(GString *out, const svg_report *report, int y)
{
    uint64_t step = 1;
    while (step < report->size / 8)
        step *= 2;
    for (uint64_t at = 0; at < report->size; at += step) {
        if (SVG_COLUMNS - column_of(report, at) >= 70) /* else under the end's label */
            draw_tick(out, report, at, y);
    }
    draw_tick(out, report, report->size, y);
}

static void draw_legend(GString *out, const svg_report *report, int y, uint64_t done)
{
    struct {
        const char *class, *text;
    } entries[SVG_MARKS + 2] = {{"bar", "agrees"}};
    unsigned n = 1;
    for (unsigned i = 0; i < SVG_MARKS; i++) {
        bool used = i != SVG_MARK_MANIFEST;
        for (unsigned b = 0; b < report->bars->len; b++)
            used |= ((const svg_bar *)g_ptr_array_index(report->bars, b))->total[i] > 0;
        if (used) {
            entries[n].class = marks[i].class;
            entries[n++].text = marks[i].legend;
        }
    }
    if (done < report->size) {
        entries[n].class = "todo";
        entries[n++].text = "not verified";
    }
    int x = MARGIN;
    for (unsigned i = 0; i < n; i++) {
        g_string_append_printf(out,
                               "<rect class='%s' x='%d' y='%d' width='14' height='14' "
                               "rx='2'/><text x='%d' y='%d'>%s</text>\n",
                               entries[i].class, x, y, x + 20, y + 12, entries[i].text);
        x += 44 + (int)(7 * strlen(entries[i].text));
    }
}

/* The summary's clauses are joined with semicolons; the first has a line of its own. */
static void draw_summary(GString *out, const char *summary)
{
    const char *rest = strstr(summary, "; ");
    g_autofree char *head =
        rest ? g_strndup(summary, (gsize)(rest - summary)) : g_strdup(summary);
    g_autofree char *first = xml_text(head, SUMMARY_MAX);
    g_autofree char *second = xml_text(rest ? rest + 2 : "", SUMMARY_MAX);
    g_string_append_printf(out,
                           "<text class='soft' x='%d' y='60'>%s</text>\n"
                           "<text class='soft' x='%d' y='80'>%s</text>\n",
                           MARGIN, first, MARGIN, second);
}

char *svg_report_format(const svg_report *report, uint64_t done, const char *summary)
{
    int axis = ROWS_TOP + ROW_HEIGHT * (int)report->bars->len - 26;
    int height = axis + 90;
    int width = (int)SVG_COLUMNS + 2 * MARGIN;
    g_autofree char *size = size_text(report->size);
    GString *out = g_string_new("<?xml version='1.0' encoding='UTF-8'?>\n");
    g_string_append_printf(out,
                           "<svg xmlns='http://www.w3.org/2000/svg' width='%d' "
                           "height='%d' viewBox='0 0 %d %d' role='img'>\n"
                           "<title>%s</title>\n%s"
                           "<defs><pattern id='todo' width='8' height='8' "
                           "patternUnits='userSpaceOnUse' "
                           "patternTransform='rotate(45)'><rect class='ground' width='8' "
                           "height='8'/><line class='hatch' x1='0' y1='0' x2='0' "
                           "y2='8' stroke-width='3'/></pattern></defs>\n",
                           width, height, width, height, report->title, style);
    g_string_append_printf(out,
                           "<text class='title' x='%d' y='38'>%s</text>\n"
                           "<text class='soft' x='%u' y='38' text-anchor='end'>%s "
                           "(%" PRIu64 " bytes)</text>\n",
                           MARGIN, report->title, MARGIN + SVG_COLUMNS, size,
                           report->size);
    draw_summary(out, summary);
    for (unsigned i = 0; i < report->bars->len; i++)
        draw_bar(out, report, g_ptr_array_index(report->bars, i),
                 ROWS_TOP + ROW_HEIGHT * (int)i, done);
    draw_axis(out, report, axis);
    draw_legend(out, report, axis + 46, done);
    g_string_append(out, "</svg>\n");
    return g_string_free(out, FALSE);
}
