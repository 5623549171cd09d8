/*
 * verify-job.c: one disk. The callbacks of verify_run hand each finding to whatever wants
 * it; files are opened before anything is read, because an hour of reading should not end
 * with "no such directory", and put in their place when all is known.
 *
 * What a manifest finds arrives later than the ranges of the same place, so the map keeps
 * both lists, each ascending, and merges them at the end.
 */
#include "fuse/verify-job.h"
#include "fuse/cli.h"
#include "fuse/mapfile.h"
#include "fuse/outfile.h"
#include "fuse/progress.h"
#include "fuse/svg.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct verify_job {
    disk *d;
    const verify_request *request;
    verify_output *out;
    progress progress;
    uint64_t n_ranges;
    char *map_path, *svg_path, *manifest_path; /* this disk's; NULL: not wanted */
    outfile *map_file, *svg_file, *manifest_file;
    GArray *found;   /* of mapfile_block, ascending, neighbours of one status merged */
    GArray *foreign; /* the same for what differs from the manifest */
    svg_report *svg;
    manifest_reader *check;
    verify_manifest_summary manifest;
    bool manifest_changed;
} verify_job;

int verify_worst(int a, int b)
{
    static const int order[] = {2, 5, 4, 1};
    for (unsigned i = 0; i < G_N_ELEMENTS(order); i++) {
        if (a == order[i] || b == order[i])
            return order[i];
    }
    return 0;
}

/* --- findings --- */

static void block_add(GArray *blocks, uint64_t offset, uint64_t length, char status)
{
    mapfile_block *last =
        blocks->len ? &g_array_index(blocks, mapfile_block, blocks->len - 1) : NULL;
    if (last && last->status == status && last->offset + last->length == offset) {
        last->length += length;
        return;
    }
    mapfile_block block = {offset, length, status};
    g_array_append_val(blocks, block);
}

static void svg_mark_range(verify_job *job, const verify_range *range)
{
    if (!job->svg)
        return;
    for (unsigned i = 0; i < disk_replica_count(job->d); i++) {
        if (range->failed >> i & 1)
            svg_report_mark(job->svg, i, range->offset, range->length,
                            SVG_MARK_UNREADABLE);
        else if (range->winners == 0)
            svg_report_mark(job->svg, i, range->offset, range->length,
                            SVG_MARK_NO_MAJORITY);
        else if (range->losers >> i & 1)
            svg_report_mark(job->svg, i, range->offset, range->length, SVG_MARK_DIFFERS);
    }
}

static void on_range(void *opaque, const verify_range *range)
{
    verify_job *job = opaque;
    job->n_ranges++;
    bool lost = range->winners == 0 || range->failed;
    if (job->map_file)
        block_add(job->found, range->offset, range->length, lost ? '-' : '/');
    svg_mark_range(job, range);
    progress_hide(&job->progress);
    verify_output_range(job->out, range);
}

static void on_foreign(verify_job *job, uint64_t offset, uint64_t length,
                       manifest_verdict verdict)
{
    bool different = verdict == MANIFEST_DIFFERENT;
    uint64_t *bytes =
        different ? &job->manifest.different_bytes : &job->manifest.unknown_bytes;
    *bytes += length;
    if (job->map_file)
        block_add(job->foreign, offset, length, different ? '/' : '-');
    if (job->svg && different)
        svg_report_mark(job->svg, disk_replica_count(job->d), offset, length,
                        SVG_MARK_MANIFEST);
    progress_hide(&job->progress);
    verify_output_manifest(job->out, offset, length, verdict);
}

static void on_digest(void *opaque, uint64_t offset, uint64_t length,
                      const uint8_t sha256[JOURNAL_DIGEST_SIZE], bool has_winner)
{
    verify_job *job = opaque;
    if (job->manifest_file)
        manifest_write_range(outfile_stream(job->manifest_file), offset, length,
                             has_winner ? sha256 : NULL);
    if (!job->check || job->manifest_changed)
        return;
    manifest_verdict verdict =
        manifest_reader_compare(job->check, offset, length, sha256);
    if (verdict == MANIFEST_CHANGED)
        job->manifest_changed = true;
    else if (verdict != MANIFEST_EQUAL && has_winner)
        on_foreign(job, offset, length, verdict);
}

static void on_progress(void *opaque, uint64_t done, uint64_t size)
{
    verify_job *job = opaque;
    if (*job->request->line_wanted) {
        *job->request->line_wanted = 0;
        progress_line(&job->progress, done, size, job->n_ranges);
    }
    progress_tell(&job->progress, done, size, job->n_ranges);
}

/* --- files --- */

/* The disk's own file where there are several disks. */
static char *disk_path(const verify_job *job, const char *path)
{
    if (!path || !job->request->several)
        return g_strdup(path);
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(slash ? slash : path, '.');
    int stem =
        dot && dot > path && dot[-1] != '/' ? (int)(dot - path) : (int)strlen(path);
    return g_strdup_printf("%.*s-%s%s", stem, path, disk_name(job->d), path + stem);
}

/* A report's name that is one of the disk's own files is a slip that must not cost an
 * image. */
static bool is_layer(disk *d, const char *path)
{
    struct stat st, data;
    if (stat(path, &st) < 0)
        return false;
    for (unsigned i = 0; i < disk_replica_count(d); i++) {
        const chain *c = disk_chain(d, i);
        for (unsigned n = 0; n < chain_depth(c); n++) {
            const chain_layer *layer = chain_get_layer(c, n);
            if (layer->dev == st.st_dev && layer->ino == st.st_ino)
                return true;
            if (layer->data_file && stat(layer->data_file, &data) == 0 &&
                data.st_dev == st.st_dev && data.st_ino == st.st_ino)
                return true;
        }
    }
    return false;
}

/* A forgotten FILE makes the first image one ("--mapfile a.raw b.raw"), so only an older
 * report is replaced: what starts like it, or is empty. */
static bool is_foreign(const char *path, const char *start)
{
    struct stat st;
    char found[32] = "";
    size_t length = strlen(start);
    int fd = stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0
                 ? open(path, O_RDONLY | O_CLOEXEC)
                 : -1;
    if (fd < 0)
        return false;
    ssize_t got = pread(fd, found, length, 0);
    close(fd);
    return got != (ssize_t)length || memcmp(found, start, length) != 0;
}

static bool file_open(verify_job *job, const char *wanted, const char *start,
                      char **ret_path, outfile **ret_file)
{
    *ret_path = disk_path(job, wanted);
    if (!*ret_path)
        return true;
    if (is_layer(job->d, *ret_path)) {
        cli_error("%s: is an image of this disk and is not overwritten", *ret_path);
        return false;
    }
    if (is_foreign(*ret_path, start)) {
        cli_error("%s: exists and is no older report of this kind (remove it first)",
                  *ret_path);
        return false;
    }
    g_autoptr(GError) error = NULL;
    *ret_file = outfile_open(*ret_path, &error);
    if (!*ret_file)
        cli_error("%s", error->message);
    return *ret_file != NULL;
}

static bool check_open(verify_job *job)
{
    g_autofree char *path = disk_path(job, job->request->check);
    if (!path)
        return true;
    g_autoptr(GError) error = NULL;
    job->check = manifest_reader_open(path, &error);
    if (!job->check) {
        cli_error("%s", error->message);
        return false;
    }
    if (manifest_reader_size(job->check) != disk_size(job->d)) {
        cli_error("%s: is of a disk of %" G_GUINT64_FORMAT " bytes, this one has "
                  "%" G_GUINT64_FORMAT,
                  path, manifest_reader_size(job->check), disk_size(job->d));
        return false;
    }
    job->manifest.checked = true;
    return true;
}

static void svg_begin(verify_job *job)
{
    g_autofree char *title = g_strdup_printf("quorumfs verify: %s", disk_name(job->d));
    job->svg = svg_report_new(title, disk_size(job->d));
    for (unsigned i = 0; i < disk_replica_count(job->d); i++) {
        replica_status status;
        disk_replica_status(job->d, i, &status);
        g_autofree char *detail = g_strdup_printf("%s (%s, decoder %s)", status.source,
                                                  status.format, status.decoder);
        svg_report_add_bar(job->svg, status.name, detail);
    }
    if (job->check)
        svg_report_add_bar(job->svg, "manifest", job->request->check);
}

static bool job_open(verify_job *job)
{
    const verify_request *request = job->request;
    if (!check_open(job) ||
        !file_open(job, request->mapfile, "# Mapfile", &job->map_path, &job->map_file) ||
        !file_open(job, request->svg, "<?xml", &job->svg_path, &job->svg_file) ||
        !file_open(job, request->manifest, "quorumfs-manifest", &job->manifest_path,
                   &job->manifest_file))
        return false;
    job->found = g_array_new(FALSE, FALSE, sizeof(mapfile_block));
    job->foreign = g_array_new(FALSE, FALSE, sizeof(mapfile_block));
    if (job->svg_file)
        svg_begin(job);
    if (job->manifest_file)
        manifest_write_header(outfile_stream(job->manifest_file), disk_size(job->d),
                              request->manifest_range);
    return true;
}

static void job_clear(verify_job *job)
{
    outfile_discard(job->map_file);
    outfile_discard(job->svg_file);
    outfile_discard(job->manifest_file);
    manifest_reader_free(job->check);
    svg_report_free(job->svg);
    g_clear_pointer(&job->found, g_array_unref);
    g_clear_pointer(&job->foreign, g_array_unref);
    g_free(job->map_path);
    g_free(job->svg_path);
    g_free(job->manifest_path);
}

/* What differs from the manifest goes into the gaps between what was found anyway. */
static GArray *blocks_merge(const GArray *found, const GArray *foreign)
{
    GArray *merged = g_array_new(FALSE, FALSE, sizeof(mapfile_block));
    unsigned next = 0;
    for (unsigned i = 0; i < foreign->len; i++) {
        mapfile_block gap = g_array_index(foreign, mapfile_block, i);
        uint64_t end = gap.offset + gap.length;
        for (; next < found->len; next++) {
            const mapfile_block *block = &g_array_index(found, mapfile_block, next);
            if (block->offset >= end)
                break;
            if (block->offset > gap.offset)
                block_add(merged, gap.offset, block->offset - gap.offset, gap.status);
            block_add(merged, block->offset, block->length, block->status);
            gap.offset = MAX(gap.offset, block->offset + block->length);
        }
        if (gap.offset < end)
            block_add(merged, gap.offset, end - gap.offset, gap.status);
    }
    for (; next < found->len; next++) {
        const mapfile_block *block = &g_array_index(found, mapfile_block, next);
        block_add(merged, block->offset, block->length, block->status);
    }
    return merged;
}

static bool file_commit(outfile **file, const char *text)
{
    if (text)
        fputs(text, outfile_stream(*file));
    g_autoptr(GError) error = NULL;
    bool good = outfile_commit(g_steal_pointer(file), &error);
    if (!good)
        cli_error("%s", error->message);
    return good;
}

static bool map_write(verify_job *job, const verify_summary *summary, const char *text)
{
    uint64_t done = summary->checked_bytes + summary->skipped_bytes;
    g_autoptr(GArray) blocks = blocks_merge(job->found, job->foreign);
    if (done < summary->size)
        block_add(blocks, done, summary->size - done, '?');
    g_autofree char *comment =
        g_strdup_printf("verify of %s: %s", disk_name(job->d), text);
    g_autofree char *map = mapfile_format(
        summary->size, '+', (const mapfile_block *)blocks->data, blocks->len, comment);
    return file_commit(&job->map_file, map);
}

/* A manifest of half a disk is none; the others say how far they go. */
static bool job_write(verify_job *job, const verify_summary *summary)
{
    bool good = true;
    g_autofree char *text = verify_summary_text(job->d, summary, &job->manifest);
    if (job->map_file)
        good &= map_write(job, summary, text);
    if (job->svg_file) {
        uint64_t done = summary->checked_bytes + summary->skipped_bytes;
        g_autofree char *picture = svg_report_format(job->svg, done, text);
        good &= file_commit(&job->svg_file, picture);
    }
    if (job->manifest_file && !summary->interrupted)
        good &= file_commit(&job->manifest_file, NULL);
    if (job->manifest_changed) {
        cli_error("%s: changed while it was being read", job->request->check);
        good = false;
    }
    return good;
}

int verify_job_run(disk *d, const verify_request *request, verify_output *out,
                   bool *ret_interrupted)
{
    verify_job job = {.d = d, .request = request, .out = out};
    if (!job_open(&job)) {
        job_clear(&job);
        return 2;
    }
    bool digests = job.manifest_file || job.check;
    verify_options options = {
        .on_range = on_range,
        .on_progress = on_progress,
        .on_digest = digests ? on_digest : NULL,
        .manifest_range =
            job.check ? manifest_reader_range(job.check) : request->manifest_range,
        .opaque = &job,
        .cancel = request->cancel,
    };
    verify_summary summary;
    verify_output_disk_begin(out, d);
    progress_begin(&job.progress, disk_name(d), request->progress);
    int64_t started = g_get_monotonic_time();
    verify_run(d, &options, &summary);
    double seconds = (double)(g_get_monotonic_time() - started) / 1e6;
    progress_hide(&job.progress);

    int code = verify_exit_code(&summary);
    if (job.manifest.different_bytes)
        code = verify_worst(code, 1);
    if (job.manifest.unknown_bytes)
        code = verify_worst(code, 5);
    if (!job_write(&job, &summary))
        code = 2;
    verify_output_disk_end(out, &summary, &job.manifest, seconds, code);
    *ret_interrupted = summary.interrupted;
    job_clear(&job);
    return code;
}
