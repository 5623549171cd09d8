# quorumfs: `make demo` shows it at work, `make check` tests it; README.md tells the rest.
VERSION    := 0.1.0
PREFIX     ?= /usr/local
BUILD      ?= build
PKG_CONFIG ?= pkg-config
ifeq ($(origin CC),default)
CC         := gcc
endif

# ---- What it is built with -----------------------------------------------------------
PACKAGES   := fuse3 libqcow libnbd glib-2.0 libcrypto liburing libzstd zlib jansson
CPPFLAGS_ALL := -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 \
                -DQUORUMFS_VERSION='"$(VERSION)"' \
                $(shell $(PKG_CONFIG) --cflags $(PACKAGES) 2>/dev/null) $(CPPFLAGS)
WARNINGS   := -Wall -Wextra -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wwrite-strings \
              -Wshadow -Wpointer-arith -Wundef -Wformat=2
CFLAGS     ?= -O2 -g
CFLAGS_ALL := -std=gnu17 -pthread $(WARNINGS) $(WERROR) $(CFLAGS) $(SANITIZE)
LIBS       := $(shell $(PKG_CONFIG) --libs $(PACKAGES) 2>/dev/null) -lpthread

# ---- What it is built from -----------------------------------------------------------
LIB_SRC    := $(wildcard formats/*.c) $(wildcard quorum/*.c) \
              $(filter-out fuse/main.c,$(wildcard fuse/*.c))
LIB_OBJ    := $(LIB_SRC:%.c=$(BUILD)/%.o)
MAIN_OBJ   := $(BUILD)/fuse/main.o
TEST_SRC   := $(wildcard tests/test-*.c)
TEST_BIN   := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
TEST_LIB   := $(BUILD)/tests/support.o $(BUILD)/tests/qcow2-variants.o $(BUILD)/tests/runner.o $(TEST_PLAIN:%.c=$(BUILD)/%.o)
TEST_LIBS  ?= -lcriterion
E2E        := $(sort $(filter-out %lib.sh,$(wildcard tests/e2e/*.sh)))

# One short line for each step; the whole commands with V=1.
ifeq ($(V),)
Q          := @
say         = @echo '  $(1)'
endif

all: quorumfs

# By content: the last build of another BUILD may be newer than this one's.
quorumfs: $(BUILD)/quorumfs force
	@cmp -s $< $@ || { echo "install -m 755 $< $@"; install -m 755 $< $@; }

# Objects are made anew when the command that makes them is not that of the last run in the
# same BUILD (CC=, CFLAGS=, SANITIZE=, WERROR= ...).
COMMAND    := $(strip $(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(TEST_CPPFLAGS) -MMD -MP -c)
ifneq ($(file <$(BUILD)/command),$(COMMAND))
$(BUILD)/command: force
endif
$(BUILD)/command:
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(COMMAND))' >$@

$(BUILD)/quorumfs: $(MAIN_OBJ) $(BUILD)/libquorumfs.a
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/libquorumfs.a: $(LIB_OBJ)
	@rm -f $@
	$(call say,AR   $@)
	$(Q)ar rcs $@ $^

$(BUILD)/%.o: %.c Makefile $(BUILD)/command
	@mkdir -p $(@D)
	$(call say,CC   $@)
	$(Q)$(COMMAND) -o $@ $<

$(BUILD)/tests/test-%: $(BUILD)/tests/test-%.o $(TEST_LIB) $(BUILD)/libquorumfs.a
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS) $(TEST_LIBS)

# Tests of the disk: a disk on raw files, and chain_* calls that fail on command.
FAULT_WRAP := chain_begin_writing chain_read chain_write chain_flush chain_prepare_read chain_prepare_write chain_finish_write \
              chain_write_zeroes chain_discard chain_resize chain_flush_step io_list_run \
              chain_forget_cache chain_abandoned journal_append journal_sync
DISK_TESTS := $(filter $(BUILD)/tests/test-disk $(BUILD)/tests/test-fault $(BUILD)/tests/test-disk-%,$(TEST_BIN))
$(DISK_TESTS): LDFLAGS += $(FAULT_WRAP:%=-Wl,--wrap=%)
$(DISK_TESTS): $(BUILD)/tests/disk-rig.o $(BUILD)/tests/fault.o

# One without threads or deadlines, and with small regions of its state.
LIVES_WRAP := disk_worker_start disk_rejoin_start io_get_timeout state_open
$(BUILD)/tests/test-disk-lives: LDFLAGS += $(LIVES_WRAP:%=-Wl,--wrap=%)

$(BUILD)/tests/test-disk-generation: LDFLAGS += -Wl,--wrap=file_sync

# A process that ends at the n-th change of a host file.
KILL_WRAP  := file_write_full file_sync file_resize file_punch file_zero
$(BUILD)/tests/test-disk-resize-crash: LDFLAGS += $(KILL_WRAP:%=-Wl,--wrap=%)

# Tests beneath which host files crash and fail on command.
CRASH_WRAP := file_read_full file_read_exact file_write_full file_sync file_punch \
              file_allocate_zero file_zero file_resize io_list_run \
              pwrite64 ftruncate64 fdatasync fsync posix_fadvise64
RIG_TESTS  := $(BUILD)/tests/test-qcow2-crash $(BUILD)/tests/test-qcow2-faults
CRASH_TESTS := $(RIG_TESTS) $(BUILD)/tests/test-crash-file $(BUILD)/tests/test-qcow2-fsck \
               $(BUILD)/tests/test-qcow2-repair-crash $(BUILD)/tests/test-qcow2-review \
               $(BUILD)/tests/test-state-crash $(BUILD)/tests/test-qcow2-mark \
               $(BUILD)/tests/test-undo $(BUILD)/tests/test-crash-disk
$(CRASH_TESTS): LDFLAGS += $(CRASH_WRAP:%=-Wl,--wrap=%)
$(CRASH_TESTS): $(patsubst %,$(BUILD)/tests/%.o,crash-file crash-syscalls disk-model qcow2-fsck)
$(RIG_TESTS): $(BUILD)/tests/qcow2-rig.o
# The same for all files of a disk.
CRASH_DISK_WRAP := disk_worker_start disk_rejoin_start g_get_monotonic_time io_get_timeout identity_read \
                   state_open state_reset state_reshape state_write_begin state_mark_stale \
                   journal_sync
$(BUILD)/tests/test-crash-disk: LDFLAGS += $(CRASH_DISK_WRAP:%=-Wl,--wrap=%)
$(BUILD)/tests/test-crash-disk: $(BUILD)/tests/crash-disk.o $(BUILD)/tests/crash-sweep.o
$(BUILD)/tests/test-qcow2-repair-hostile: $(BUILD)/tests/qcow2-fsck.o

# Tests of writers of host files, which count, fail or cut off what file.h does.
FILE_WRAP  := file_write_full file_sync
FILE_TESTS := $(filter $(BUILD)/tests/test-qcow2-update,$(TEST_BIN))
$(FILE_TESTS): LDFLAGS += $(FILE_WRAP:%=-Wl,--wrap=%)

# Tests of writing qcow2: an image beside the bytes that it has to hold.
WRITE_TESTS := $(filter $(BUILD)/tests/test-qcow2-write $(BUILD)/tests/test-qcow2-write-%,$(TEST_BIN))
$(WRITE_TESTS): $(BUILD)/tests/qcow2-model.o

# Tests of the serving loop: something was abandoned, or so it says.
$(BUILD)/tests/test-loop: LDFLAGS += -Wl,--wrap=io_thread_abandoned -Wl,--wrap=io_free_later

# Tests of host files that do not answer.
$(filter $(BUILD)/tests/test-deadline%,$(TEST_BIN)): $(BUILD)/tests/hang-fs.o

tests: $(TEST_BIN)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- The two commands of the README --------------------------------------------------
# Both start make again after `deps`, because what pkg-config says is read only once.
demo: deps
	$(MAKE) quorumfs
	QUORUMFS=$(CURDIR)/quorumfs contrib/demo.sh

check: deps
	$(MAKE) quorumfs tests
	QUORUMFS=$(CURDIR)/quorumfs tests/run-tests $(TEST_BIN) $(E2E)

# ---- How fast it is, next to QEMU's tools: minutes, and 3 GiB in TMPDIR -----------------
bench: deps
	$(MAKE) quorumfs $(BUILD)/bench/qcow2-write $(BUILD)/bench/disk-write
	QUORUMFS=$(CURDIR)/quorumfs bench/verify.sh
	QCOW2_WRITE=$(CURDIR)/$(BUILD)/bench/qcow2-write bench/write.sh
	QUORUMFS=$(CURDIR)/quorumfs DISK_WRITE=$(CURDIR)/$(BUILD)/bench/disk-write bench/state.sh
	QUORUMFS=$(CURDIR)/quorumfs bench/pattern.sh
	QUORUMFS=$(CURDIR)/quorumfs bench/degraded.sh
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libquorumfs.a
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LIBS)

# ---- The test programs under sanitizers -----------------------------------------------
# Criterion's worker processes do not start under ThreadSanitizer: tests/plain stands in.
# setarch, where it is allowed: gcc's ThreadSanitizer does not start on kernels that
# spread addresses further than it expects.
ASAN = BUILD=build-asan SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"
TSAN = BUILD=build-tsan SANITIZE=-fsanitize=thread TEST_LIBS= TEST_CPPFLAGS=-Itests/plain \
       TEST_PLAIN="tests/plain/plain.c tests/plain/glib-tsan.c"
# Long programs with one thread, which have nothing to show there. Thread leaks are not
# reported: processes that end without closing a disk are what some tests are about.
ONE_THREAD := qcow2-crash qcow2-faults qcow2-repair qcow2-repair-crash qcow2-repair-hostile \
              qcow2-write qcow2-write-snapshots state-crash crash-disk disk-lives
TSAN_TESTS := $(filter-out $(ONE_THREAD:%=tests/test-%.c),$(TEST_SRC))
check-sanitize: check-asan check-tsan
check-asan:
	$(MAKE) $(ASAN) build-asan/quorumfs tests
	tests/run-tests $(TEST_SRC:tests/%.c=build-asan/tests/%)
check-tsan:
	$(MAKE) $(TSAN) build-tsan/quorumfs tests
	TSAN_OPTIONS=report_thread_leaks=0 \
	    $$(setarch -R true 2>/dev/null && echo setarch -R) \
	    tests/run-tests $(TSAN_TESTS:tests/%.c=build-tsan/tests/%)

# ---- Images made to hurt: libFuzzer, which is clang's (tests/fuzz/README.md) ---------
# Seeds, corpus and what was found stay in build-fuzz.
FUZZ_SECONDS ?= 60
FUZZ = BUILD=build-fuzz CC=clang CFLAGS="-O1 -g" \
       SANITIZE="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
FUZZ_BIN  := $(BUILD)/tests/fuzz/fuzz-qcow2 $(BUILD)/tests/fuzz/fuzz-qcow1
FUZZ_TEXT := $(BUILD)/tests/fuzz/fuzz-xml
FUZZ_PART := $(patsubst %.c,$(BUILD)/%.o,$(filter-out tests/fuzz/fuzz-%,$(wildcard tests/fuzz/*.c)))
fuzz: deps-ci
	$(MAKE) $(FUZZ) fuzz-targets
	tests/fuzz/run $(FUZZ_SECONDS)
fuzz-targets: $(FUZZ_BIN) $(FUZZ_TEXT)
$(FUZZ_BIN): $(FUZZ_PART)
$(BUILD)/tests/fuzz/fuzz-%: $(BUILD)/tests/fuzz/fuzz-%.o $(BUILD)/libquorumfs.a
	$(call say,LD   $@)
	$(Q)$(CC) $(CFLAGS_ALL) -fsanitize=fuzzer $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)

# ---- What Debian or Ubuntu lacks -----------------------------------------------------
DEPS_BUILD := gcc libc6-dev pkg-config libfuse3-dev libqcow-dev libglib2.0-dev libssl-dev \
              liburing-dev libzstd-dev zlib1g-dev libjansson-dev libnbd-dev
DEPS_RUN   := fuse3 qemu-utils
DEPS_TEST  := libcriterion-dev nbdkit qemu-system-common fio gddrescue jq python3 e2fsprogs procps openssl
DEPS_CI    := clang libclang-rt-dev clang-format cppcheck
DEPS       ?= $(DEPS_BUILD) $(DEPS_RUN) $(DEPS_TEST)
deps:
	@contrib/install-deps.sh $(DEPS)
deps-ci:
	@contrib/install-deps.sh $(DEPS_BUILD) $(DEPS_RUN) $(DEPS_TEST) $(DEPS_CI)

# ---- Static checks --------------------------------------------------------------------
SOURCES    := $(wildcard formats/*.[ch] quorum/*.[ch] fuse/*.[ch] tests/*.[ch] bench/*.[ch] \
                         tests/fuzz/*.[ch] tests/plain/*.[ch] tests/plain/criterion/*.h)
format:
	clang-format -i $(SOURCES)
check-format:
	@clang-format --dry-run -Werror $(SOURCES)
# readdir: each stream has one user, and the other function is obsolete.
check-cppcheck:
	cppcheck -q --std=c11 --error-exitcode=1 --inline-suppr -I. \
	    --enable=warning,performance,portability --library=gtk,posix \
	    --suppress=missingInclude --suppress=unknownMacro --suppress=readdirCalled \
	    formats quorum fuse

# ---- Installing -----------------------------------------------------------------------
install: quorumfs
	install -D -m 755 quorumfs $(DESTDIR)$(PREFIX)/bin/quorumfs
	install -D -m 644 quorumfs.1 $(DESTDIR)$(PREFIX)/share/man/man1/quorumfs.1
	install -D -m 644 contrib/quorumfs.bash-completion \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/quorumfs
	install -D -m 644 contrib/sample.conf \
	    $(DESTDIR)$(PREFIX)/share/doc/quorumfs/examples/sample.conf
	install -d $(DESTDIR)$(PREFIX)/sbin
	ln -sf ../bin/quorumfs $(DESTDIR)$(PREFIX)/sbin/mount.fuse.quorumfs

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/quorumfs \
	    $(DESTDIR)$(PREFIX)/sbin/mount.fuse.quorumfs \
	    $(DESTDIR)$(PREFIX)/share/man/man1/quorumfs.1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/quorumfs \
	    $(DESTDIR)$(PREFIX)/share/doc/quorumfs/examples/sample.conf

clean:
	rm -rf build build-* quorumfs

.PHONY: all force tests demo check bench fuzz fuzz-targets check-sanitize check-asan check-tsan deps deps-ci \
        format check-format check-cppcheck install uninstall clean
.SECONDARY:
