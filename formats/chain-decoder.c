/*
 * chain-decoder.c: who reads which layer.
 *
 * Our own check of header and tables has seen every layer before this. libqcow reads no
 * layer that names a backing file without having a parent, decodes raw and shorter parents
 * wrongly, and some layers not at all (layer.refusal). So it is given
 *   - the run: the longest row of layers down to the bottom that it reads rightly, as one
 *     image, which then answers for everything below its first layer;
 *   - a single layer above that, where nobody else can read it (AES) or the operator wants
 *     libqcow: an empty parent stands in, and our map says what to ask it for.
 * All other layers are read natively.
 *
 * A chain that is written is read natively where possible, whatever auto would choose: only
 * the driver that changes the top's tables knows them, and it asks us what lies below
 * (chain_read_below). Lower layers do not change, but a helper process for each replica
 * would then serve nothing but what the top does not hold.
 */
#include "formats/chain-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PASSWORD_BYTES_MAX 1024

/* For each layer whether libqcow reads it; from `run` on as one image. */
typedef struct decoder_plan {
    bool libqcow[CHAIN_DEPTH_MAX];
    unsigned run; /* the depth: there is no run */
} decoder_plan;

static bool is_qcow(const layer *l)
{
    return l->kind != LAYER_RAW;
}

/* Why the run cannot reach up to this layer; NULL: it can. Answers for the layer alone and
 * the one below it. */
static const char *run_obstacle(const chain *c, unsigned i)
{
    const layer *l = c->layers[i];
    if (l->refusal || i + 1 == c->depth)
        return l->refusal;
    const layer *below = c->layers[i + 1];
    if (!is_qcow(below))
        return "its backing file is raw";
    return below->info.size < l->info.size ? "its backing file is shorter" : NULL;
}

static unsigned run_start(const chain *c)
{
    unsigned start = c->depth;
    while (start > 0 && is_qcow(c->layers[start - 1]) && !run_obstacle(c, start - 1))
        start--;
    return start;
}

static decoder_plan plan_read_only(const chain *c)
{
    decoder_plan plan = {.run = run_start(c)};
    for (unsigned i = 0; i < c->depth; i++)
        plan.libqcow[i] = i >= plan.run || c->layers[i]->info.encrypted;
    return plan;
}

static decoder_plan plan_native(const chain *c)
{
    decoder_plan plan = {.run = c->depth};
    for (unsigned i = 0; i < c->depth; i++)
        plan.libqcow[i] = c->layers[i]->info.encrypted;
    return plan;
}

static decoder_plan plan_auto(const chain *c)
{
    return c->writable ? plan_native(c) : plan_read_only(c);
}

static decoder_plan plan_libqcow(const chain *c)
{
    decoder_plan plan = {.run = run_start(c)};
    for (unsigned i = 0; i < c->depth; i++)
        plan.libqcow[i] = is_qcow(c->layers[i]);
    return plan;
}

static bool unsupported(const layer *l, const char *why, const char *and_why,
                        GError **error)
{
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED, "%s: %s%s", l->info.filename,
                why, and_why);
    return false;
}

/* Whether every layer has somebody to read it at all, and with this decoder. */
static bool check_readable(const layer *l, chain_decoder decoder, GError **error)
{
    if (!is_qcow(l))
        return true;
    if (l->info.encrypted && decoder == CHAIN_DECODER_NATIVE)
        return unsupported(l, "AES encryption is read by libqcow only",
                           " (decoder=auto or libqcow)", error);
    if (l->info.encrypted && l->refusal)
        return unsupported(
            l,
            "AES encryption is read by libqcow only, which does not read: ", l->refusal,
            error);
    if (l->refusal && decoder == CHAIN_DECODER_LIBQCOW)
        return unsupported(l, "libqcow does not read this rightly, decoder=auto does: ",
                           l->refusal, error);
    return true;
}

/* ---- Passwords ---------------------------------------------------------------------- */

static void wipe(char *secret)
{
    if (secret)
        explicit_bzero(secret, PASSWORD_BYTES_MAX + 1);
    g_free(secret);
}

/* The first line. A password file may be a pipe. */
static char *read_password(const char *filename, GError **error)
{
    int fd = open(filename, O_RDONLY | O_CLOEXEC);
    int saved_errno = errno;
    ssize_t got = 0;
    size_t length = 0;
    char *secret = g_malloc0(PASSWORD_BYTES_MAX + 1);
    while (fd >= 0 && length < PASSWORD_BYTES_MAX && !memchr(secret, '\n', length)) {
        got = read(fd, secret + length, PASSWORD_BYTES_MAX - length);
        saved_errno = errno;
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    if (fd >= 0)
        close(fd);
    secret[strcspn(secret, "\n")] = '\0';
    if (fd >= 0 && got >= 0 && secret[0])
        return secret;
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_PASSWORD, "%s: %s", filename,
                fd < 0 || got < 0 ? g_strerror(saved_errno)
                                  : "the password file's first line is empty");
    wipe(secret);
    return NULL;
}

static bool get_password(const chain *c, const chain_options *options,
                         char **ret_password, GError **error)
{
    for (unsigned i = 0; i < c->depth; i++) {
        const layer *l = c->layers[i];
        if (!l->info.encrypted)
            continue;
        if (!options->password_file) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_PASSWORD,
                        "%s: is encrypted and there is no password (give it with "
                        "password-file=FILE)",
                        l->info.filename);
            return false;
        }
        *ret_password = read_password(options->password_file, error);
        return *ret_password != NULL;
    }
    return true;
}

/* ---- Opening ------------------------------------------------------------------------ */

static image *open_qcow1(const layer *l, int fd, GError **error)
{
    return (l->info.encrypted ? qcow1_open_mapper : qcow1_open)(fd, &l->qcow1,
                                                                l->info.filename, error);
}

/* The whole chain stands already, so that it can be asked what lies below. */
static image *open_qcow2_top(chain *c, int fd, int data_fd, GError **error)
{
    const layer *top = c->layers[0];
    image *im = qcow2_open_writable(fd, data_fd, &top->qcow2, top->info.filename, error);
    if (im && c->depth > 1)
        qcow2_set_backing(im, chain_read_below, c, c->layers[1]->info.size);
    if (im && top->allocated != UINT64_MAX)
        qcow2_set_allocated(im, top->allocated);
    return im;
}

static image *open_qcow2(chain *c, const layer *l, int fd, GError **error)
{
    int data_fd = -1;
    if (l->data_fd >= 0) {
        data_fd = chain_dup(l->data_fd, l->info.filename, error);
        if (data_fd < 0) {
            close(fd);
            return NULL;
        }
    }
    if (c->writable && l == c->layers[0])
        return open_qcow2_top(c, fd, data_fd, error);
    return (l->info.encrypted ? qcow2_open_mapper : qcow2_open)(fd, data_fd, &l->qcow2,
                                                                l->info.filename, error);
}

/* Raw layers have their image already. */
static bool open_image(chain *c, layer *l, GError **error)
{
    if (l->im)
        return true;
    int fd = chain_dup(l->fd, l->info.filename, error);
    if (fd < 0)
        return false;
    l->im =
        l->kind == LAYER_QCOW1 ? open_qcow1(l, fd, error) : open_qcow2(c, l, fd, error);
    return l->im != NULL;
}

/* The helper gets descriptors of its own, so that one that outlives us by a moment does
 * not hold our locks. */
static bool fill_libqcow_layer(const layer *l, libqcow_layer *ret, GError **error)
{
    *ret = (libqcow_layer){
        .fd = path_reopen(l->fd, false),
        .filename = l->info.filename,
        .version = l->info.version,
        .size = l->info.size,
        .cluster_size = l->info.cluster_size,
        .has_backing = l->info.backing_file != NULL,
    };
    if (ret->fd >= 0)
        return true;
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", l->info.filename,
                g_strerror(errno));
    return false;
}

static image *open_libqcow(const chain *c, unsigned first, unsigned count,
                           const libqcow_options *options, GError **error)
{
    libqcow_layer layers[CHAIN_DEPTH_MAX];
    for (unsigned i = 0; i < count; i++) {
        if (fill_libqcow_layer(c->layers[first + i], &layers[i], error))
            continue;
        while (i-- > 0)
            close(layers[i].fd);
        return NULL;
    }
    return libqcow_open(layers, count, options, error);
}

static bool build_stack(const chain *c, const decoder_plan *plan,
                        const libqcow_options *options, chain_stack *stack,
                        GError **error)
{
    unsigned count;
    for (unsigned i = 0; i < c->depth; i += count) {
        const layer *l = c->layers[i];
        count = i >= plan->run ? c->depth - i : 1;
        chain_unit unit = {.map = l->im, .reader = l->im, .raw_fd = -1};
        if (plan->libqcow[i]) {
            unit.reader = open_libqcow(c, i, count, options, error);
            unit.whole = i + count == c->depth;
        } else if (l->kind == LAYER_RAW) {
            unit.raw_fd = l->fd;
            unit.whole = l->address;
        }
        if (!unit.reader)
            return false;
        stack->units[stack->count++] = unit;
    }
    return true;
}

void chain_stack_clear(chain_stack *stack)
{
    for (unsigned i = 0; i < stack->count; i++)
        if (stack->units[i].reader != stack->units[i].map)
            image_close(stack->units[i].reader);
    stack->count = 0;
}

/* ---- What is told about it ---------------------------------------------------------- */

static void describe(chain *c, const decoder_plan *plan, const decoder_plan *check)
{
    for (unsigned i = 0; i < c->depth; i++) {
        layer *l = c->layers[i];
        bool other = check && check->libqcow[i] != plan->libqcow[i];
        l->info.decoder = l->address         ? "nbd"
                          : !is_qcow(l)      ? "raw"
                          : other            ? "both"
                          : plan->libqcow[i] ? "libqcow"
                                             : "native";
    }
}

/* Why auto, or the second reader of both, left layers above the run to the native reader. */
static void note_reasons(chain *c, const decoder_plan *wanted)
{
    for (unsigned i = 0; i < wanted->run && i < c->depth; i++) {
        layer *l = c->layers[i];
        if (!is_qcow(l) || wanted->libqcow[i])
            continue;
        const char *why = run_obstacle(c, i);
        l->info.note = c->writable ? i == 0 ? "is opened for writing"
                                            : "a layer above is opened for writing"
                       : why       ? why
                                   : "libqcow does not read a layer below";
    }
}

static bool needs_check(const decoder_plan *plan, const decoder_plan *check,
                        unsigned depth)
{
    return memcmp(plan->libqcow, check->libqcow, depth * sizeof plan->libqcow[0]) != 0;
}

static bool build_stacks(chain *c, chain_decoder decoder, const libqcow_options *options,
                         GError **error)
{
    decoder_plan by_auto = plan_auto(c);
    decoder_plan plan = decoder == CHAIN_DECODER_AUTO      ? by_auto
                        : decoder == CHAIN_DECODER_LIBQCOW ? plan_libqcow(c)
                                                           : plan_native(c);
    bool both = decoder == CHAIN_DECODER_BOTH && needs_check(&plan, &by_auto, c->depth);
    describe(c, &plan, both ? &by_auto : NULL);
    if (decoder == CHAIN_DECODER_AUTO || decoder == CHAIN_DECODER_BOTH)
        note_reasons(c, &by_auto);
    return build_stack(c, &plan, options, &c->stack, error) &&
           (!both || build_stack(c, &by_auto, options, &c->check, error));
}

bool chain_choose_decoders(chain *c, const chain_options *options, GError **error)
{
    char *password = NULL;
    for (unsigned i = 0; i < c->depth; i++)
        if (!check_readable(c->layers[i], options->decoder, error) ||
            !open_image(c, c->layers[i], error))
            return false;
    if (!get_password(c, options, &password, error))
        return false;
    libqcow_options libqcow = {.password = password, .timeout_ms = options->timeout_ms};
    bool ok = build_stacks(c, options->decoder, &libqcow, error);
    wipe(password);
    return ok;
}
