/*
 * svg.h: a picture of a verified disk: one bar per replica from the disk's first byte to
 * its last, with every range marked on which that replica is in doubt.
 *
 * However many ranges there are, the picture keeps SVG_COLUMNS columns per bar; however
 * small a range is, its mark can be seen. Threads: one per object.
 */
#ifndef FUSE_SVG_H
#define FUSE_SVG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define SVG_COLUMNS 960u

typedef enum svg_mark {
    SVG_MARK_DIFFERS,     /* outvoted */
    SVG_MARK_NO_MAJORITY, /* nobody knows who is right */
    SVG_MARK_UNREADABLE,
    SVG_MARK_MANIFEST, /* the voted data is not what the manifest says */
    SVG_MARKS,
} svg_mark;

typedef struct svg_report svg_report;

/* `size`: of the disk, in bytes; 0 is allowed. */
svg_report *svg_report_new(const char *title, uint64_t size);
void svg_report_free(svg_report *report); /* NULL is allowed */

/* Adds a bar below the ones before; returns its number. Both texts are copied, may hold
 * any bytes and are shortened where they are too long. */
unsigned svg_report_add_bar(svg_report *report, const char *name, const char *detail);
/* Marks a range of a bar; in any order, also overlapping. */
void svg_report_mark(svg_report *report, unsigned bar, uint64_t offset, uint64_t length,
                     svg_mark mark);

/* The document. `done`: bytes verified; what lies behind is drawn as not verified.
 * `summary` is one line below the title. g_free it. */
char *svg_report_format(const svg_report *report, uint64_t done, const char *summary);

#endif
