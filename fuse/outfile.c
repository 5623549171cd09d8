/* outfile.c: reports, written beside their place and renamed. */
#include "fuse/outfile.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct outfile {
    char *path;      /* without symbolic links where it exists */
    char *temporary; /* NULL: written in place */
    FILE *stream;
};

static void outfile_free(outfile *out)
{
    if (out->stream)
        fclose(out->stream);
    g_free(out->temporary);
    free(out->path);
    g_free(out);
}

static void set_error(GError **error, const char *path)
{
    int code = errno;
    g_set_error(error, G_FILE_ERROR, (gint)g_file_error_from_errno(code),
                "%s: cannot be written: %s", path, g_strerror(code));
}

/* The mode that open(2) would have given it; mkostemp gives 0600. */
static void mode_set(int fd)
{
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) < 0)
        return; /* no reason to do without the report */
}

/* What is no regular file, and descriptors of ours, whatever they are. */
static bool written_in_place(const char *path)
{
    struct stat st;
    return g_str_has_prefix(path, "/dev/fd/") || g_str_has_prefix(path, "/dev/std") ||
           g_str_has_prefix(path, "/proc/") ||
           (stat(path, &st) == 0 && !S_ISREG(st.st_mode));
}

outfile *outfile_open(const char *path, GError **error)
{
    outfile *out = g_new0(outfile, 1);
    out->path = realpath(path, NULL);
    if (!out->path)
        out->path = strdup(path);
    int fd;
    if (strcmp(path, "/dev/stdout") == 0) {
        fflush(stdout); /* one position for both, and in this order */
        fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
    } else if (written_in_place(path)) {
        fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY);
    } else {
        out->temporary = g_strdup_printf("%s.XXXXXX", out->path);
        fd = mkostemp(out->temporary, O_CLOEXEC);
        if (fd >= 0)
            mode_set(fd);
    }
    out->stream = fd < 0 ? NULL : fdopen(fd, "w");
    if (!out->stream) {
        set_error(error, path);
        if (fd >= 0)
            close(fd);
        if (fd >= 0 && out->temporary)
            unlink(out->temporary);
        outfile_free(out);
        return NULL;
    }
    return out;
}

FILE *outfile_stream(outfile *out)
{
    return out->stream;
}

bool outfile_commit(outfile *out, GError **error)
{
    bool good = !ferror(out->stream) && fflush(out->stream) == 0;
    if (out->temporary)
        good = good && fsync(fileno(out->stream)) == 0 &&
               rename(out->temporary, out->path) == 0;
    if (!good) {
        if (ferror(out->stream))
            errno = EIO;
        set_error(error, out->path);
        outfile_discard(out);
        return false;
    }
    outfile_free(out);
    return true;
}

void outfile_discard(outfile *out)
{
    if (!out)
        return;
    if (out->temporary)
        unlink(out->temporary);
    outfile_free(out);
}
