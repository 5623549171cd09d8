/*
 * support.h: what tests share: a scratch directory, commands, images, random numbers.
 *
 * Tests use only these Criterion macros, so that tests/plain (the runner for
 * ThreadSanitizer, under which Criterion's worker processes do not start) can stand in:
 * Test(suite, name), cr_assert, cr_assert_eq, cr_assert_neq, cr_assert_str_eq,
 * cr_assert_null, cr_assert_not_null, cr_assert_lt/leq/gt/geq, cr_skip_test.
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A directory of this test process's own, removed when the process ends. */
const char *support_dir(void);
/* g_strdup_printf below support_dir(); the caller frees. */
char *support_path(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Runs a shell command made by printf, with support_dir() as working directory; returns its
 * exit status. support_run fails the test if that is not 0. */
int support_try(const char *format, ...) G_GNUC_PRINTF(1, 2);
void support_run(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* Standard output of a command, which must succeed; the caller frees. */
char *support_output(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* A file's bytes; the caller frees. Fails the test if it cannot be read. */
uint8_t *support_load(const char *path, size_t *ret_length);
void support_save(const char *path, const void *data, size_t length);
/* Overwrites part of a file. */
void support_poke(const char *path, uint64_t offset, const void *data, size_t length);

/* xorshift64*; the seed is printed by support_seed so that a failure can be repeated with
 * QUORUMFS_TEST_SEED=<seed>. */
uint64_t support_seed(void);
uint64_t support_random(uint64_t *state);
/* Fills buf with bytes that tell offset and tag apart: no two sectors are alike. */
void support_pattern(void *buf, size_t length, uint64_t offset, uint64_t tag);

#endif
