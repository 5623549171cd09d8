/*
 * cmd-umount.c: umount. It returns when the daemon has flushed and closed what it can, which it
 * says in the state directory (verdict.h), and has ended; unless the kernel keeps its process
 * because a replica hangs. That is not waited for.
 */
#include "fuse/cli.h"
#include "fuse/verdict.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <unistd.h>

/* How often a busy mount is tried again, and a verdict looked for: nothing tells us. */
#define BUSY_RETRY_US 100000
#define LOOK_EVERY_MS 50
/* After the verdict, for the process to end: where nothing keeps it, and where something may. */
#define END_MS  30000
#define HANG_MS 1000

static int unmount_as_user(const char *path, bool *ret_busy)
{
    const char *const command[] = {"fusermount3", "-u", "--", path, NULL};
    g_autofree char *said = NULL;
    g_autoptr(GError) error = NULL;
    int status = 0;
    if (!g_spawn_sync(NULL, (char **)command, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                      &said, &status, &error)) {
        cli_error("%s: %s", path, error->message);
        return -1;
    }
    if (status == 0)
        return 0;
    *ret_busy = strstr(said, "busy") != NULL;
    if (!*ret_busy)
        cli_error("%s: %s", path, g_strstrip(said));
    return -1;
}

static int unmount_once(const char *path, bool *ret_busy)
{
    *ret_busy = false;
    if (geteuid() != 0)
        return unmount_as_user(path, ret_busy);
    if (umount2(path, UMOUNT_NOFOLLOW) == 0)
        return 0;
    *ret_busy = errno == EBUSY;
    if (!*ret_busy)
        cli_error("%s: %s", path, g_strerror(errno));
    return -1;
}

static int unmount(const char *path, bool wait)
{
    bool busy;
    while (unmount_once(path, &busy) < 0) {
        if (!busy)
            return -1;
        if (!wait) {
            cli_error("%s: busy (close what uses it, or quorumfs umount --wait %s)", path,
                      path);
            return -1;
        }
        g_usleep(BUSY_RETRY_US);
    }
    return 0;
}

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "?";
}

static void print_replica(const json_t *d, const json_t *replica)
{
    const char *state = text_of(replica, "state");
    json_int_t stale = json_integer_value(json_object_get(replica, "stale-bytes"));
    printf("%s/%s: ", text_of(d, "name"), text_of(replica, "name"));
    if (strcmp(state, "stale") == 0 || strcmp(state, "resyncing") == 0)
        printf("stale %" JSON_INTEGER_FORMAT " bytes\n", stale);
    else
        printf("%s\n", strcmp(state, "in-sync") == 0 ? "in sync" : state);
}

/* What went wrong goes to standard error in any case. */
static int judge(const char *path, const json_t *how, bool print)
{
    int code = CLI_OK;
    size_t i, k;
    json_t *d, *replica;
    json_array_foreach(json_object_get(how, "disks"), i, d)
    {
        json_array_foreach(json_object_get(d, "replicas"), k, replica)
        {
            if (print)
                print_replica(d, replica);
        }
        if (json_is_null(json_object_get(d, "error")))
            continue;
        cli_error("disk '%s': the last flush failed: %s", text_of(d, "name"),
                  text_of(d, "error"));
        code = CLI_FAILED;
    }
    if (json_is_true(json_object_get(how, "stuck"))) {
        cli_error("%s: some requests did not end, and its disks are not closed (the next "
                  "mount makes their replicas equal)",
                  path);
        code = CLI_FAILED;
    }
    return code;
}

static bool hangs(const json_t *how)
{
    size_t i, k;
    json_t *d, *replica;
    json_array_foreach(json_object_get(how, "disks"), i, d)
    {
        json_array_foreach(json_object_get(d, "replicas"), k, replica)
        {
            if (strcmp(text_of(replica, "state"), "hung") == 0)
                return true;
        }
    }
    return json_is_true(json_object_get(how, "stuck"));
}

/* Whether the process has ended after at most `ms`; without a descriptor it never has. */
static bool has_ended(int pidfd, int ms)
{
    struct pollfd process = {.fd = pidfd, .events = POLLIN};
    return poll(&process, 1, ms) > 0;
}

/* A new reference, or NULL: it has ended without one. */
static json_t *await_verdict(const char *state_dir, json_int_t pid, int pidfd)
{
    gint64 until = g_get_monotonic_time() + END_MS * G_TIME_SPAN_MILLISECOND;
    bool ended;
    json_t *how;
    do {
        ended = has_ended(pidfd, LOOK_EVERY_MS) ||
                (pidfd < 0 && g_get_monotonic_time() > until);
        how = verdict_read(state_dir, pid);
    } while (!how && !ended);
    return how;
}

static int await_end(const cli_mount *mount, json_int_t pid, int pidfd, bool print)
{
    const char *state_dir = text_of(mount->status, "state-dir");
    json_t *how = await_verdict(state_dir, pid, pidfd);
    if (!how) {
        cli_error(
            "%s: unmounted, but how its disks were closed is not known (the daemon was "
            "killed, or could not write to %s, or that cannot be read)",
            mount->path, state_dir);
        return CLI_FAILED;
    }
    int code = judge(mount->path, how, print);
    if (pidfd >= 0 && !has_ended(pidfd, hangs(how) ? HANG_MS : END_MS))
        cli_error("%s: unmounted, but process %" JSON_INTEGER_FORMAT
                  " is still there (it ends when the replica that hangs answers)",
                  mount->path, pid);
    json_decref(how);
    return code;
}

int cmd_umount(int argc, char **argv)
{
    bool wait = false;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {{.name = "wait", .flag = &wait}, {0}};
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 1)
        return cli_usage_error("umount", CLI_USAGE, "one mount point is needed");
    cli_mount mount;
    if (!cli_mount_find(g_ptr_array_index(words, 0), &mount))
        return CLI_FAILED;

    /* Taken before the unmount, while the status still answers. */
    json_int_t pid = json_integer_value(json_object_get(mount.status, "pid"));
    int pidfd = pid > 0 ? pidfd_open((pid_t)pid, 0) : -1;
    code = unmount(mount.path, wait) == 0 ? CLI_OK : CLI_FAILED;
    if (code == CLI_OK && mount.status)
        code = await_end(&mount, pid, pidfd, wait);
    if (pidfd >= 0)
        close(pidfd);
    cli_mount_clear(&mount);
    return code;
}
