#include "tests/support.h"
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *scratch;
static pid_t scratch_owner;

static void scratch_remove(void)
{
    if (!scratch || scratch_owner != getpid())
        return;
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", scratch);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", scratch);
}

const char *support_dir(void)
{
    if (!scratch) {
        scratch = g_dir_make_tmp("quorumfs-test-XXXXXX", NULL);
        cr_assert_not_null(scratch);
        scratch_owner = getpid();
        atexit(scratch_remove);
    }
    return scratch;
}

char *support_path(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *name = g_strdup_vprintf(format, args);
    va_end(args);
    return g_build_filename(support_dir(), name, NULL);
}

static char *G_GNUC_PRINTF(1, 0) in_scratch(const char *format, va_list args)
{
    g_autofree char *command = g_strdup_vprintf(format, args);
    return g_strdup_printf("cd '%s' && %s", support_dir(), command);
}

static int run(const char *command)
{
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int support_try(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = in_scratch(format, args);
    va_end(args);
    return run(command);
}

void support_run(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = in_scratch(format, args);
    va_end(args);
    int status = run(command);
    cr_assert_eq(status, 0, "exit status %d of: %s", status, command);
}

char *support_output(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = in_scratch(format, args);
    va_end(args);
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    GString *text = g_string_new(NULL);
    char part[4096];
    size_t got;
    while ((got = fread(part, 1, sizeof part, pipe)) > 0)
        g_string_append_len(text, part, (gssize)got);
    int status = pclose(pipe);
    cr_assert_eq(status, 0, "status %d of: %s", status, command);
    return g_string_free(text, FALSE);
}

uint8_t *support_load(const char *path, size_t *ret_length)
{
    char *data = NULL;
    gsize length = 0;
    cr_assert(g_file_get_contents(path, &data, &length, NULL), "cannot read %s", path);
    *ret_length = length;
    return (uint8_t *)data;
}

void support_save(const char *path, const void *data, size_t length)
{
    cr_assert(g_file_set_contents(path, data, (gssize)length, NULL), "cannot write %s",
              path);
}

void support_poke(const char *path, uint64_t offset, const void *data, size_t length)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0, "cannot open %s", path);
    cr_assert_eq(pwrite(fd, data, length, (off_t)offset), (ssize_t)length);
    close(fd);
}

uint64_t support_seed(void)
{
    const char *given = getenv("QUORUMFS_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0)
                          : (uint64_t)time(NULL) * 2654435761u + (uint64_t)getpid();
    seed = seed ? seed : 1;
    fprintf(stderr, "QUORUMFS_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

uint64_t support_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717ull;
}

void support_pattern(void *buf, size_t length, uint64_t offset, uint64_t tag)
{
    uint8_t *bytes = buf;
    for (size_t i = 0; i < length; i++) {
        uint64_t at = offset + i;
        uint64_t word =
            (at / 8 + 1) * 0x9e3779b97f4a7c15ull + tag * 0xc2b2ae3d27d4eb4full;
        bytes[i] = (uint8_t)(word >> (8 * (at % 8)));
    }
}
