/*
 * cmd-events.c: events.
 *
 * Without --follow the journals are read through the mount, which gives a consistent
 * snapshot of each. To follow, the files in the state directory are watched themselves,
 * because inotify sees nothing of what a FUSE daemon changes on its own.
 *
 * A record is printed once, when its line is complete: counts are rewritten in place
 * later, which wakes the watch but adds no line. A journal that was rotated away is read
 * to its end before its successor is opened.
 */
#include "fuse/cli.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define JOURNAL_BYTES_MAX (1u << 30)

typedef struct event_line {
    char *time; /* RFC 3339 in UTC: sorts as text */
    char *text;
} event_line;

static void event_line_clear(gpointer data)
{
    event_line *line = data;
    g_free(line->time);
    g_free(line->text);
}

static GArray *event_lines_new(void)
{
    GArray *lines = g_array_new(FALSE, FALSE, sizeof(event_line));
    g_array_set_clear_func(lines, event_line_clear);
    return lines;
}

static void add_line(GArray *lines, const char *text, size_t length)
{
    json_t *record = json_loadb(text, length, 0, NULL);
    const char *time = json_string_value(json_object_get(record, "time"));
    event_line line = {g_strdup(time ? time : ""), g_strndup(text, length)};
    json_decref(record);
    g_array_append_val(lines, line);
}

/* Complete lines only; returns how many bytes they are. */
static size_t add_lines(GArray *lines, const char *text, size_t length)
{
    size_t done = 0;
    const char *end;
    while ((end = memchr(text + done, '\n', length - done))) {
        size_t line = (size_t)(end - text) - done;
        if (line > 0)
            add_line(lines, text + done, line);
        done += line + 1;
    }
    return done;
}

static gint compare_times(gconstpointer a, gconstpointer b)
{
    return strcmp(((const event_line *)a)->time, ((const event_line *)b)->time);
}

/* False when nobody reads them any more. */
static bool print_lines(GArray *lines)
{
    g_array_sort(lines, compare_times); /* stable in GLib */
    for (guint i = 0; i < lines->len; i++)
        puts(g_array_index(lines, event_line, i).text);
    g_array_set_size(lines, 0);
    return fflush(stdout) == 0;
}

static int print_snapshot(const cli_mount *mount)
{
    g_autoptr(GArray) lines = event_lines_new();
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(mount->status, "disks"), i, d)
    {
        const char *name = json_string_value(json_object_get(d, "name"));
        g_autofree char *path = g_build_filename(
            mount->path, ".quorumfs", name ? name : "", "divergence.jsonl", NULL);
        size_t length = 0;
        g_autofree char *text = cli_read_file(path, JOURNAL_BYTES_MAX, &length);
        if (!text) {
            cli_error("%s: %s", path, g_strerror(errno));
            return CLI_UNREACHABLE;
        }
        add_lines(lines, text, length);
    }
    return print_lines(lines) ? CLI_OK : CLI_UNREACHABLE;
}

/* One journal in the state directory. */
typedef struct follower {
    char *path;
    int fd; /* -1: not there yet */
    ino_t ino;
    uint64_t offset;
} follower;

static void follower_clear(gpointer data)
{
    follower *f = data;
    g_free(f->path);
    if (f->fd >= 0)
        close(f->fd);
}

static void follower_open(follower *f)
{
    struct stat st;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    f->offset = 0;
    if (f->fd >= 0)
        f->ino = fstat(f->fd, &st) == 0 ? st.st_ino : 0;
}

static void follower_drain(follower *f, GArray *lines)
{
    g_autofree char *part = g_malloc(1u << 20);
    size_t kept = 0;
    struct stat st;
    if (f->fd < 0)
        return;
    if (fstat(f->fd, &st) == 0 && (uint64_t)st.st_size < f->offset)
        f->offset = 0;
    for (;;) {
        ssize_t got =
            pread(f->fd, part + kept, (1u << 20) - kept, (off_t)(f->offset + kept));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return;
        size_t have = kept + (size_t)got;
        size_t done = add_lines(lines, part, have);
        f->offset += done;
        kept = have - done;
        /* A line that does not end within the buffer is no record of ours. */
        if (kept == 1u << 20)
            return;
        memmove(part, part + done, kept);
    }
}

static void follower_advance(follower *f, GArray *lines)
{
    follower_drain(f, lines);
    struct stat st;
    if (stat(f->path, &st) < 0 || (f->fd >= 0 && st.st_ino == f->ino))
        return;
    if (f->fd >= 0) {
        follower_drain(f, lines);
        close(f->fd);
    }
    follower_open(f);
    follower_drain(f, lines);
}

static GArray *followers_new(const cli_mount *mount, int watch)
{
    const char *state_dir =
        json_string_value(json_object_get(mount->status, "state-dir"));
    GArray *followers = g_array_new(FALSE, FALSE, sizeof(follower));
    g_array_set_clear_func(followers, follower_clear);
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(mount->status, "disks"), i, d)
    {
        const char *name = json_string_value(json_object_get(d, "name"));
        g_autofree char *dir =
            g_build_filename(state_dir ? state_dir : "", name ? name : "", NULL);
        if (inotify_add_watch(watch, dir, IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) {
            cli_error("%s: %s", dir, g_strerror(errno));
            g_array_unref(followers);
            return NULL;
        }
        follower f = {.path = g_build_filename(dir, "divergence.jsonl", NULL)};
        follower_open(&f);
        g_array_append_val(followers, f);
    }
    return followers;
}

/* Ends with the daemon, not with the mount point: what is written while it closes is
 * still printed. Also ends when nobody reads standard output any more. */
static void follow_all(GArray *followers, int watch, int daemon)
{
    g_autoptr(GArray) lines = event_lines_new();
    struct pollfd fds[] = {
        {.fd = watch, .events = POLLIN},
        {.fd = daemon, .events = POLLIN},
        {.fd = STDOUT_FILENO, .events = 0},
    };
    bool ended;
    do {
        ended = daemon < 0 || fds[1].revents != 0;
        for (guint i = 0; i < followers->len; i++)
            follower_advance(&g_array_index(followers, follower, i), lines);
        if (!print_lines(lines) || ended)
            return;
        char wakes[4096];
        while (poll(fds, G_N_ELEMENTS(fds), -1) < 0 && errno == EINTR)
            ;
        if (fds[0].revents && read(watch, wakes, sizeof wakes) < 0 && errno != EAGAIN)
            return;
    } while (!(fds[2].revents & (POLLERR | POLLHUP | POLLNVAL)));
}

static int follow(const cli_mount *mount)
{
    json_int_t pid = json_integer_value(json_object_get(mount->status, "pid"));
    int daemon = pid > 0 ? pidfd_open((pid_t)pid, 0) : -1;
    int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    GArray *followers = watch < 0 ? NULL : followers_new(mount, watch);
    if (watch < 0)
        cli_error("inotify: %s", g_strerror(errno));
    if (followers) {
        follow_all(followers, watch, daemon);
        g_array_unref(followers);
    }
    if (watch >= 0)
        close(watch);
    if (daemon >= 0)
        close(daemon);
    return followers ? CLI_OK : CLI_UNREACHABLE;
}

int cmd_events(int argc, char **argv)
{
    bool following = false;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {{.name = "follow", .letter = 'f', .flag = &following},
                                  {0}};
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 1)
        return cli_usage_error("events", CLI_USAGE, "one mount point is needed");
    cli_mount mount;
    if (!cli_mount_find_live(g_ptr_array_index(words, 0), &mount))
        return CLI_UNREACHABLE;
    code = following ? follow(&mount) : print_snapshot(&mount);
    cli_mount_clear(&mount);
    return code;
}
