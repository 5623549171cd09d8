/*
 * chain-format.c: what kind of image a file is (O1).
 *
 * A name decides: the operator's word, the backing-format header, the suffix. The content
 * is looked at only to object to a suffix, never to choose.
 */
#include "formats/chain-internal.h"
#include <string.h>

typedef struct content_magic {
    const char *magic;
    const char *name;
} content_magic;

/* Not ours to read, but certainly not meant as raw by who gave the file its suffix. */
static const content_magic foreign[] = {
    {"KDMV", "VMDK"}, {"vhdxfile", "VHDX"}, {"conectix", "VHD"}, {"QED", "QED"}};

static const char *const kind_names[] = {
    [LAYER_RAW] = "raw", [LAYER_QCOW1] = "qcow", [LAYER_QCOW2] = "qcow2"};

const char *chain_kind_name(layer_kind kind)
{
    return kind_names[kind];
}

bool chain_kind_from_name(const char *name, layer_kind *ret_kind)
{
    for (size_t i = 0; i < G_N_ELEMENTS(kind_names); i++) {
        if (!strcmp(name, kind_names[i])) {
            *ret_kind = (layer_kind)i;
            return true;
        }
    }
    return false;
}

bool chain_kind_from_suffix(const char *path, layer_kind *ret_kind)
{
    g_autofree char *base = g_path_get_basename(path);
    const char *dot = strrchr(base, '.');
    if (!dot)
        return false;
    if (!strcmp(dot + 1, "img")) {
        *ret_kind = LAYER_RAW;
        return true;
    }
    return chain_kind_from_name(dot + 1, ret_kind);
}

/* The name of the format whose magic the file starts with; NULL: none that is known.
 * *ret_kind is LAYER_RAW unless it is one of ours. */
static const char *look_at(int fd, layer_kind *ret_kind)
{
    uint8_t start[8] = {0};
    *ret_kind = LAYER_RAW;
    if (file_read_full(fd, start, sizeof start, 0))
        return NULL;
    if (!memcmp(start, "QFI\xfb", 4)) {
        bool version_1 = !memcmp(start + 4, "\0\0\0\1", 4);
        *ret_kind = version_1 ? LAYER_QCOW1 : LAYER_QCOW2;
        return chain_kind_name(*ret_kind);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(foreign); i++) {
        size_t length = MAX(4, strlen(foreign[i].magic));
        if (!memcmp(start, foreign[i].magic, length))
            return foreign[i].name;
    }
    return NULL;
}

/* How to name a format. With `other` LAYER_RAW there is only one way to read the file. */
static char *hint(layer_kind other, const char *path, const layer *referrer)
{
    const char *name = chain_kind_name(other);
    if (referrer && referrer->kind == LAYER_QCOW1)
        return g_strdup("a qcow image cannot name the format: rename the backing file");
    if (referrer)
        return g_strdup_printf("name the format in the image: qemu-img rebase -u -F %s "
                               "-b BACKING IMAGE",
                               other == LAYER_RAW ? "FMT" : name);
    if (other == LAYER_RAW)
        return g_strdup_printf("name the format, e.g. raw:%s", path);
    return g_strdup_printf("name the format: raw:%s reads it as raw, %s:%s as %s", path,
                           name, path, name);
}

bool chain_kind_agrees(int fd, layer_kind kind, const char *path, const layer *referrer,
                       GError **error)
{
    layer_kind content;
    const char *found = look_at(fd, &content);
    if (found ? content == kind && kind != LAYER_RAW : kind == LAYER_RAW)
        return true;
    g_autofree char *how = hint(content, path, referrer);
    if (found)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_FORMAT,
                    "%s: the suffix says %s, but it starts like a %s image (%s)", path,
                    chain_kind_name(kind), found, how);
    else
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_FORMAT,
                    "%s: the suffix says %s, but it is not a %s image (%s)", path,
                    chain_kind_name(kind), chain_kind_name(kind), how);
    return false;
}

void chain_kind_unknown(int fd, const char *path, const layer *referrer, GError **error)
{
    layer_kind content;
    look_at(fd, &content);
    g_autofree char *how = hint(content, path, referrer);
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_FORMAT,
                "%s: no format is given and the suffix does not tell it (%s)", path, how);
}

bool chain_names_qcow2(const char *path, const char *format)
{
    layer_kind kind;
    bool known = format ? chain_kind_from_name(format, &kind)
                        : chain_kind_from_suffix(path, &kind);
    return known && kind == LAYER_QCOW2;
}
