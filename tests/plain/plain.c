/*
 * plain.c: the runner behind tests/plain/criterion/criterion.h. Prints one line per test
 * and, last, "N passed, N failed" (", N skipped" if any) on standard output.
 */
#include "tests/plain/criterion/criterion.h"
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STATUS_PASSED = 0, STATUS_FAILED = 1, STATUS_SKIPPED = 77 };

static plain_test *first, **last = &first;
static const char *filter = "*";

/* Tests fork processes that crash; the threads that a child lacks it makes anew (spare-pool.c).
 * Libraries that were not built for ThreadSanitizer (GLib, jansson) call functions that it
 * intercepts; without knowing their locks it would see races in them. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1:die_after_fork=0";
}

void plain_register(plain_test *test)
{
    *last = test;
    last = &test->next;
}

void plain_fail(const char *file, int line, const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: not so: %s:", file, line, what);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(STATUS_FAILED);
}

void plain_skip(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(STATUS_SKIPPED);
}

/* A child of its own, so that a crash or a report of a sanitizer (an exit status that is
 * not 0) is one test's failure. Returns its exit status, 128 + N for signal N. */
static int run_in_child(const plain_test *test)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        test->run();
        exit(STATUS_PASSED);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return STATUS_FAILED;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct criterion_test_set *criterion_initialize(void)
{
    return NULL;
}

/* Of Criterion's options only --filter PATTERN, over "suite/name". */
int criterion_handle_args(int argc, char **argv, bool unknown_is_error)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc)
            filter = argv[++i];
        else if (unknown_is_error) {
            fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
            exit(2);
        }
    }
    return 1;
}

int criterion_run_all_tests(struct criterion_test_set *tests)
{
    unsigned passed = 0, failed = 0, skipped = 0;
    (void)tests;
    for (const plain_test *test = first; test; test = test->next) {
        char name[256];
        snprintf(name, sizeof name, "%s/%s", test->suite, test->name);
        if (fnmatch(filter, name, 0) != 0)
            continue;
        int status = run_in_child(test);
        passed += status == STATUS_PASSED;
        skipped += status == STATUS_SKIPPED;
        failed += status != STATUS_PASSED && status != STATUS_SKIPPED;
        if (status == STATUS_PASSED || status == STATUS_SKIPPED)
            printf("%s %s\n", status == STATUS_PASSED ? "passed " : "skipped", name);
        else
            printf("FAILED  %s (exit status %d)\n", name, status);
    }
    printf("%u passed, %u failed", passed, failed);
    if (skipped > 0)
        printf(", %u skipped", skipped);
    putchar('\n');
    return failed == 0;
}

void criterion_finalize(struct criterion_test_set *tests)
{
    (void)tests;
}
