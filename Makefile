# quorumfs: `make` builds ./quorumfs. See README.md for the two commands that matter.
VERSION   := 0.1.0
PREFIX    ?= /usr/local
BUILD     ?= build
CC        ?= gcc
PKG_CONFIG ?= pkg-config

PACKAGES  := fuse3 glib-2.0 libcrypto liburing libzstd zlib jansson
CPPFLAGS_ALL = -I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 \
               -DQUORUMFS_VERSION='"$(VERSION)"' \
               $(shell $(PKG_CONFIG) --cflags $(PACKAGES) 2>/dev/null) $(CPPFLAGS)
WARNINGS  := -Wall -Wextra -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wwrite-strings \
             -Wshadow -Wpointer-arith -Wundef -Wformat=2
CFLAGS    ?= -O2 -g
CFLAGS_ALL = -std=gnu17 -pthread $(WARNINGS) $(WERROR) $(CFLAGS) $(SANITIZE)
LIBS       = $(shell $(PKG_CONFIG) --libs $(PACKAGES) 2>/dev/null) -lqcow -lpthread

LIB_SRC   := $(wildcard formats/*.c) $(wildcard quorum/*.c) \
             $(filter-out fuse/main.c,$(wildcard fuse/*.c))
LIB_OBJ   := $(LIB_SRC:%.c=$(BUILD)/%.o)
MAIN_OBJ  := $(BUILD)/fuse/main.o
TEST_SRC  := $(wildcard tests/test-*.c)
TEST_BIN  := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
TEST_LIB  := $(BUILD)/tests/support.o $(BUILD)/tests/runner.o

all: quorumfs

quorumfs: $(BUILD)/quorumfs
	cp $< $@

$(BUILD)/quorumfs: $(MAIN_OBJ) $(BUILD)/libquorumfs.a
	$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/libquorumfs.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(TEST_CPPFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/tests/test-%: $(BUILD)/tests/test-%.o $(TEST_LIB) $(BUILD)/libquorumfs.a
	$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LIBS) $(TEST_LIBS)

TEST_LIBS ?= -lcriterion
tests: $(TEST_BIN)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

.PHONY: all tests clean
.SECONDARY:
clean:
	rm -rf build build-* quorumfs
