/*
 * tree.c: see tree.h.
 *
 * Nodes stand in one array in the order of their inode numbers: the four fixed ones, then
 * four for each disk. A node's children are found by their parent number; with a handful
 * of disks that is cheaper than any table.
 */
#include "fuse/tree.h"
#include "fuse/status.h"
#include <string.h>
#include <time.h>

#define CONTROL_NAME ".quorumfs"

enum { FIXED_NODES = 4, NODES_PER_DISK = 4 };
enum { INO_ROOT = 1, INO_CONTROL = 2 };

struct tree {
    const daemon_context *daemon;
    unsigned count;
    tree_node nodes[];
};

/* ---- Names ------------------------------------------------------------------------ */

static bool check_name(const char *what, const char *name, GError **error)
{
    if (*name && strlen(name) <= 255 && !strchr(name, '/') && strcmp(name, ".") != 0 &&
        strcmp(name, "..") != 0)
        return true;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                "%s '%s' cannot be the name of a file", what, name);
    return false;
}

/* One disk against the fixed names and the disks before it. */
static bool check_disk(const mount_config *config, unsigned index, GError **error)
{
    const disk_options *own = config->disks->pdata[index];
    if (!check_name("disk name", own->name, error) ||
        !check_name("disk file", own->file, error))
        return false;
    if (strcmp(own->file, CONTROL_NAME) == 0 || strcmp(own->name, "status.json") == 0 ||
        strcmp(own->name, "metrics") == 0) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "disk '%s': its name or file '%s' is taken by quorumfs itself",
                    own->name, own->file);
        return false;
    }
    for (unsigned i = 0; i < index; i++) {
        const disk_options *other = config->disks->pdata[i];
        bool same_name = strcmp(other->name, own->name) == 0;
        if (!same_name && strcmp(other->file, own->file) != 0)
            continue;
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "disks '%s' and '%s' have the same %s", other->name, own->name,
                    same_name ? "name" : "file");
        return false;
    }
    return true;
}

bool tree_check_names(const mount_config *config, GError **error)
{
    for (unsigned i = 0; i < config->disks->len; i++)
        if (!check_disk(config, i, error))
            return false;
    return true;
}

/* ---- Building --------------------------------------------------------------------- */

static struct timespec now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time;
}

/* umask= takes the place of our defaults, as in libfuse, so that it can give as well as
 * take; but nothing becomes executable, and nothing below .quorumfs writable. */
static mode_t mode_of(tree_kind kind, const mount_config *config)
{
    mode_t given = config->has_umask ? 0777 & ~config->umask : 0;
    switch (kind) {
    case TREE_ROOT:
        return S_IFDIR | (config->has_umask ? 0555 & given : 0555);
    case TREE_CONTROL_DIR:
    case TREE_DISK_DIR:
        return S_IFDIR | (config->has_umask ? 0555 & given : 0550);
    case TREE_DISK:
        return S_IFREG | (config->has_umask ? 0666 & given : 0600);
    default:
        return S_IFREG | (config->has_umask ? 0444 & given : 0440);
    }
}

static tree_node *add_node(tree *t, tree_kind kind, uint64_t parent, const char *name)
{
    const mount_config *config = t->daemon->config;
    tree_node *node = &t->nodes[t->count++];
    node->kind = kind;
    node->ino = t->count;
    node->parent = parent;
    node->name = name;
    node->mode = mode_of(kind, config);
    node->uid = config->has_uid ? config->uid : geteuid();
    node->gid = config->has_gid ? config->gid : getegid();
    node->atime = node->mtime = node->ctime = now();
    g_mutex_init(&node->lock);
    return node;
}

/* A disk is as new as the newest of its replicas' top layers. */
static void take_times(tree_node *node)
{
    struct timespec newest = {0};
    for (unsigned i = 0; i < disk_replica_count(node->disk); i++) {
        struct stat st;
        const char *top = disk_replica_file(node->disk, i);
        if (!top || stat(top, &st) != 0)
            continue;
        if (st.st_mtim.tv_sec > newest.tv_sec ||
            (st.st_mtim.tv_sec == newest.tv_sec && st.st_mtim.tv_nsec > newest.tv_nsec))
            newest = st.st_mtim;
    }
    if (newest.tv_sec > 0)
        node->atime = node->mtime = node->ctime = newest;
}

static void add_disk(tree *t, disk *d, journal *j)
{
    tree_node *file = add_node(t, TREE_DISK, INO_ROOT, disk_file(d));
    file->disk = d;
    take_times(file);
    tree_node *dir = add_node(t, TREE_DISK_DIR, INO_CONTROL, disk_name(d));
    add_node(t, TREE_JOURNAL, dir->ino, "divergence.jsonl")->journal = j;
    add_node(t, TREE_MAP, dir->ino, "divergence.map")->disk = d;
}

tree *tree_new(const daemon_context *daemon)
{
    size_t count = FIXED_NODES + (size_t)NODES_PER_DISK * daemon->disks->len;
    tree *t = g_malloc0(sizeof *t + count * sizeof t->nodes[0]);
    t->daemon = daemon;
    add_node(t, TREE_ROOT, INO_ROOT, "");
    add_node(t, TREE_CONTROL_DIR, INO_ROOT, CONTROL_NAME);
    add_node(t, TREE_STATUS, INO_CONTROL, "status.json");
    add_node(t, TREE_METRICS, INO_CONTROL, "metrics");
    for (unsigned i = 0; i < daemon->disks->len; i++)
        add_disk(t, daemon->disks->pdata[i], daemon->journals->pdata[i]);
    return t;
}

void tree_free(tree *t)
{
    if (!t)
        return;
    for (unsigned i = 0; i < t->count; i++)
        g_mutex_clear(&t->nodes[i].lock);
    g_free(t);
}

/* ---- Finding ---------------------------------------------------------------------- */

const daemon_context *tree_daemon(const tree *t)
{
    return t->daemon;
}

tree_node *tree_get(const tree *t, uint64_t ino)
{
    if (ino == 0 || ino > t->count)
        return NULL;
    return (tree_node *)&t->nodes[ino - 1];
}

tree_node *tree_child(const tree *t, const tree_node *dir, unsigned index)
{
    /* The root is its own parent; it is never a child. */
    for (uint64_t ino = INO_ROOT + 1; ino <= t->count; ino++) {
        tree_node *node = tree_get(t, ino);
        if (node->parent == dir->ino && index-- == 0)
            return node;
    }
    return NULL;
}

tree_node *tree_lookup(const tree *t, const tree_node *dir, const char *name)
{
    tree_node *node;
    for (unsigned i = 0; (node = tree_child(t, dir, i)); i++)
        if (strcmp(node->name, name) == 0)
            return node;
    return NULL;
}

bool tree_is_dir(const tree_node *node)
{
    return node->kind == TREE_ROOT || node->kind == TREE_CONTROL_DIR ||
           node->kind == TREE_DISK_DIR;
}

/* ---- Attributes ------------------------------------------------------------------- */

void tree_stat(tree_node *node, struct stat *ret_st)
{
    *ret_st = (struct stat){.st_ino = node->ino, .st_nlink = 1, .st_blksize = 4096};
    if (tree_is_dir(node))
        ret_st->st_nlink = 2;
    if (node->kind == TREE_DISK) {
        ret_st->st_size = (off_t)disk_size(node->disk);
        ret_st->st_blocks = (blkcnt_t)((disk_allocated(node->disk) + 511) / 512);
    }
    g_mutex_lock(&node->lock);
    ret_st->st_mode = node->mode;
    ret_st->st_uid = node->uid;
    ret_st->st_gid = node->gid;
    ret_st->st_atim = node->atime;
    ret_st->st_mtim = node->mtime;
    ret_st->st_ctim = node->ctime;
    g_mutex_unlock(&node->lock);
}

void tree_change_attributes(tree_node *node, const tree_change *change)
{
    g_mutex_lock(&node->lock);
    if (change->has_mode)
        node->mode = (node->mode & S_IFMT) | (change->mode & 07777);
    if (change->has_uid)
        node->uid = change->uid;
    if (change->has_gid)
        node->gid = change->gid;
    if (change->has_atime)
        node->atime = change->atime;
    if (change->has_mtime)
        node->mtime = change->mtime;
    node->ctime = change->has_ctime ? change->ctime : now();
    g_mutex_unlock(&node->lock);
}

void tree_touch(tree_node *node)
{
    struct timespec time = now();
    g_mutex_lock(&node->lock);
    node->mtime = node->ctime = time;
    g_mutex_unlock(&node->lock);
}

char *tree_content(const tree *t, const tree_node *node, gsize *ret_length)
{
    char *text = NULL;
    switch (node->kind) {
    case TREE_STATUS:
        text = status_json(t->daemon);
        break;
    case TREE_METRICS:
        text = status_metrics(t->daemon);
        break;
    case TREE_MAP:
        text = status_divergence_map(node->disk);
        break;
    case TREE_JOURNAL:
        return journal_snapshot(node->journal, ret_length, NULL);
    default:
        return NULL;
    }
    *ret_length = strlen(text);
    return text;
}
