/*
 * nbd-address.h: an NBD URI (nbd.h) taken apart.
 */
#ifndef FORMATS_NBD_ADDRESS_H
#define FORMATS_NBD_ADDRESS_H

#include <glib.h>
#include <stdbool.h>

#define NBD_PORT_DEFAULT "10809"

typedef struct nbd_address {
    char *shown;       /* the URI, fit for messages */
    char *identity;    /* the same for two URIs of one export */
    char *host, *port; /* TCP, */
    char *socket;      /* or Unix */
    char *export_name;
    bool tls;
    char *user, *psk_file, *certificates;
} nbd_address;

bool nbd_is_uri(const char *word);
bool nbd_address_parse(const char *uri, nbd_address *ret_address, GError **error);
void nbd_address_clear(nbd_address *address);

#endif
