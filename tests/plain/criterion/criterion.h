/*
 * criterion.h: stands in for Criterion where its worker processes do not start, that is
 * under ThreadSanitizer. Only the macros that tests/support.h lists, plus what runner.c
 * needs; every test runs in a forked child, one after another.
 */
#ifndef TESTS_PLAIN_CRITERION_H
#define TESTS_PLAIN_CRITERION_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct plain_test {
    const char *suite, *name;
    void (*run)(void);
    struct plain_test *next;
} plain_test;
void plain_register(plain_test *test);

/* Both end the test's process. The text follows a blank, so that it may be empty. */
_Noreturn void plain_fail(const char *file, int line, const char *what,
                          const char *format, ...) __attribute__((format(printf, 4, 5)));
_Noreturn void plain_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define Test(Suite, Name)                                                                \
    static void Suite##_##Name##_run(void);                                              \
    static plain_test Suite##_##Name##_test = {#Suite, #Name, Suite##_##Name##_run,      \
                                               NULL};                                    \
    __attribute__((constructor)) static void Suite##_##Name##_register(void)             \
    {                                                                                    \
        plain_register(&Suite##_##Name##_test);                                          \
    }                                                                                    \
    static void Suite##_##Name##_run(void)

#define PLAIN_CHECK(condition, what, ...)                                                \
    do {                                                                                 \
        if (!(condition))                                                                \
            plain_fail(__FILE__, __LINE__, what, " " __VA_ARGS__);                       \
    } while (0)

#define cr_assert(Condition, ...) PLAIN_CHECK(Condition, #Condition, __VA_ARGS__)
#define cr_assert_eq(A, B, ...)   PLAIN_CHECK((A) == (B), #A " == " #B, __VA_ARGS__)
#define cr_assert_neq(A, B, ...)  PLAIN_CHECK((A) != (B), #A " != " #B, __VA_ARGS__)
#define cr_assert_lt(A, B, ...)   PLAIN_CHECK((A) < (B), #A " < " #B, __VA_ARGS__)
#define cr_assert_leq(A, B, ...)  PLAIN_CHECK((A) <= (B), #A " <= " #B, __VA_ARGS__)
#define cr_assert_gt(A, B, ...)   PLAIN_CHECK((A) > (B), #A " > " #B, __VA_ARGS__)
#define cr_assert_geq(A, B, ...)  PLAIN_CHECK((A) >= (B), #A " >= " #B, __VA_ARGS__)
#define cr_assert_null(A, ...)    PLAIN_CHECK((A) == NULL, #A " is NULL", __VA_ARGS__)
#define cr_assert_not_null(A, ...)                                                       \
    PLAIN_CHECK((A) != NULL, #A " is not NULL", __VA_ARGS__)
#define cr_assert_str_eq(A, B, ...)                                                      \
    PLAIN_CHECK(strcmp((A), (B)) == 0, #A " is " #B, __VA_ARGS__)
#define cr_skip_test(...) plain_skip(" " __VA_ARGS__)

struct criterion_test_set;
struct criterion_test_set *criterion_initialize(void);
int criterion_handle_args(int argc, char **argv, bool unknown_is_error);
int criterion_run_all_tests(struct criterion_test_set *tests);
void criterion_finalize(struct criterion_test_set *tests);

#endif
