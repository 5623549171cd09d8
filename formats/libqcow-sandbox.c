/*
 * libqcow-sandbox.c: the walls around libqcow.
 *
 * Filters add up: a system call must pass both, so the first one holds all of the second.
 * What only the first one allows is tied down by its arguments where they matter: a
 * libqcow that an image has taken over while it is being opened can read what the user may
 * read, and has nowhere to send it but to the daemon. No filter sees the path.
 *
 * The user stays the same in stage one even for root, who may need no capability to open
 * (a file of its own, a FUSE or NFS mount that asks for the user). Becoming somebody else
 * than `nobody` is what the filter does not let through.
 */
#include "formats/libqcow-sandbox.h"
#include "formats/libqcow-wire.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534
/* A container's root may have only one of the first two; either one lets it read. */
#define CAPABILITIES_TO_OPEN                                                             \
    (1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_SETGID |             \
     1u << CAP_SETUID)

#if defined(__x86_64__)
#define SECCOMP_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define SECCOMP_ARCH AUDIT_ARCH_AARCH64
#endif

/* ---- the filters ------------------------------------------------------------------ */

#if defined(SECCOMP_ARCH) && !LIBQCOW_SANITIZED
#define LOAD(field)                                                                      \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW(name)                                                                      \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1),                              \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
/* The low half of an argument, which is all that the kernel looks at in these calls. Once
 * it is loaded the call's number is gone, so these rows decide either way. */
#define ALLOW_WITH(name, n, value)                                                       \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 4), LOAD(args[n]),               \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 1, 0), KILL,                        \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define ALLOW_WITHOUT(name, n, bits)                                                     \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 4), LOAD(args[n]),               \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, 1), KILL,                        \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

#ifdef __NR_poll
#define ALLOW_POLL ALLOW(poll), ALLOW(ppoll)
#else
#define ALLOW_POLL ALLOW(ppoll)
#endif

#define CHECK_ARCH                                                                       \
    LOAD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SECCOMP_ARCH, 1, 0), KILL, LOAD(nr)
/* libqcow itself: lseek and read. The socket: recvfrom, sendto, poll. The allocator, zlib
 * and the C library: the rest. recvmsg is missing on purpose (no descriptors). */
#define ALLOW_SERVING                                                                    \
    ALLOW(read), ALLOW(lseek), ALLOW(pread64), ALLOW(recvfrom), ALLOW(sendto),           \
        ALLOW_POLL, ALLOW(brk), ALLOW(munmap), ALLOW(mremap), ALLOW(madvise),            \
        ALLOW(futex), ALLOW(clock_gettime), ALLOW(rt_sigreturn), ALLOW(restart_syscall), \
        ALLOW(exit), ALLOW(exit_group), ALLOW_WITHOUT(mmap, 2, PROT_EXEC),               \
        ALLOW_WITHOUT(mprotect, 2, PROT_EXEC)

static bool filter_install(struct sock_filter *program, size_t length)
{
    struct sock_fprog filter = {.len = (unsigned short)length, .filter = program};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0;
}

static bool filter_opening(void)
{
    /* First what libqcow calls to open (of a block device it asks the size), then what
     * sandbox_enter() does. A limit (prlimit64) is its own; the effective id is the one
     * that opens files. */
    static struct sock_filter program[] = {
        CHECK_ARCH,
        ALLOW_SERVING,
        ALLOW_WITHOUT(openat, 2, ~(uint32_t)O_CLOEXEC), /* O_RDONLY is no bit */
        ALLOW(close),
        ALLOW(fstat),
        ALLOW(newfstatat),
        ALLOW(getrandom),
        ALLOW_WITH(ioctl, 1, BLKGETSIZE64),
        ALLOW(geteuid),
        ALLOW_WITH(setgroups, 0, 0),
        ALLOW_WITH(setresgid, 1, NOBODY),
        ALLOW_WITH(setresuid, 1, NOBODY),
        ALLOW(capset),
        ALLOW_WITH(prctl, 0, PR_SET_DUMPABLE),
        ALLOW_WITH(prlimit64, 0, 0),
        ALLOW_WITH(seccomp, 0, SECCOMP_SET_MODE_FILTER),
        KILL,
    };
    return filter_install(program, G_N_ELEMENTS(program));
}

static bool filter_serving(void)
{
    static struct sock_filter program[] = {CHECK_ARCH, ALLOW_SERVING, KILL};
    return filter_install(program, G_N_ELEMENTS(program));
}
#else
static bool filter_opening(void)
{
    return true;
}

static bool filter_serving(void)
{
    return true;
}
#endif

/* ---- limits and privileges -------------------------------------------------------- */

static bool limit(int resource, uint64_t value)
{
    struct rlimit bound;
    if (getrlimit(resource, &bound) < 0)
        return false;
    bound.rlim_max = MIN(bound.rlim_max, value);
    bound.rlim_cur = bound.rlim_max;
    return setrlimit(resource, &bound) == 0;
}

static bool limits_set(uint64_t address_space)
{
    return limit(RLIMIT_FSIZE, 0) && limit(RLIMIT_CORE, 0) &&
           (LIBQCOW_SANITIZED || limit(RLIMIT_AS, address_space));
}

/* Inheritable ones go too, and with them the ambient ones. */
static bool capabilities_keep(uint32_t kept)
{
    struct __user_cap_header_struct self = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {0};
    if (kept && syscall(SYS_capget, &self, sets) < 0)
        return false;
    const struct __user_cap_data_struct low = {
        .effective = sets[0].effective & kept,
        .permitted = sets[0].permitted & kept,
    };
    sets[0] = low;
    sets[1] = (struct __user_cap_data_struct){0};
    return syscall(SYS_capset, &self, sets) == 0;
}

/* In a user namespace without such an id this cannot be had; the filter, which is the
 * real wall, leaves nothing that an id would be good for. */
static bool identity_drop(void)
{
    if (geteuid() != 0)
        return true;
    if (setgroups(0, NULL) < 0 && errno != EPERM)
        return false;
    if (setresgid(NOBODY, NOBODY, NOBODY) < 0 && errno != EINVAL && errno != EPERM)
        return false;
    return setresuid(NOBODY, NOBODY, NOBODY) == 0 || errno == EINVAL || errno == EPERM;
}

/* ---- the two stages --------------------------------------------------------------- */

/* A process that is not dumpable may still open its own /proc/self/fd. */
bool sandbox_prepare(uint64_t address_space)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 &&
           capabilities_keep(CAPABILITIES_TO_OPEN) && limits_set(address_space) &&
           filter_opening();
}

/* A change of the user makes a process dumpable again where fs.suid_dumpable says so. The
 * first three descriptors are taken: there will be no new one. */
bool sandbox_enter(void)
{
    return identity_drop() && capabilities_keep(0) &&
           prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 && limit(RLIMIT_NOFILE, 3) &&
           filter_serving();
}
