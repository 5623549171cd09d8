/*
 * cli.h: what the sub-commands share: the table's entries, words and options, messages,
 * and how a mount is found from its mount point.
 */
#ifndef FUSE_CLI_H
#define FUSE_CLI_H

#include "fuse/config.h"
#include <jansson.h>
#include <stdio.h>

/* Exit codes, as in quorumfs(1). */
enum {
    CLI_OK = 0,
    CLI_USAGE = 1,
    CLI_UNREACHABLE = 2,   /* status, info, explain, events: cannot be opened or reached;
                            import and export: cannot be read, or written in that form;
                            standard output cannot be written */
    CLI_FAILED = 32,       /* mount and umount, as mount(8) */
    CLI_VERIFY_USAGE = 64, /* verify, scrub, resync */
};

/* One sub-command. argv[0] is its own name. Returns the exit code, prints its own errors. */
int cmd_mount(int argc, char **argv);
int cmd_umount(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_explain(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_repair(int argc, char **argv);
int cmd_scrub(int argc, char **argv);
int cmd_resync(int argc, char **argv);
int cmd_replica(int argc, char **argv);
int cmd_import_libvirt(int argc, char **argv);
int cmd_export_libvirt(int argc, char **argv);
/* The form of mount(8): SPEC DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]. */
int cmd_mount_helper(int argc, char **argv);

/* "quorumfs: MESSAGE" on standard error, as one line whatever the words contain. */
void cli_error(const char *format, ...) G_GNUC_PRINTF(1, 2);
/* The same, followed by "(quorumfs help COMMAND)". Returns `code`. */
int cli_usage_error(const char *command, int code, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
/* The exit code for an error of config.h: `usage` for wrong or unavailable words, else
 * `failed`. */
int cli_config_exit(const GError *error, int usage, int failed);

/* --threshold (may be NULL), then each -o in order. Call after the disks are there. */
bool cli_apply_options(mount_config *config, const char *threshold, GPtrArray *options,
                       GError **error);

typedef struct cli_option {
    const char *name; /* long, without the dashes; NULL: none */
    char letter;      /* 0: none */
    bool *flag;       /* set to true; exactly one of these three is not NULL */
    const char **value;
    GPtrArray *values; /* each use appends its (borrowed) value */
} cli_option;

/* Takes options and words in any order; "--" ends the options. Ends with {0}. --help is
 * (-h) is known everywhere: it prints the command's usage. Words (borrowed) go to `words`. Returns
 * -1 to go on, else the exit code (`usage` after an error, which has been printed). */
int cli_parse(int argc, char **argv, const cli_option *options, int usage,
              GPtrArray *words);

/* A mount of ours. */
typedef struct cli_mount {
    char *path;     /* absolute, resolved */
    json_t *status; /* status.json; NULL: the daemon is gone (a dead mount) */
} cli_mount;
/* Whether a file system of ours is mounted there, alive or dead. */
bool cli_is_mount(const char *word);
/* Finds the mount at `mountpoint` in /proc/self/mountinfo and reads its status. Prints the
 * error and returns false if there is none. */
bool cli_mount_find(const char *mountpoint, cli_mount *ret_mount);
/* As cli_mount_find, but a dead mount is an error too. */
bool cli_mount_find_live(const char *mountpoint, cli_mount *ret_mount);
void cli_mount_clear(cli_mount *mount);
/* The row of "disks" in the status, or NULL after an error line that names the nearest. */
json_t *cli_mount_disk(const cli_mount *mount, const char *name);

/* `scrub MOUNTPOINT DISK`, and so `repair MOUNTPOINT DISK`. Returns the exit code, prints what
 * there is to print. */
typedef struct cli_scrub_options {
    bool repair;
    bool cancel; /* no new one; ends the one that runs */
    bool wait;   /* until it has ended */
    bool lines;  /* progress, also if standard error is no terminal */
    uint64_t speed;
} cli_scrub_options;
int cli_scrub(const char *mountpoint, const char *name, const cli_scrub_options *options);

/* A small file, at most `limit` bytes; NULL with errno set. */
char *cli_read_file(const char *path, size_t limit, size_t *ret_length);

/* Usage texts (help.c). NULL: the overview. False: no such command. */
bool help_print(FILE *out, const char *command);

/* "1.5 GiB", at most 9 characters, into a static ring of a few buffers. */
const char *cli_size_text(uint64_t bytes);

#endif
