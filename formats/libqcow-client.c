/*
 * libqcow-client.c: asks the decoder process, doubts it, replaces it.
 *
 * A helper is in one of two states: `pid` is 0 (none; the next read starts one) or it is
 * running and owes an answer for each slot that is SLOT_ASKED, in the order of their
 * sequence numbers, and for nothing else. Whatever else happens (no answer in time, end of
 * file, an answer that does not fit the question) ends in libqcow_client_stop(), which leads
 * back to the first state, with all slots free; nothing that a helper did wrong outlives it.
 * One read is tried on at most two helpers, and waits for each at most the time-out, also
 * for what was asked before it.
 *
 * There are several slots, so that the helper decodes into one while we copy out of another,
 * if somebody has said what comes next. An answer that nobody came for is dropped when its
 * slot is needed: with one slot for each thread that is likely to read, nobody's is. What was asked ahead is believed no longer than what the helper keeps in
 * its caches: until one of the files has changed.
 *
 * libqcow keeps 128 clusters of each layer and cannot be told to forget them. A helper is
 * therefore replaced when a file of its run has changed, else a sector that rots under a
 * mounted disk would be served from memory for ever.
 *
 * What a helper writes into the shared buffer is only ever copied out, once, here or by
 * whom a part of the buffer was lent to, so that it does not matter when it changes. The
 * buffer is sealed: it cannot be cut short beneath us.
 */
#include "formats/libqcow-client.h"
#include <errno.h>
#include <string.h>

/* ---- helpers ---------------------------------------------------------------------- */

void libqcow_client_stop(libqcow_client *lc)
{
    pid_t pid = atomic_exchange(&lc->pid, 0);
    if (pid == 0)
        return;
    lc->replace = false;
    memset(lc->slots, 0, sizeof lc->slots);
    libqcow_process_end(pid, lc->socket);
}

/* Sends the opening message and takes the answer. */
static int helper_greet(libqcow_client *lc, gint64 deadline, wire_reply *ret_reply)
{
    int fds[LIBQCOW_LAYERS_MAX + 1] = {lc->memory_fd};
    memcpy(fds + 1, lc->fds, lc->n_files * sizeof(int));
    lc->opening.sequence = ++lc->sequence;
    int error =
        wire_send(lc->socket, &lc->opening, sizeof lc->opening, fds, lc->n_files + 1);
    if (!error)
        error = wire_receive(lc->socket, lc->opening.sequence, deadline, ret_reply);
    if (!error && (ret_reply->status == WIRE_READ_FAILED ||
                   (ret_reply->status != WIRE_OK && ret_reply->value >= lc->n_files)))
        error = -EIO;
    return error;
}

int libqcow_client_start(libqcow_client *lc, wire_reply *ret_reply)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)lc->timeout_ms * 1000;
    pid_t pid = 0;
    int error = libqcow_process_start(&pid, &lc->socket);
    if (error)
        return error;
    atomic_store(&lc->pid, pid);
    error = helper_greet(lc, deadline, ret_reply);
    if (error || ret_reply->status != WIRE_OK)
        libqcow_client_stop(lc);
    return error;
}

/* ---- slots ------------------------------------------------------------------------ */

/* The oldest one in this state; NULL: none. */
static libqcow_slot *slot_oldest(libqcow_client *lc, libqcow_slot_state state)
{
    libqcow_slot *oldest = NULL;
    for (unsigned i = 0; i < LIBQCOW_SLOTS; i++) {
        libqcow_slot *s = &lc->slots[i];
        /* The difference, because sequence numbers wrap. */
        if (s->state == state &&
            (!oldest || (int32_t)(s->sequence - oldest->sequence) < 0))
            oldest = s;
    }
    return oldest;
}

/* The first, whose memory is the most likely to be in a cache; NULL: none. */
static libqcow_slot *slot_free(libqcow_client *lc)
{
    for (unsigned i = 0; i < LIBQCOW_SLOTS; i++)
        if (lc->slots[i].state == SLOT_FREE)
            return &lc->slots[i];
    return NULL;
}

static libqcow_slot *slot_find(libqcow_client *lc, const libqcow_piece *p)
{
    for (unsigned i = 0; i < LIBQCOW_SLOTS; i++) {
        libqcow_slot *s = &lc->slots[i];
        if (s->state != SLOT_FREE && s->piece.offset == p->offset &&
            s->piece.length == p->length && s->piece.lent == p->lent)
            return s;
    }
    return NULL;
}

static uint8_t *slot_data(const libqcow_client *lc, const libqcow_slot *s)
{
    return s->piece.lent ? s->piece.lent
                         : lc->buffer + (size_t)(s - lc->slots) * LIBQCOW_SLOT_BYTES;
}

/* Sends the request for a slot that nothing is owed for. */
static int slot_ask(libqcow_client *lc, libqcow_slot *s, const libqcow_piece *p)
{
    *s = (libqcow_slot){.sequence = ++lc->sequence, .piece = *p};
    wire_read request = {.sequence = s->sequence,
                         .length = p->length,
                         .offset = p->offset,
                         .place = (uint64_t)(slot_data(lc, s) - lc->buffer)};
    int error = wire_send(lc->socket, &request, sizeof request, NULL, 0);
    if (!error)
        s->state = SLOT_ASKED;
    return error;
}

/* Takes the next answer, which must be the oldest request's. */
static int slot_answer(libqcow_client *lc, gint64 deadline)
{
    libqcow_slot *s = slot_oldest(lc, SLOT_ASKED);
    wire_reply reply;
    int error = wire_receive(lc->socket, s->sequence, deadline, &reply);
    if (error)
        return error;
    if (reply.status > WIRE_READ_FAILED ||
        (reply.status == WIRE_OK && reply.value != s->piece.length))
        return -EIO;
    s->reply = reply;
    s->state = SLOT_ANSWERED;
    lc->replace |= reply.replace;
    return 0;
}

/* A slot to ask for, now that none is free; what it held is lost. */
static int slot_reclaim(libqcow_client *lc, gint64 deadline, libqcow_slot **ret_slot)
{
    while (!(*ret_slot = slot_oldest(lc, SLOT_ANSWERED))) {
        int error = slot_answer(lc, deadline);
        if (error)
            return error;
    }
    return 0;
}

static int slot_get(libqcow_client *lc, const libqcow_piece *p, gint64 deadline,
                    libqcow_slot **ret_slot)
{
    int error = 0;
    libqcow_slot *s = slot_find(lc, p);
    if (!s) {
        s = slot_free(lc);
        if (!s)
            error = slot_reclaim(lc, deadline, &s);
        if (!error)
            error = slot_ask(lc, s, p);
    }
    while (!error && s->state == SLOT_ASKED)
        error = slot_answer(lc, deadline);
    *ret_slot = s;
    return error;
}

void libqcow_client_read_ahead(libqcow_client *lc, const libqcow_piece *p)
{
    if (atomic_load(&lc->pid) == 0 || lc->replace || slot_find(lc, p))
        return;
    libqcow_slot *s = slot_free(lc);
    if (!s)
        s = slot_oldest(lc, SLOT_ANSWERED);
    if (s)
        slot_ask(lc, s,
                 p); /* if that fails the slot stays free, and the read finds out */
}

/* ---- reading ---------------------------------------------------------------------- */

/* Has one piece decoded, by the helper that runs or a new one. *ret_slot is set only if
 * there was an answer. */
static int piece_request(libqcow_client *lc, const libqcow_piece *p,
                         libqcow_slot **ret_slot)
{
    if (atomic_load(&lc->pid) == 0) {
        wire_reply reply;
        int error = libqcow_client_start(lc, &reply);
        if (error || reply.status != WIRE_OK)
            return error ? error : -EIO;
    }
    gint64 deadline = g_get_monotonic_time() + (gint64)lc->timeout_ms * 1000;
    int error = slot_get(lc, p, deadline, ret_slot);
    if (error)
        libqcow_client_stop(lc);
    return error;
}

static bool files_changed(libqcow_client *lc)
{
    bool changed = false;
    for (unsigned i = 0; i < lc->n_layers; i++)
        changed |= file_stamp_changed(&lc->stamps[i], lc->fds[i]);
    return changed;
}

/* An honest "cannot read" is not tried again, unless the helper has run out of memory. */
int libqcow_client_read(libqcow_client *lc, void *buf, const libqcow_piece *p)
{
    libqcow_slot *s = NULL;
    if (files_changed(lc) || lc->replace)
        libqcow_client_stop(lc);
    int error = piece_request(lc, p, &s);
    if (!error && s->reply.status != WIRE_OK && s->reply.replace) {
        libqcow_client_stop(lc);
        error = -ENOMEM;
    }
    if (error)
        error = piece_request(lc, p, &s);
    if (error)
        return error;
    s->state = SLOT_FREE;
    if (s->reply.status != WIRE_OK)
        return -EIO;
    if (!p->lent)
        memcpy(buf, slot_data(lc, s), p->length);
    return 0;
}
