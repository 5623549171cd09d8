#include "fuse/mapfile.h"
#include <stdbool.h>
#include <stdio.h>

/* One line of the map that grows until a block of another status comes. */
typedef struct map_run {
    GString *text;
    uint64_t offset, length;
    char status;
} map_run;

static void run_print(const map_run *run)
{
    g_string_append_printf(
        run->text, "0x%08" G_GINT64_MODIFIER "X  0x%08" G_GINT64_MODIFIER "X  %c\n",
        run->offset, run->length, run->status);
}

static void run_add(map_run *run, uint64_t length, char status)
{
    if (length == 0)
        return;
    if (run->length > 0 && run->status != status) {
        run_print(run);
        run->offset += run->length;
        run->length = 0;
    }
    run->length += length;
    run->status = status;
}

/* A comment must stay one line, or the map could not be read back. */
static void append_comment(GString *text, const char *comment)
{
    g_string_append(text, "# ");
    for (const char *c = comment; *c; c++)
        g_string_append_c(text, g_ascii_iscntrl(*c) ? ' ' : *c);
    g_string_append_c(text, '\n');
}

char *mapfile_format(uint64_t size, char filler, const mapfile_block *blocks,
                     size_t n_blocks, const char *comment)
{
    GString *text = g_string_new("# Mapfile. Created by quorumfs " QUORUMFS_VERSION "\n");
    if (comment)
        append_comment(text, comment);
    g_string_append(text, "# current_pos  current_status  current_pass\n"
                          "0x00000000     +               1\n"
                          "#      pos        size  status\n");
    map_run run = {.text = text};
    uint64_t done = 0;
    for (size_t i = 0; i < n_blocks && blocks[i].offset < size; i++) {
        uint64_t length = MIN(blocks[i].length, size - blocks[i].offset);
        run_add(&run, blocks[i].offset - done, filler);
        run_add(&run, length, blocks[i].status);
        done = blocks[i].offset + length;
    }
    run_add(&run, size - done, filler);
    if (run.length > 0)
        run_print(&run);
    return g_string_free(text, FALSE);
}
