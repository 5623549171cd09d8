/*
 * help.c: usage texts.
 */
#include "fuse/cli.h"
#include <string.h>

static const char overview[] =
    "Shows N replicas of a virtual disk as one raw file whose reads are voted.\n"
    "\n"
    "usage: quorumfs COMMAND ...\n"
    "  mount [OPTIONS] IMAGE... MOUNTPOINT      one disk of N replicas: "
    "MOUNTPOINT/disk.img\n"
    "  mount [OPTIONS] CONFIG MOUNTPOINT        every disk of a configuration (.conf,\n"
    "                                           or .xml of libvirt)\n"
    "  umount [--wait] MOUNTPOINT               returns when everything is on disk\n"
    "  status MOUNTPOINT [DISK]                 how the replicas are\n"
    "  events MOUNTPOINT [--follow]             the journal, as JSON lines\n"
    "  explain MOUNTPOINT DISK OFFSET[+LENGTH]  who holds what there\n"
    "  explain IMAGE...|CONFIG OFFSET[+LENGTH]  the same, offline\n"
    "  scrub [OPTIONS] MOUNTPOINT DISK          compares all of a disk in use, repairs\n"
    "  resync [--wait] MOUNTPOINT DISK          stale replicas are filled now\n"
    "  replica add|remove|replace ...           replicas of a disk in use\n"
    "  verify [OPTIONS] IMAGE...|CONFIG         offline vote over whole images\n"
    "  repair [OPTIONS] IMAGE...|CONFIG         the same, and repairs what differs\n"
    "  repair [--wait] MOUNTPOINT DISK          as scrub --repair\n"
    "  info [--chain] IMAGE                     what an image is, layer by layer\n"
    "  import-libvirt FILE.xml                  libvirt XML as a keyfile\n"
    "  export-libvirt CONFIG                    a configuration as libvirt's elements\n"
    "  help COMMAND, --version\n"
    "\n"
    "For fstab and mount(8), type fuse.quorumfs: quorumfs CONFIG MOUNTPOINT [-o "
    "OPTIONS]\n"
    "An IMAGE is a path, FMT:PATH (qcow, qcow2, raw), an NBD URI, or exec:COMMAND.\n";

static const char mount_text[] =
    "usage: quorumfs mount [OPTIONS] IMAGE... MOUNTPOINT\n"
    "       quorumfs mount [OPTIONS] CONFIG MOUNTPOINT\n"
    "\n"
    "  --name FILE      name of the disk's file (default disk.img)\n"
    "  --threshold K    replicas that must agree (default the majority)\n"
    "  --format FMT     format of all images: qcow, qcow2 or raw\n"
    "  --force          mount what is left where too few replicas are in sync\n"
    "  -f               stay in the foreground\n"
    "  -d               debug output of libfuse, in the foreground\n"
    "  -s               one thread\n"
    "  -o OPTIONS       comma-separated, may be repeated:\n"
    "    ro                       read-only\n"
    "    threshold=K              as --threshold\n"
    "    decoder=auto|libqcow|native|both\n"
    "    replica-timeout=TIME     how long a request waits for a replica (30s)\n"
    "    read-pattern=quorum|rotate|fifo  whom a read asks\n"
    "    on-divergence=log|repair what to do with what a read finds differing\n"
    "    blkverify                two replicas; name the first byte that differs\n"
    "    allow-dir=DIR            backing files may lie there too; may be repeated\n"
    "    password-file=PATH       for AES images: its first line\n"
    "    min-replicas=N           that must be in sync on all of the disk\n"
    "    degraded=refuse|warn     where fewer are, or one cannot be opened\n"
    "    force                    as --force\n"
    "    state-dir=DIR            where records, journals and socket are kept\n"
    "    qmp=PATH                 the control socket\n"
    "    cache=auto|none|writeback\n"
    "    allow_other, uid=N, gid=N, umask=OCTAL\n"
    "  and the usual ones of mount(8). Exit: 0; 1 usage; 32 could not mount.\n";

static const char umount_text[] =
    "usage: quorumfs umount [--wait] MOUNTPOINT\n"
    "\n"
    "Returns when everything is flushed and closed and the daemon has ended.\n"
    "  --wait    if the mount is busy, wait until it is not; print how each replica "
    "ended\n"
    "Exit: 0; 1 usage; 32 could not unmount, or not everything is known to be flushed.\n";

static const char status_text[] =
    "usage: quorumfs status MOUNTPOINT [DISK] [--json|--prometheus]\n"
    "\n"
    "  --json          as in MOUNTPOINT/.quorumfs/status.json\n"
    "  --prometheus    as in MOUNTPOINT/.quorumfs/metrics\n"
    "Exit: 0; 1 usage; 2 not a mount, or not reachable.\n";

static const char events_text[] =
    "usage: quorumfs events MOUNTPOINT [--follow]\n"
    "\n"
    "Prints the journals of all disks, one JSON object a line, oldest first.\n"
    "  --follow    go on with new ones until the mount is gone\n"
    "Exit: 0; 1 usage; 2 not a mount, or not reachable.\n";

static const char explain_text[] =
    "usage: quorumfs explain [--json] MOUNTPOINT DISK OFFSET[+LENGTH]\n"
    "       quorumfs explain [OPTIONS] IMAGE... OFFSET[+LENGTH]\n"
    "       quorumfs explain [OPTIONS] CONFIG [DISK] OFFSET[+LENGTH]\n"
    "\n"
    "Who holds what in a range: digests, layer, host offset. Without LENGTH, the "
    "sector.\n"
    "OFFSET and LENGTH take K, M, G, T and 0x.\n"
    "  --json           one object, whole digests\n"
    "  --format FMT     offline: format of all images\n"
    "  --threshold K    offline: replicas that must agree\n"
    "  -o OPTIONS       offline: decoder=, allow-dir=, password-file= ... as for mount\n"
    "Exit: 0; 1 usage; 2 not reachable, or cannot be opened.\n";

static const char info_text[] =
    "usage: quorumfs info [OPTIONS] IMAGE\n"
    "\n"
    "  --chain         every layer, not only the top\n"
    "  --json          one object\n"
    "  --format FMT    qcow, qcow2 or raw\n"
    "  -o OPTIONS      decoder=, allow-dir=, password-file=, as for mount\n"
    "Exit: 0; 1 usage; 2 cannot be opened.\n";

static const char scrub_text[] =
    "usage: quorumfs scrub [OPTIONS] MOUNTPOINT DISK\n"
    "\n"
    "Begins to compare all of a disk that is in use; the journal tells what\n"
    "differs, and status how far it is. Guests go first.\n"
    "  --repair       give replicas that differ, or cannot be read somewhere, what\n"
    "                 the majority holds; without it nothing is written\n"
    "  --speed SIZE   at most so many bytes per second\n"
    "  --wait         until it is done, with a progress bar on a terminal\n"
    "  -p             with --wait: progress, also if standard error is no terminal\n"
    "  --cancel       end the one that runs\n"
    "Exit: 0 begun, or with --wait: all agree; 1 they differed, and every sector\n"
    "has a majority; 4 some could not be read or not be repaired; 5 some sector has\n"
    "no majority; 2 not reachable; 64 usage; 130 cancelled, or the waiting\n"
    "interrupted.\n";

static const char resync_text[] =
    "usage: quorumfs resync [OPTIONS] MOUNTPOINT DISK\n"
    "\n"
    "Replicas that missed changes are filled in the background, and one that could\n"
    "not be is tried again now and then. This tries at once.\n"
    "  --wait    until all are in sync, or it is known why not\n"
    "  -p        with --wait: progress, also if standard error is no terminal\n"
    "Exit: 0 begun, or with --wait: all replicas are in sync; 4 some is not; 2 not\n"
    "reachable, or nothing can be filled; 64 usage.\n";

static const char verify_text[] =
    "usage: quorumfs verify [OPTIONS] IMAGE...\n"
    "       quorumfs verify [OPTIONS] CONFIG\n"
    "\n"
    "Votes over whole images and changes nothing. One line per differing range:\n"
    "OFFSET LENGTH differs: LOSERS wins: WINNERS unreadable: REPLICAS.\n"
    "  --json             one object\n"
    "  --mapfile FILE     GNU ddrescue map: + all agree, / differ with a majority,\n"
    "                     - no majority, or a replica cannot be read there\n"
    "  --svg FILE         a picture of where replicas differ\n"
    "  --manifest FILE    SHA-256 per range of the voted data\n"
    "  --manifest-range SIZE    bytes per range (default 1M)\n"
    "  --check FILE       compare the voted data of one or more images with a manifest\n"
    "  -p                 progress on standard error, also if that is no terminal\n"
    "  --format FMT, --threshold K, -o OPTIONS as for mount\n"
    "With several disks, FILE.EXT is FILE-DISK.EXT for each. SIGUSR1: a line of "
    "progress.\n"
    "Exit: 0 all agree; 1 they differ (or from the manifest), every sector has a "
    "majority;\n"
    "2 an image cannot be opened, a report not written or a manifest not used; 4 read\n"
    "errors; 5 no majority somewhere; 64 usage; the first of 2, 5, 4, 1, 0. 130:\n"
    "interrupted, with a summary of what was verified.\n";

static const char repair_text[] =
    "usage: quorumfs repair [OPTIONS] IMAGE...\n"
    "       quorumfs repair [OPTIONS] CONFIG\n"
    "       quorumfs repair --undo ID|list [OPTIONS] IMAGE...|CONFIG\n"
    "       quorumfs repair [--wait] [-p] MOUNTPOINT DISK\n"
    "\n"
    "Votes over whole images that are not mounted, prints what verify prints, and gives\n"
    "replicas that differ, or cannot be read somewhere, what the majority holds. What "
    "is\n"
    "overwritten is saved before, in the state directory.\n"
    "  -n, --dry-run      change nothing, say what would be done\n"
    "  --from REPLICA     this one is right wherever it can be read (a, b ..., or the\n"
    "                     configuration's name), also where there is no majority\n"
    "  --undo ID          put back what that repair overwrote, where nobody has written\n"
    "                     since; with -n only check. 'list': which there are\n"
    "  --json             one object\n"
    "  -p                 progress on standard error, also if that is no terminal\n"
    "  --format FMT, --threshold K, -o OPTIONS as for mount\n"
    "Give the images as to mount, so that what is recorded of them is found. SIGUSR1: a\n"
    "line of progress. Of a mounted disk: as scrub --repair.\n"
    "Exit, by what was found before anything was repaired: 0 all agree; 1 they differ,\n"
    "every sector has a majority; 4 read errors; 5 no majority somewhere; but 2 if an "
    "image\n"
    "cannot be opened, or something not be repaired or undone; 64 usage; 130 "
    "interrupted.\n";

static const char replica_text[] =
    "usage: quorumfs replica remove MOUNTPOINT DISK REPLICA\n"
    "       quorumfs replica add [--format FMT] MOUNTPOINT DISK REPLICA IMAGE\n"
    "       quorumfs replica replace [--format FMT] MOUNTPOINT DISK REPLICA IMAGE\n"
    "\n"
    "Takes a replica out of a disk in use, as long as the others are enough; puts an\n"
    "image of the disk's size in the place of one that was removed, whatever it holds:\n"
    "it is filled from the others; or both. The configuration is yours to change.\n"
    "Exit: 0; 1 usage; 2 it could not be done.\n";

static const char import_libvirt_text[] =
    "usage: quorumfs import-libvirt FILE.xml\n"
    "\n"
    "Prints the quorum disks of a libvirt domain, or of one disk, as a keyfile, with\n"
    "absolute paths.\n"
    "Exit: 0; 1 usage; 2 the file cannot be read, or its disks not be written so.\n";

static const char export_libvirt_text[] =
    "usage: quorumfs export-libvirt CONFIG\n"
    "\n"
    "Prints each disk of a configuration as <disk type='quorum'>; several of them\n"
    "within <devices>.\n"
    "Exit: 0; 1 usage; 2 the file cannot be read, or its disks not be written so.\n";

bool help_print(FILE *out, const char *command)
{
    static const struct {
        const char *command, *text;
    } texts[] = {
        {"mount", mount_text},
        {"umount", umount_text},
        {"status", status_text},
        {"events", events_text},
        {"info", info_text},
        {"explain", explain_text},
        {"verify", verify_text},
        {"scrub", scrub_text},
        {"resync", resync_text},
        {"repair", repair_text},
        {"replica", replica_text},
        {"help", overview},
        {"import-libvirt", import_libvirt_text},
        {"export-libvirt", export_libvirt_text},
    };
    if (!command)
        return fputs(overview, out) >= 0;
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        if (strcmp(texts[i].command, command) == 0)
            return fputs(texts[i].text, out) >= 0;
    return false;
}
