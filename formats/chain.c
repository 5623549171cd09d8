/*
 * chain.c: a chain read as one disk.
 *
 * A read walks the units from the top down: what a unit holds is answered there, what it
 * leaves open goes to the next one. Below the last unit, and past the end of a unit that is
 * shorter than the one above it, everything is zero, whatever lies deeper.
 *
 * Bytes that lie in a host file as they are become ops of the caller's list (neighbours in
 * one op); everything else is in the buffer when the walk returns. The walk allocates
 * nothing.
 */
#include "formats/chain-internal.h"
#include <errno.h>
#include <string.h>

typedef struct walk {
    const chain_stack *stack;
    io_list *list;
    size_t first; /* the list's length when the walk began: older ops are not touched */
    unsigned owner;
} walk;

typedef struct chain_buffer {
    uint8_t *bytes;
    size_t capacity;
} chain_buffer;

static void buffer_free(void *data)
{
    chain_buffer *buffer = data;
    g_free(buffer->bytes);
    g_free(buffer);
}

static GPrivate this_list = G_PRIVATE_INIT(io_list_destroy);
static GPrivate this_buffer = G_PRIVATE_INIT(buffer_free);

/* This thread's buffer for the second opinion of decoder=both. */
static chain_buffer *get_buffer(size_t length)
{
    chain_buffer *buffer = g_private_get(&this_buffer);
    if (!buffer) {
        buffer = g_new0(chain_buffer, 1);
        g_private_set(&this_buffer, buffer);
    }
    if (buffer->capacity < length) {
        g_free(buffer->bytes);
        buffer->bytes = g_malloc(length);
        buffer->capacity = length;
    }
    return buffer;
}

static bool continues(const io_op *op, const io_op *next)
{
    return op->fd == next->fd && op->offset + op->length == next->offset &&
           (uint8_t *)op->buf + op->length == next->buf &&
           op->length + next->length <= IO_BYTES_MAX;
}

static void add_op(walk *w, io_op op)
{
    io_list *list = w->list;
    if (list->count > w->first && continues(&list->ops[list->count - 1], &op))
        list->ops[list->count - 1].length += op.length;
    else
        io_list_add(list, op);
}

static void add_read(walk *w, int fd, uint8_t *buf, uint64_t offset, size_t length)
{
    while (length > 0) {
        size_t part = MIN(length, IO_BYTES_MAX);
        add_op(w, (io_op){.fd = fd,
                          .owner = w->owner,
                          .buf = buf,
                          .length = part,
                          .offset = offset});
        buf += part;
        offset += part;
        length -= part;
    }
}

static int walk_unit(walk *w, unsigned index, uint8_t *buf, uint64_t offset,
                     size_t length);

static int walk_extent(walk *w, unsigned index, uint8_t *buf, uint64_t offset,
                       const image_extent *extent)
{
    const chain_unit *unit = &w->stack->units[index];
    size_t length = (size_t)extent->length;
    switch (extent->kind) {
    case IMAGE_EXTENT_UNALLOCATED:
        return walk_unit(w, index + 1, buf, offset, length);
    case IMAGE_EXTENT_ZERO:
        memset(buf, 0, length);
        return 0;
    case IMAGE_EXTENT_DATA:
        if (extent->fd >= 0 && unit->reader == unit->map) {
            add_read(w, extent->fd, buf, extent->host_offset, length);
            return 0;
        }
        break;
    case IMAGE_EXTENT_COMPRESSED:
        break;
    }
    return image_read(unit->reader, buf, offset, length);
}

/* Raw files are not mapped: reading a hole costs less than asking where it is. */
static int walk_unit(walk *w, unsigned index, uint8_t *buf, uint64_t offset,
                     size_t length)
{
    const chain_unit *unit = &w->stack->units[index];
    uint64_t size = index < w->stack->count ? unit->map->size : 0;
    size_t inside = offset < size ? (size_t)MIN(length, size - offset) : 0;
    memset(buf + inside, 0, length - inside);
    if (inside > 0 && unit->raw_fd >= 0) {
        add_read(w, unit->raw_fd, buf, offset, inside);
        return 0;
    }
    if (inside > 0 && unit->whole)
        return image_read(unit->reader, buf, offset, inside);
    for (size_t done = 0; done < inside;) {
        image_extent extent;
        int error = image_map(unit->map, offset + done, inside - done, &extent);
        if (!error)
            error = walk_extent(w, index, buf + done, offset + done, &extent);
        if (error)
            return error;
        done += (size_t)extent.length;
    }
    return 0;
}

/* 1: go on; 0: nothing to do; -errno. */
static int check_range(const chain *c, uint64_t offset, uint64_t length)
{
    uint64_t size = chain_size(c);
    if (offset > size || length > size - offset)
        return -EINVAL;
    return length > 0;
}

static int check_write(const chain *c, uint64_t offset, uint64_t length)
{
    return c->writable ? check_range(c, offset, length) : -EROFS;
}

/* From the unit `first` down. */
static int read_now(const chain_stack *stack, unsigned first, void *buf, uint64_t offset,
                    size_t length)
{
    io_list *list = io_list_own(&this_list);
    walk w = {.stack = stack, .list = list};
    int error = walk_unit(&w, first, buf, offset, length);
    if (error)
        return error;
    io_list_run(list);
    return io_list_error(list);
}

static int read_both(chain *c, void *buf, uint64_t offset, size_t length)
{
    const chain_buffer *second = get_buffer(length);
    int error = read_now(&c->stack, 0, buf, offset, length);
    if (!error)
        error = read_now(&c->check, 0, second->bytes, offset, length);
    if (error)
        return error;
    return memcmp(buf, second->bytes, length) ? -EBADMSG : 0;
}

int chain_read(chain *c, void *buf, uint64_t offset, size_t length)
{
    int todo = check_range(c, offset, length);
    if (todo <= 0)
        return todo;
    return c->check.count ? read_both(c, buf, offset, length)
                          : read_now(&c->stack, 0, buf, offset, length);
}

/* The top of a chain that is written is a unit of its own. No method of it runs inside of a
 * read of this thread, so the list is free. */
int chain_read_below(void *opaque, void *buf, uint64_t offset, size_t length)
{
    const chain *c = opaque;
    return read_now(&c->stack, 1, buf, offset, length);
}

int chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                       unsigned owner, io_list *list)
{
    int todo = check_range(c, offset, length);
    if (todo <= 0)
        return todo;
    if (c->check.count)
        return read_both(c, buf, offset, length);
    walk w = {.stack = &c->stack, .list = list, .first = list->count, .owner = owner};
    return walk_unit(&w, 0, buf, offset, length);
}

/* Who answers a whole read alone; NULL: nobody. */
static image *sole_reader(const chain *c)
{
    const chain_unit *top = &c->stack.units[0];
    return top->whole && !c->check.count ? top->reader : NULL;
}

void chain_read_ahead(chain *c, void *buf, uint64_t offset, size_t length)
{
    image *reader = sole_reader(c);
    if (reader)
        image_read_ahead(reader, buf, offset, length);
}

uint8_t *chain_lend(chain *c, size_t length)
{
    image *reader = sole_reader(c);
    return reader ? image_lend(reader, length) : NULL;
}

/* Asks the layers themselves, not the units: a run of libqcow's is one unit. */
int chain_map(chain *c, uint64_t offset, uint64_t length, chain_extent *ret_extent)
{
    chain_extent result = {.length = length, .layer = c->depth - 1};
    int todo = check_range(c, offset, length);
    for (unsigned i = 0; todo > 0 && i < c->depth; i++) {
        image *im = c->layers[i]->im;
        image_extent extent;
        if (offset >= im->size)
            break;
        int error = image_map(im, offset, MIN(result.length, im->size - offset), &extent);
        if (error)
            return error;
        result.length = extent.length;
        if (extent.kind == IMAGE_EXTENT_UNALLOCATED)
            continue;
        result.kind = extent.kind;
        result.layer = i;
        result.host_offset = extent.host_offset;
        result.has_host = extent.kind == IMAGE_EXTENT_DATA && extent.fd >= 0;
        break;
    }
    if (todo >= 0)
        *ret_extent = result;
    return MIN(todo, 0);
}

static void refresh_file_info(layer *l)
{
    struct stat st;
    if (file_get_stat(l->fd, &st) != 0)
        return;
    if (!S_ISBLK(st.st_mode))
        l->info.file_size = (uint64_t)st.st_size;
    l->info.file_allocated = (uint64_t)st.st_blocks * 512;
    if (l->data_fd >= 0 && file_get_stat(l->data_fd, &st) == 0)
        l->info.file_allocated += (uint64_t)st.st_blocks * 512;
}

bool chain_begin_writing(chain *c, GError **error)
{
    layer *top = c->layers[0];
    if (!c->writable)
        return true;
    if (!image_begin_writing(top->im, error))
        return false;
    top->info.dirty = false;
    refresh_file_info(top);
    return true;
}

int chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change)
{
    *ret_change = NULL;
    int todo = check_write(c, offset, length);
    return todo <= 0 ? todo
                     : image_prepare_write(c->layers[0]->im, buf, offset, length, owner,
                                           list, ret_change);
}

int chain_finish_write(chain *c, image_change *change, int result)
{
    return image_finish_write(c->layers[0]->im, change, result);
}

int chain_write(chain *c, const void *buf, uint64_t offset, size_t length)
{
    int todo = check_write(c, offset, length);
    return todo <= 0 ? todo : image_write(c->layers[0]->im, buf, offset, length);
}

int chain_write_zeroes(chain *c, uint64_t offset, uint64_t length)
{
    int todo = check_write(c, offset, length);
    return todo <= 0 ? todo : image_write_zeroes(c->layers[0]->im, offset, length);
}

int chain_discard(chain *c, uint64_t offset, uint64_t length)
{
    int todo = check_write(c, offset, length);
    return todo <= 0 ? todo : image_discard(c->layers[0]->im, offset, length);
}

int chain_resize(chain *c, uint64_t size)
{
    if (!c->writable)
        return -EROFS;
    int error = image_resize(c->layers[0]->im, size);
    if (!error) {
        __atomic_store_n(&c->size, size, __ATOMIC_RELAXED);
        c->layers[0]->info.size = size;
        refresh_file_info(c->layers[0]);
    }
    return error;
}

int chain_flush(chain *c)
{
    return c->writable ? image_flush(c->layers[0]->im) : 0;
}

int chain_flush_step(chain *c, image_flush_state *flush, unsigned owner, io_list *list)
{
    return c->writable ? image_flush_step(c->layers[0]->im, flush, owner, list) : 0;
}

static unsigned stack_abandoned(const chain_stack *stack)
{
    unsigned count = 0;
    for (unsigned i = 0; i < stack->count; i++)
        if (stack->units[i].reader != stack->units[i].map)
            count += image_abandoned(stack->units[i].reader);
    return count;
}

unsigned chain_abandoned(const chain *c)
{
    unsigned count = stack_abandoned(&c->stack) + stack_abandoned(&c->check);
    for (unsigned i = 0; i < c->depth; i++) {
        const layer *l = c->layers[i];
        count += image_abandoned(l->im);
        count += l->fd >= 0 ? io_abandoned(l->fd) : 0;
        count += l->data_fd >= 0 ? io_abandoned(l->data_fd) : 0;
    }
    return count;
}

void chain_forget_cache(chain *c)
{
    for (unsigned i = 0; i < c->depth; i++) {
        const layer *l = c->layers[i];
        if (l->fd >= 0)
            file_forget_cache(l->fd);
        if (l->data_fd >= 0)
            file_forget_cache(l->data_fd);
    }
}

/* The layer's own map, what the open saw of it, or the space that its files take. */
static uint64_t layer_allocated(const layer *l)
{
    uint64_t bytes = image_allocated(l->im);
    if (bytes == UINT64_MAX)
        bytes = l->allocated;
    return bytes == UINT64_MAX ? l->info.file_allocated : bytes;
}

uint64_t chain_allocated(const chain *c)
{
    uint64_t sum = 0, size = chain_size(c);
    for (unsigned i = 0; i < c->depth; i++)
        sum += MIN(layer_allocated(c->layers[i]), size);
    return MIN(sum, size);
}

uint64_t chain_size(const chain *c)
{
    return __atomic_load_n(&c->size, __ATOMIC_RELAXED);
}

bool chain_writable(const chain *c)
{
    return c->writable;
}

const char *chain_read_only_reason(const chain *c)
{
    return c->read_only_reason;
}

unsigned chain_depth(const chain *c)
{
    return c->depth;
}

const chain_layer *chain_get_layer(const chain *c, unsigned index)
{
    return &c->layers[index]->info;
}

int chain_write_mark(chain *c, const qcow2_mark *mark)
{
    return c->writable ? image_write_mark(c->layers[0]->im, mark) : -EROFS;
}

int chain_read_mark(const chain *c, qcow2_mark *ret_mark, const char **ret_why)
{
    const layer *top = c->layers[0];
    *ret_mark = (qcow2_mark){0};
    *ret_why = "is not a qcow2 image";
    if (top->kind != LAYER_QCOW2 || top->info.remote)
        return 0;
    return qcow2_mark_read(top->fd, ret_mark, ret_why);
}
