#include "fuse/tree.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

/* ---- Names ------------------------------------------------------------------------- */

static disk_options *named(const char *name, const char *file)
{
    disk_options *options = disk_options_new();
    options->name = g_strdup(name);
    options->file = g_strdup(file);
    return options;
}

/* Words are pairs of name and file, ended with NULL. */
static char *names_error(const char *const *words)
{
    mount_config *config = mount_config_new();
    for (unsigned i = 0; words[i]; i += 2)
        g_ptr_array_add(config->disks, named(words[i], words[i + 1]));
    GError *error = NULL;
    bool good = tree_check_names(config, &error);
    cr_assert_eq(good, error == NULL);
    char *message = good ? NULL : g_strdup(error->message);
    g_clear_error(&error);
    mount_config_free(config);
    return message;
}

#define assert_names(...)                                                                \
    cr_assert_null(names_error((const char *const[]){__VA_ARGS__, NULL}))

static void assert_refused(const char *const *words, const char *part)
{
    g_autofree char *message = names_error(words);
    cr_assert_not_null(message);
    cr_assert(strstr(message, part) != NULL, "%s", message);
}
#define refused(part, ...) assert_refused((const char *const[]){__VA_ARGS__, NULL}, part)

Test(tree, names_that_can_lie_beside_each_other)
{
    assert_names("disk", "disk.img");
    assert_names("one", "one.img", "two", "two.img");
    assert_names("same", "same"); /* a disk's name and its file are in two directories */
    assert_names("one", "status.json", "two", "..."); /* taken only in .quorumfs */
}

Test(tree, names_that_are_refused)
{
    refused(".quorumfs", "disk", ".quorumfs");
    refused("status.json", "status.json", "disk.img");
    refused("metrics", "metrics", "disk.img");
    refused("a/b", "disk", "a/b");
    refused("a/b", "a/b", "disk.img");
    refused("'.'", "disk", ".");
    refused("'..'", "..", "disk.img");
    refused("''", "disk", "");
    refused("same file", "one", "x.img", "two", "x.img");
    refused("same name", "one", "x.img", "one", "y.img");
}

/* ---- The tree of two disks ----------------------------------------------------------- */

typedef struct fixture {
    daemon_context context;
    mount_config *config;
    tree *tree;
} fixture;

static void add_disk(fixture *f, const char *name, const char *file)
{
    disk_options *options = named(name, file);
    replica_options *replica = replica_options_new();
    uint8_t content[4096] = {0};
    replica->name = g_strdup("a");
    replica->path = support_path("%s.raw", name);
    replica->source = g_strdup(replica->path);
    replica->format = g_strdup("raw");
    support_save(replica->path, content, sizeof content);
    g_ptr_array_add(options->replicas, replica);
    g_ptr_array_add(f->config->disks, options);
    GError *error = NULL;
    disk *d = disk_open(options, NULL, &error);
    cr_assert(d != NULL, "%s", error ? error->message : "no error");
    g_ptr_array_add(f->context.disks, d);
    g_ptr_array_add(f->context.journals, NULL);
}

static void setup(fixture *f)
{
    *f = (fixture){.config = mount_config_new()};
    f->context.config = f->config;
    f->context.disks = g_ptr_array_new();
    f->context.journals = g_ptr_array_new();
    add_disk(f, "one", "one.img");
    add_disk(f, "two", "two.img");
    f->config->umask = 0027;
    f->config->has_umask = true;
    f->config->has_uid = true;
    f->config->uid = 77;
    f->tree = tree_new(&f->context);
}

static void teardown(fixture *f)
{
    tree_free(f->tree);
    for (unsigned i = 0; i < f->context.disks->len; i++)
        disk_close(f->context.disks->pdata[i]);
    g_ptr_array_unref(f->context.disks);
    g_ptr_array_unref(f->context.journals);
    mount_config_free(f->config);
}

static tree_node *walk(fixture *f, const char *path)
{
    tree_node *node = tree_get(f->tree, 1);
    g_auto(GStrv) names = g_strsplit(path, "/", -1);
    for (unsigned i = 0; node && names[i]; i++)
        if (*names[i])
            node = tree_lookup(f->tree, node, names[i]);
    return node;
}

Test(tree, every_path_is_found_and_has_its_own_inode_number)
{
    fixture f;
    setup(&f);
    const char *const paths[] = {
        "",
        ".quorumfs",
        ".quorumfs/status.json",
        ".quorumfs/metrics",
        "one.img",
        ".quorumfs/one",
        ".quorumfs/one/divergence.jsonl",
        ".quorumfs/one/divergence.map",
        "two.img",
        ".quorumfs/two",
        ".quorumfs/two/divergence.jsonl",
        ".quorumfs/two/divergence.map",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++) {
        tree_node *node = walk(&f, paths[i]);
        cr_assert(node != NULL, "%s", paths[i]);
        cr_assert_eq(node->ino, i + 1u, "%s", paths[i]);
        cr_assert(tree_get(f.tree, i + 1) == node);
    }
    cr_assert_null(tree_get(f.tree, 0));
    cr_assert_null(tree_get(f.tree, G_N_ELEMENTS(paths) + 1));
    cr_assert_null(tree_get(f.tree, UINT64_MAX));
    teardown(&f);
}

Test(tree, what_is_not_there_is_not_found)
{
    fixture f;
    setup(&f);
    cr_assert_null(walk(&f, "one"));
    cr_assert_null(walk(&f, "metrics"));
    cr_assert_null(walk(&f, ".quorumfs/one.img"));
    cr_assert_null(walk(&f, "one.img/x"));
    cr_assert_null(tree_child(f.tree, tree_get(f.tree, 1), 3));
    teardown(&f);
}

Test(tree, attributes_come_from_the_disk_and_the_configuration)
{
    fixture f;
    setup(&f);
    struct stat st;
    tree_stat(walk(&f, "two.img"), &st);
    cr_assert_eq(st.st_mode, (mode_t)(S_IFREG | 0640));
    cr_assert_eq(st.st_size, 4096);
    cr_assert_eq(st.st_uid, 77u);
    cr_assert_eq(st.st_gid, getegid());
    cr_assert_eq(st.st_ino, 9u);
    tree_stat(walk(&f, ".quorumfs/metrics"), &st);
    cr_assert_eq(st.st_mode, (mode_t)(S_IFREG | 0440));
    tree_stat(walk(&f, ".quorumfs"), &st);
    cr_assert_eq(st.st_mode, (mode_t)(S_IFDIR | 0550));
    teardown(&f);
}

Test(tree, changes_last_and_a_write_is_newer)
{
    fixture f;
    setup(&f);
    tree_node *node = walk(&f, "one.img");
    tree_change change = {.has_mode = true,
                          .mode = 0100640,
                          .has_gid = true,
                          .gid = 5,
                          .has_mtime = true,
                          .mtime = {.tv_sec = 1000}};
    struct stat st;
    tree_change_attributes(node, &change);
    tree_stat(node, &st);
    cr_assert_eq(st.st_mode, (mode_t)(S_IFREG | 0640));
    cr_assert_eq(st.st_uid, 77u);
    cr_assert_eq(st.st_gid, 5u);
    cr_assert_eq(st.st_mtim.tv_sec, 1000);
    cr_assert_gt(st.st_ctim.tv_sec, 1000);
    tree_touch(node);
    tree_stat(node, &st);
    cr_assert_gt(st.st_mtim.tv_sec, 1000);
    teardown(&f);
}
