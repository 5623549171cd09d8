/*
 * nbd-connect.c: a connection to a server, made within a deadline.
 *
 * The handle belongs to the calling thread alone until it is connected, so no lock is held
 * while a name is looked up, which is the one step that libnbd cannot be interrupted in.
 */
#include "formats/nbd-internal.h"
#include "formats/path.h"
#include <errno.h>
#include <poll.h>
#include <unistd.h>

/* Of data in one command where the server does not say: what every server must take. */
#define BLOCK_MAX 0x2000000u
/* A server that takes less at once has a million commands made of one request. */
#define BLOCK_MAX_LEAST 4096u

/* What libnbd says of its own functions is of no use to people, and what it repeats of the
 * server's words is not to be trusted. */
static void set_error(GError **error, const nbd_address *address, const char *what)
{
    const char *said = nbd_get_error();
    const char *colon = said ? strstr(said, ": ") : NULL;
    if (colon && g_str_has_prefix(said, "nbd_"))
        said = colon + 2;
    g_autofree char *clean = path_printable(said ? said : g_strerror(nbd_get_errno()));
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s%s", address->shown, what,
                clean);
}

/* Without its own list of authorities libnbd takes the system's, and does not look at the
 * host's name then (nbd.h). */
static bool check_certificates(const nbd_address *address, GError **error)
{
    g_autofree char *authority =
        g_build_filename(address->certificates, "ca-cert.pem", NULL);
    if (access(authority, R_OK) == 0)
        return true;
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED, "%s: %s: %s", address->shown,
                authority, g_strerror(errno));
    return false;
}

static bool prepare_tls(struct nbd_handle *h, const nbd_address *address)
{
    return nbd_set_tls(h, LIBNBD_TLS_REQUIRE) == 0 &&
           nbd_set_tls_verify_peer(h, true) == 0 &&
           (!address->user || nbd_set_tls_username(h, address->user) == 0) &&
           (!address->psk_file || nbd_set_tls_psk_file(h, address->psk_file) == 0) &&
           (!address->certificates ||
            nbd_set_tls_certificates(h, address->certificates) == 0);
}

static bool prepare(struct nbd_handle *h, const nbd_address *address)
{
    const uint32_t strict = LIBNBD_STRICT_MASK & ~LIBNBD_STRICT_ALIGN;
    return nbd_set_export_name(h, address->export_name) == 0 &&
           nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
           nbd_set_strict_mode(h, strict) == 0 &&
           (!address->tls || prepare_tls(h, address));
}

static bool begin(struct nbd_handle *h, const nbd_address *address)
{
    return address->socket ? nbd_aio_connect_unix(h, address->socket) == 0
                           : nbd_aio_connect_tcp(h, address->host, address->port) == 0;
}

/* One step. 0: time is up, or somebody woke us. -1: libnbd says why. */
static int advance(struct nbd_handle *h, gint64 deadline, int wake_fd)
{
    unsigned direction = nbd_aio_get_direction(h);
    bool in = direction & LIBNBD_AIO_DIRECTION_READ;
    bool out = direction & LIBNBD_AIO_DIRECTION_WRITE;
    struct pollfd entries[] = {
        {.fd = nbd_aio_get_fd(h),
         .events = (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0))},
        {.fd = wake_fd, .events = POLLIN},
    };
    gint64 left = (deadline - g_get_monotonic_time() + 999) / 1000;
    if (left <= 0)
        return 0;
    int ready = poll(entries, G_N_ELEMENTS(entries), (int)MIN(left, G_MAXINT));
    if (ready < 0 && errno == EINTR)
        return 1;
    if (ready <= 0 || entries[1].revents)
        return 0;
    if (in && entries[0].revents & (POLLIN | POLLHUP | POLLERR))
        return nbd_aio_notify_read(h) < 0 ? -1 : 1;
    return nbd_aio_notify_write(h) < 0 ? -1 : 1;
}

/* ---- What the server says of the export --------------------------------------------- */

static bool facts_refuse(GError **error, const nbd_address *address, const char *format,
                         ...) G_GNUC_PRINTF(3, 4);

static bool facts_refuse(GError **error, const nbd_address *address, const char *format,
                         ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_INVALID, "%s: %s", address->shown, why);
    return false;
}

static bool facts_check(const nbd_facts *facts, int64_t smallest, int64_t largest,
                        const nbd_address *address, GError **error)
{
    if (smallest > 65536 || (smallest & (smallest - 1)))
        return facts_refuse(error, address,
                            "a smallest block of %" G_GINT64_FORMAT " bytes", smallest);
    if (largest < BLOCK_MAX_LEAST || facts->block_max < facts->block_min)
        return facts_refuse(error, address,
                            "a largest block of %" G_GINT64_FORMAT " bytes", largest);
    if (facts->size > IMAGE_SIZE_MAX)
        return facts_refuse(error, address, "larger than 2^62 bytes");
    if (facts->size % facts->block_min)
        return facts_refuse(error, address,
                            "its size is not a multiple of its smallest block, %u bytes",
                            facts->block_min);
    return true;
}

bool nbd_facts_equal(const nbd_facts *a, const nbd_facts *b)
{
    return a->size == b->size && a->block_min == b->block_min &&
           a->block_max == b->block_max && a->read_only == b->read_only &&
           a->can_flush == b->can_flush && a->can_fua == b->can_fua &&
           a->can_zero == b->can_zero && a->can_map == b->can_map &&
           a->many_connections == b->many_connections;
}

static bool facts_read(struct nbd_handle *h, const nbd_address *address,
                       nbd_facts *ret_facts, GError **error)
{
    int64_t size = nbd_get_size(h);
    int64_t smallest = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t largest = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
    if (size < 0 || smallest < 0 || largest < 0)
        return facts_refuse(error, address, "its size is absurd");
    smallest = smallest ? smallest : 1;
    largest = largest ? largest : BLOCK_MAX;
    *ret_facts = (nbd_facts){
        .size = (uint64_t)size,
        .block_min = (uint32_t)smallest,
        .block_max = (uint32_t)(MIN(largest, BLOCK_MAX) / smallest * smallest),
        .read_only = nbd_is_read_only(h) > 0,
        .can_flush = nbd_can_flush(h) > 0,
        .can_fua = nbd_can_fua(h) > 0,
        .can_zero = nbd_can_zero(h) > 0,
        .can_map = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
        .many_connections = nbd_can_multi_conn(h) > 0,
    };
    return facts_check(ret_facts, smallest, largest, address, error);
}

struct nbd_handle *nbd_handle_connect(const nbd_address *address, unsigned timeout_ms,
                                      int wake_fd, nbd_facts *ret_facts, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    if (address->certificates && !check_certificates(address, error))
        return NULL;
    struct nbd_handle *h = nbd_create();
    if (!h || !prepare(h, address) || !begin(h, address)) {
        set_error(error, address, "");
        nbd_close(h);
        return NULL;
    }
    int going = 1;
    while (going > 0 && nbd_aio_is_connecting(h) > 0)
        going = advance(h, deadline, wake_fd);
    if (going == 0)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO,
                    "%s: the server did not answer in time", address->shown);
    else if (nbd_aio_is_ready(h) <= 0)
        set_error(error, address, "");
    else if (facts_read(h, address, ret_facts, error))
        return h;
    nbd_close(h);
    return NULL;
}
