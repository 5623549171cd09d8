/*
 * mount.h: one FUSE mount of a daemon's disks, from the mount to the last request.
 */
#ifndef FUSE_MOUNT_H
#define FUSE_MOUNT_H

#include "fuse/daemon.h"

#define MOUNT_ERROR (mount_error_quark())
GQuark mount_error_quark(void);

typedef struct mount_session mount_session;

/* Mounts at `mountpoint` (resolved by mountpoint_prepare) and answers the kernel's INIT:
 * when this returns, a request is answered as soon as mount_serve runs. On failure
 * nothing is mounted. `daemon` must outlive the session. */
mount_session *mount_attach(const daemon_context *daemon, const char *mountpoint,
                            GError **error);

/* When something is to end, and nothing has for so long, it is given up. */
unsigned mount_patience_ms(const mount_config *config);

/* Serves until it is unmounted, whoever does that, or mount_end is called. 0 or -errno. */
int mount_serve(mount_session *m);
/* After mount_serve: how many requests are still under way, because they did not end while
 * nothing else did either. What they use must stay as it is until the process ends. */
unsigned mount_stuck(mount_session *m);

/* Ends the mount while it is served, from any other thread: unmounts if nobody uses it;
 * else has the kernel write back what it holds, takes the mount away and lets mount_serve
 * return; who still has it open gets ENOTCONN. Requests that were taken are answered, unless
 * they are stuck. May be called again, does nothing after mount_detach. */
void mount_end(mount_session *m);

/* After mount_serve: cuts the connection, and takes the mount away if it is still there.
 * Whoever still waits for an answer gets ENOTCONN: also a mount_end on another thread. */
void mount_detach(mount_session *m);
/* Only when no mount_end can run any more, and nothing is stuck. NULL is allowed. */
void mount_free(mount_session *m);

#endif
