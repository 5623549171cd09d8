/*
 * chain-support.h: opening chains in tests.
 */
#ifndef TESTS_CHAIN_SUPPORT_H
#define TESTS_CHAIN_SUPPORT_H

#include "formats/chain.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>

/* Opens `name` in the scratch directory; what it names must lie beside it. */
static inline chain *open_chain(const char *name, const chain_options *given,
                                GError **error)
{
    g_autofree char *path = support_path("%s", name);
    path_policy *policy = path_policy_new();
    chain_options options = *given;
    options.path = path;
    options.policy = policy;
    path_policy_add_image(policy, path, NULL);
    chain *c = chain_open(&options, error);
    path_policy_free(policy);
    return c;
}

static inline chain *must_open(const char *name, const chain_options *options)
{
    GError *error = NULL;
    chain *c = open_chain(name, options, &error);
    cr_assert_not_null(c, "%s: %s", name, error ? error->message : "no error");
    return c;
}

/* The open must fail with `code`, in one line that has all of `parts`. */
static inline void must_refuse(const char *name, const chain_options *options, int code,
                               const char *const *parts)
{
    GError *error = NULL;
    chain *c = open_chain(name, options, &error);
    cr_assert_null(c, "%s was opened", name);
    cr_assert_not_null(error, "%s: no error", name);
    cr_assert(g_error_matches(error, IMAGE_ERROR, code), "%s: code %d: %s", name,
              error->code, error->message);
    cr_assert_null(strchr(error->message, '\n'), "%s", error->message);
    for (; *parts; parts++)
        cr_assert_not_null(strstr(error->message, *parts), "'%s' is not in: %s", *parts,
                           error->message);
    g_error_free(error);
}

#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Replaces the first `from` in the file's bytes by `to`, of the same length. */
static inline void replace_bytes(const char *name, const void *from, const void *to,
                                 size_t length)
{
    g_autofree char *path = support_path("%s", name);
    size_t size;
    g_autofree uint8_t *bytes = support_load(path, &size);
    const uint8_t *found = memmem(bytes, size, from, length);
    cr_assert_not_null(found, "%s has no such bytes", name);
    support_poke(path, (uint64_t)(found - bytes), to, length);
}

#endif
