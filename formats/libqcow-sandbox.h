/*
 * libqcow-sandbox.h: what the helper process gives up, in two stages. Private to
 * libqcow-helper.c and the tests.
 *
 * libqcow opens an image by its path, and an unprivileged user may not reopen one of mode
 * 0600 that it was handed: who may open has to stay until the images are open. Everything
 * else goes before libqcow sees a byte of them.
 */
#ifndef FORMATS_LIBQCOW_SANDBOX_H
#define FORMATS_LIBQCOW_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

/* Stage one, before libqcow: no new privileges, no capability but those that reopen a
 * file and change the user, no file written, no core, bounded memory, and a filter that
 * kills the process at any system call but those for opening files read-only, reading
 * them, sandbox_enter() and the socket. False: something of it cannot be had. */
bool sandbox_prepare(uint64_t address_space);

/* Stage two, with the images open: no privileges, no new descriptor, and a filter that
 * leaves reading, memory and the socket. Needs sandbox_prepare. */
bool sandbox_enter(void);

#endif
